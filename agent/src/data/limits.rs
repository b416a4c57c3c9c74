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

/// How many of `all` places one peer may hold while `taken` of them are: at most `each`, and the fewer
/// the fewer are free, so that however many peers want all they can get, some stay free for who comes
/// next (a dynamic threshold, Choudhury and Hahne 1998). At the defaults one peer alone gets its 256 of
/// 4,096, sixteen that want everything 170 each, and 250 of them fifteen.
///
/// Where the limits are such that fewer than four peers fit, nothing is shared out.
pub(super) const fn share(all: u32, each: u32, taken: u32) -> u32 {
    let Some(parts) = all.checked_div(each.saturating_mul(2)) else {
        return each;
    };
    if parts < 2 {
        return each;
    }
    let fair = all.saturating_sub(taken) / parts;
    // `min` and `max` are not const.
    if fair > each {
        each
    } else if fair == 0 {
        1
    } else {
        fair
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of `peers` ends up with when all of them take what they can get, and what is free.
    fn greedy(peers: usize, all: u32, each: u32) -> (u32, u32) {
        let mut held = vec![0; peers];
        loop {
            let before = held.clone();
            for peer in 0..peers {
                let taken = held.iter().sum();
                if taken < all && held[peer] < share(all, each, taken) {
                    held[peer] += 1;
                }
            }
            if held == before {
                return (held[0], all - held.iter().sum::<u32>());
            }
        }
    }

    #[test]
    fn however_many_want_everything_some_places_stay_free() {
        let (all, each) = (Limits::CONNECTIONS_MAX, Limits::PEER_CONNECTIONS_MAX);
        assert_eq!(greedy(1, all, each).0, each);
        assert_eq!(greedy(8, all, each).0, each);
        for peers in [16, 110, 250, 737] {
            let (held, free) = greedy(peers, all, each);
            assert!(held >= 4, "{peers} peers hold {held}");
            assert!(free > 0, "{peers} peers leave nothing");
        }
    }

    #[test]
    fn a_peer_that_may_have_nearly_all_may_have_it() {
        assert_eq!(share(4, 2, 3), 2);
        assert_eq!(share(100, 100, 99), 100);
        assert_eq!(share(10, 0, 0), 0);
    }

    #[test]
    fn nobody_is_left_without_any() {
        assert_eq!(share(4096, 256, 4095), 1);
    }
}
