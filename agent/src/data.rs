//! The data plane: workers that answer pods from the newest snapshot.
//!
//! One thread per worker, each with its own runtime, its own listeners and its own counts; they
//! share nothing but the snapshot's pointer. Nothing in this room names the control plane's runtime,
//! its RPC, or a lock, and a request never waits for the network.

//!
//! In reading order: [`limits`]; the sockets ([`listen`]) and the runtime ([`seam`], the only room
//! that names it); a [`worker`] and its [`connection`]s, which the [`watch`] bounds in time, the
//! [`peers`] in number, and which take [`turns`]; a [`request`] and its [`target`]; the [`answer`], with [`token`]s at the one
//! door and [`jwt`]s at the other; [`passthrough`]; and around all of it the [`plane`].

mod answer;
mod connection;
mod descriptor;
pub mod dry;
mod fixed;
mod hops;
pub mod jwt;
pub mod limits;
mod listen;
mod moment;
mod passthrough;
mod peers;
mod places;
mod plane;
pub mod request;
mod schedule;
mod seam;
pub mod target;
mod ticker;
pub mod token;
mod turns;
mod watch;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

pub use self::limits::Limits;
pub use self::plane::{Plane, Present, Ringer, start, start_on};
pub use self::token::TokenKey;
use crate::intercept::witness::Witness;
use crate::readiness::Following;

/// What the data plane needs to know. Validated by whoever makes it.
#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of its own, none a state"
)]
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
    /// The hop limit of a connection from its first token on; `None` leaves the system's.
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
    /// Looks at connections until one came through the rules; `None` when nobody asks.
    pub witness: Option<Arc<Witness>>,
    /// Accept nothing before [`Ringer::open`], where somebody else who has the same sockets does.
    pub closed: bool,
    /// Whether a server is followed, for kiam's `/health?deep=`.
    pub following: Following,
}

impl DataConfig {
    /// No door, one worker on epoll, the default limits, and nothing that a flag would turn on.
    pub fn new(token_key: TokenKey) -> Self {
        Self {
            listen: Vec::new(),
            container_listen: Vec::new(),
            workers: NonZeroUsize::MIN,
            pin_workers: false,
            driver: DriverChoice::Epoll,
            scheduling: Scheduling::Other,
            imds_v2_only: false,
            token_hop_limit: None,
            region: None,
            availability_zone: None,
            allow_ip_query: false,
            passthrough: None,
            audience: String::new(),
            token_key,
            audit_log: false,
            limits: Limits::default(),
            witness: None,
            closed: false,
            following: Following::default(),
        }
    }
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
    /// A token's packets cannot be given a hop limit here.
    #[error("--token-hop-limit does not work here; drop the flag")]
    HopLimit(#[source] io::Error),
    /// No worker thread, or none of the sockets it needs.
    #[error("cannot start a worker")]
    Worker(#[source] io::Error),
}
