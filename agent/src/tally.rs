//! What the workers count, and how it is added up.
//!
//! Each worker counts alone, with relaxed additions on cache lines of its own, so that counting
//! never makes workers wait for each other. Adding up happens only when someone scrapes. All labels
//! are closed sets: what a pod sends can never make a new series.

mod collector;
mod histogram;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};

use kiam_wire::Refusal;
use prometheus_client::registry::Registry;

pub use self::histogram::Histogram;
use crate::response::Status;
use crate::snapshot::Reader;

/// Every worker's counts.
#[derive(Debug, Clone)]
pub struct Tallies {
    workers: Arc<[Tally]>,
}

impl Tallies {
    /// One tally for each of `workers`.
    pub fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| Tally::default()).collect(),
        }
    }

    /// How many workers count here.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The counts of one worker.
    pub(crate) fn of(&self, worker: usize) -> Option<TallyOf> {
        (worker < self.workers.len()).then(|| TallyOf {
            workers: Arc::clone(&self.workers),
            worker,
        })
    }

    /// The sum of one count over all workers.
    pub fn sum(&self, count: impl Fn(&Tally) -> u64) -> u64 {
        self.workers.iter().map(count).sum()
    }

    /// Puts the workers' counts, and what `reader` shows of the snapshot, into `registry`, which
    /// must add no prefix: the names are kiam's, whole.
    pub fn register(&self, registry: &mut Registry, reader: Reader) {
        registry.register_collector(Box::new(collector::DataPlane::new(self.clone(), reader)));
    }
}

/// One worker's own counts.
#[derive(Debug, Clone)]
pub(crate) struct TallyOf {
    workers: Arc<[Tally]>,
    worker: usize,
}

impl std::ops::Deref for TallyOf {
    type Target = Tally;

    fn deref(&self) -> &Tally {
        static NOWHERE: Tally = Tally::new();
        self.workers.get(self.worker).unwrap_or(&NOWHERE)
    }
}

/// One worker's counts, alone on its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    handlers: [HandlerTally; Handler::ALL.len()],
    refused: [AtomicU64; Refusal::ALL.len()],
    limited: [AtomicU64; Limited::ALL.len()],
    pub(crate) connections_now: AtomicI64,
    pub(crate) connections: AtomicU64,
    pub(crate) parked_now: AtomicI64,
    pub(crate) parked: AtomicU64,
    pub(crate) parked_timed_out: AtomicU64,
    pub(crate) parked_gone: AtomicU64,
    pub(crate) parked_for: Histogram,
    pub(crate) sending: Histogram,
    pub(crate) empty_role: AtomicU64,
    pub(crate) find_role_errors: AtomicU64,
    pub(crate) credential_fetch_errors: AtomicU64,
    pub(crate) proxy_blocked: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
    pub(crate) panics: AtomicU64,
    driver: AtomicU8,
}

/// What one handler answered.
#[derive(Debug, Default)]
struct HandlerTally {
    /// By the index of a status; the last is for statuses of the real metadata service.
    responses: [AtomicU64; Status::ALL.len() + 1],
    latency: Histogram,
}

impl Tally {
    const fn new() -> Self {
        Self {
            handlers: [const { HandlerTally::new() }; Handler::ALL.len()],
            refused: [const { AtomicU64::new(0) }; Refusal::ALL.len()],
            limited: [const { AtomicU64::new(0) }; Limited::ALL.len()],
            connections_now: AtomicI64::new(0),
            connections: AtomicU64::new(0),
            parked_now: AtomicI64::new(0),
            parked: AtomicU64::new(0),
            parked_timed_out: AtomicU64::new(0),
            parked_gone: AtomicU64::new(0),
            parked_for: Histogram::new(),
            sending: Histogram::new(),
            empty_role: AtomicU64::new(0),
            find_role_errors: AtomicU64::new(0),
            credential_fetch_errors: AtomicU64::new(0),
            proxy_blocked: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            driver: AtomicU8::new(0),
        }
    }

    /// Counts one answer and how long it took from the request's first byte.
    pub(crate) fn answered(&self, handler: Handler, status: u16, took: std::time::Duration) {
        if let Some(tally) = self.handlers.get(handler.index()) {
            if let Some(count) = tally.responses.get(Status::index_of(status)) {
                add(count);
            }
            tally.latency.record(took);
        }
    }

