//! How much anyone may ask of a worker. Every limit is a field, its default a constant, and how
//! they hang together is asserted.
//!
//! Limits hold per worker: workers share nothing, and connections of one peer are spread over them
//! by the kernel.

use std::time::Duration;

/// Bytes of a request's head. Sixteen times what SDKs send; a ServiceAccount token is 1 to 2 KiB
/// and a percent-encoded role ARN at most 6 KiB.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Header lines of one request; SDKs send 4 to 12.
pub const HEADERS_MAX: usize = 48;
/// Bytes of a request body that is read and thrown away. None of our routes wants one.
pub const BODY_BYTES_MAX: usize = 8 * 1024;
/// Bytes of answers gathered for pipelined requests before they are sent.
pub const BATCH_BYTES_MAX: usize = 64 * 1024;

/// Limits that flags may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open connections of one worker.
    pub connections_max: u32,
    /// Open connections of one peer.
    pub peer_connections_max: u32,
    /// Requests per second of one peer, sustained.
    pub peer_requests_per_s: u32,
    /// Requests a peer may make at once before that rate counts.
    pub peer_burst: u32,
    /// Parked requests of one worker.
    pub parked_max: u32,
    /// Parked requests of one peer.
    pub peer_parked_max: u32,
    /// How long a request is parked, from its first byte.
    pub park_timeout: Duration,
    /// How long a request's head and body may take, from its first byte.
    pub read_timeout: Duration,
    /// How long a connection may be open without a request.
    pub idle_timeout: Duration,
    /// How long a client may take to receive an answer.
    pub write_timeout: Duration,
}

impl Limits {
    /// One worker's connections: about 8 MiB when all are idle.
    pub const CONNECTIONS_MAX: u32 = 4096;
    /// One peer's connections: no SDK holds more than a few, a pod of many processes some dozen.
    pub const PEER_CONNECTIONS_MAX: u32 = 256;
    /// One peer's requests: an SDK makes three an hour; this is for pods that start processes in a
    /// loop.
    pub const PEER_REQUESTS_PER_S: u32 = 1000;
    /// A second's worth and another.
    pub const PEER_BURST: u32 = 2000;
    /// One worker's parked requests.
    pub const PARKED_MAX: u32 = 1024;
    /// One peer's parked requests.
    pub const PEER_PARKED_MAX: u32 = 64;
    /// Most clients hang up after one second; 100 ms remain for the way there and back.
    pub const PARK_TIMEOUT: Duration = Duration::from_millis(900);
    /// Heads arrive in one packet; a slow one is a mistake or an attack.
    pub const READ_TIMEOUT: Duration = Duration::from_secs(5);
    /// SDKs reuse a connection within a few seconds or not at all.
    pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
    /// An answer fits the socket buffer; only a client that never reads gets here.
    pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
    /// SDKs keep a connection this long between the requests of one dialogue.
    pub const IDLE_TIMEOUT_MIN: Duration = Duration::from_secs(5);
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: Self::CONNECTIONS_MAX,
            peer_connections_max: Self::PEER_CONNECTIONS_MAX,
            peer_requests_per_s: Self::PEER_REQUESTS_PER_S,
            peer_burst: Self::PEER_BURST,
            parked_max: Self::PARKED_MAX,
            peer_parked_max: Self::PEER_PARKED_MAX,
            park_timeout: Self::PARK_TIMEOUT,
            read_timeout: Self::READ_TIMEOUT,
            idle_timeout: Self::IDLE_TIMEOUT,
            write_timeout: Self::WRITE_TIMEOUT,
        }
    }
}

const _: () = {
    // A connection carries at most one parked request.
    assert!(Limits::PARKED_MAX <= Limits::CONNECTIONS_MAX);
    assert!(Limits::PEER_PARKED_MAX <= Limits::PEER_CONNECTIONS_MAX);
    // No single peer can take all there is.
    assert!(Limits::PEER_CONNECTIONS_MAX * 4 <= Limits::CONNECTIONS_MAX);
    assert!(Limits::PEER_PARKED_MAX * 4 <= Limits::PARKED_MAX);
    assert!(Limits::PEER_REQUESTS_PER_S <= Limits::PEER_BURST);
    assert!(Limits::IDLE_TIMEOUT.as_millis() >= Limits::IDLE_TIMEOUT_MIN.as_millis());
    assert!(Limits::PARK_TIMEOUT.as_millis() < 1000);
    assert!(Limits::PARK_TIMEOUT.as_millis() < Limits::READ_TIMEOUT.as_millis());
};