    pub(crate) fn refused(&self, reason: Refusal) {
        let place = Refusal::ALL.iter().position(|one| *one == reason);
        if let Some(count) = place.and_then(|place| self.refused.get(place)) {
            add(count);
        }
    }

    pub(crate) fn limited(&self, limit: Limited) {
        if let Some(count) = self.limited.get(limit.index()) {
            add(count);
        }
    }

    pub(crate) fn set_driver(&self, name: &str) {
        self.driver
            .store(if name == "io_uring" { 1 } else { 2 }, Ordering::Relaxed);
    }
}

impl HandlerTally {
    const fn new() -> Self {
        Self {
            responses: [const { AtomicU64::new(0) }; Status::ALL.len() + 1],
            latency: Histogram::new(),
        }
    }
}

/// One more.
pub(crate) fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

/// Who answered; kiam's names where it had one. A metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handler {
    /// The role list.
    RoleName,
    /// Credentials, both forms.
    Credentials,
    /// IMDSv2 tokens.
    Token,
    /// `iam/info` and what flags give: region, zone, identity document.
    Info,
    /// `/ping` and `/health`.
    Health,
    /// What is, or is not, fetched from the real metadata service.
    Proxy,
    /// The container door.
    Container,
    /// Requests refused before they were routed.
    Refused,
}

impl Handler {
    /// Every handler, for metrics that start at zero.
    pub const ALL: [Self; 8] = [
        Self::RoleName,
        Self::Credentials,
        Self::Token,
        Self::Info,
        Self::Health,
        Self::Proxy,
        Self::Container,
        Self::Refused,
    ];

    const fn index(self) -> usize {
        match self {
            Self::RoleName => 0,
            Self::Credentials => 1,
            Self::Token => 2,
            Self::Info => 3,
            Self::Health => 4,
            Self::Proxy => 5,
            Self::Container => 6,
            Self::Refused => 7,
        }
    }

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoleName => "roleName",
            Self::Credentials => "credentials",
            Self::Token => "token",
            Self::Info => "info",
            Self::Health => "health",
            Self::Proxy => "proxy",
            Self::Container => "container",
            Self::Refused => "refused",
        }
    }
}

/// Which limit turned somebody away. A metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// Connections of the worker.
    Connections,
    /// Connections of one peer.
    PeerConnections,
    /// Requests per second of one peer.
    PeerRequests,
    /// Parked requests of the worker.
    Parked,
    /// Parked requests of one peer.
    PeerParked,
    /// A request that took too long to arrive.
    ReadTimeout,
    /// An answer that took too long to leave.
    WriteTimeout,
}

impl Limited {
    /// Every limit, for metrics that start at zero.
    pub const ALL: [Self; 7] = [
        Self::Connections,
        Self::PeerConnections,
        Self::PeerRequests,
        Self::Parked,
        Self::PeerParked,
        Self::ReadTimeout,
        Self::WriteTimeout,
    ];

    const fn index(self) -> usize {
        match self {
            Self::Connections => 0,
            Self::PeerConnections => 1,
            Self::PeerRequests => 2,
            Self::Parked => 3,
            Self::PeerParked => 4,
            Self::ReadTimeout => 5,
            Self::WriteTimeout => 6,
        }
    }

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::PeerConnections => "peer_connections",
            Self::PeerRequests => "peer_requests",
            Self::Parked => "parked",
            Self::PeerParked => "peer_parked",
            Self::ReadTimeout => "read_timeout",
            Self::WriteTimeout => "write_timeout",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_places() {
        for (place, handler) in Handler::ALL.iter().enumerate() {
            assert_eq!(handler.index(), place);
        }
        for (place, limit) in Limited::ALL.iter().enumerate() {
            assert_eq!(limit.index(), place);
        }
        for (place, status) in Status::ALL.iter().enumerate() {
            assert_eq!(Status::index_of(status.code()), place);
        }
        assert_eq!(Status::index_of(418), Status::ALL.len());
    }

    #[test]
    fn workers_do_not_share_cache_lines() {
        assert_eq!(size_of::<Tally>() % 128, 0);
        assert_eq!(align_of::<Tally>(), 128);
    }
}
