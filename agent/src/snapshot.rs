//! What the data plane knows: an immutable picture of the node, replaced whole.
//!
//! The control thread publishes, each worker reads; nobody else sees the primitive between them.
//! A [`Reader`] keeps the snapshot it saw last alive until it looks again, so an idle worker looks on
//! every tick of its doorbell, or replaced secrets would stay in memory. Retired snapshots are freed
//! by the control thread ([`Publisher::reap`]), never by a worker: freeing a large one takes longer
//! than answering a request.

pub mod answers;
mod index;
pub mod store;
pub mod verifier;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use kiam_wire::{PodUid, Refusal, Revision};

pub use self::answers::Answers;
use self::index::Index;
pub use self::store::{Applied, Gap, Store};
pub use self::verifier::Verifier;
use crate::clock::{Expiry, Now};
use crate::response::Response;

/// Everything a worker needs to answer any pod of the node.
#[derive(Debug)]
pub struct Snapshot {
    by_ip: Index<IpAddr>,
    by_uid: Index<PodUid>,
    keys: Option<Arc<Verifier>>,
    revision: Option<Revision>,
    published_at: Now,
    credentials: usize,
}

impl Snapshot {
    /// Knows nobody: every request is parked.
    pub fn empty(now: Now) -> Self {
        Self {
            by_ip: Index::default(),
            by_uid: Index::default(),
            keys: None,
            revision: None,
            published_at: now,
            credentials: 0,
        }
    }

    /// The pod that owns an address. The address is canonical: no IPv4 in IPv6 clothes.
    pub fn by_ip(&self, ip: IpAddr) -> Option<&Arc<Entry>> {
        self.by_ip.get(&ip)
    }

    /// The pod with a uid; `None` for all when the store was made without the second door.
    pub fn by_uid(&self, uid: &str) -> Option<&Arc<Entry>> {
        self.by_uid.get(uid)
    }

    /// What verifies ServiceAccount tokens; `None` refuses them all.
    pub const fn keys(&self) -> Option<&Arc<Verifier>> {
        self.keys.as_ref()
    }

    /// The server's name for this state; `None` until a server or a hand-over has spoken.
    pub const fn revision(&self) -> Option<Revision> {
        self.revision
    }

    /// When it was published.
    pub const fn published_at(&self) -> Now {
        self.published_at
    }

    /// How many addresses can be answered.
    pub fn addresses(&self) -> usize {
        self.by_ip.len()
    }

    /// How many credentials are held.
    pub const fn credentials(&self) -> usize {
        self.credentials
    }

    /// When the first of the credentials that are being served expires. Looks at every pod: for
    /// whoever scrapes, not for requests.
    pub fn soonest_expiry(&self) -> Option<Expiry> {
        self.by_ip
            .values()
            .chain(self.by_uid.values())
            .filter_map(|entry| match &entry.standing {
                Standing::Granted(answers) => Some(answers.expiry()),
                Standing::Pending | Standing::Refused(..) | Standing::NoRole => None,
            })
            .min_by_key(|expiry| expiry.wall())
    }
}

/// One pod, ready to be answered.
#[derive(Debug)]
pub struct Entry {
    /// The key.
    pub uid: PodUid,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The ServiceAccount it runs as.
    pub service_account: String,
    /// Requests without an IMDSv2 token are answered 401.
    pub imds_v2_required: bool,
    /// What it is answered.
    pub standing: Standing,
}

/// What a pod is answered.
#[derive(Debug)]
pub enum Standing {
    /// Its credentials, unless they have expired; then as pending.
    Granted(Arc<Answers>),
    /// Nothing yet: the request is parked.
    Pending,
    /// 403 and the reason.
    Refused(Refusal, Box<Refusals>),
    /// 404.
    NoRole,
}

/// A refusal, rendered for both doors.
#[derive(Debug)]
pub struct Refusals {
    /// For the metadata door: an empty body, the reason in a header.
    pub metadata: Response,
    /// For the container door: the reason as JSON.
    pub container: Response,
}

/// Where the control thread puts a new snapshot.
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    /// Snapshots that workers may still be reading.
    retired: Vec<Arc<Snapshot>>,
}

impl Publisher {
    /// Starts with an empty snapshot.
    pub fn new(now: Now) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Snapshot::empty(now))),
            retired: Vec::new(),
        }
    }

    /// Makes `snapshot` what every request from now on is answered from, and frees those no worker
    /// reads any more. Ring the workers afterwards ([`crate::data::Ringer::ring`]), or parked
    /// requests notice only on the next tick.
    pub fn publish(&mut self, snapshot: Snapshot) {
        self.retired.push(self.current.swap(Arc::new(snapshot)));
        self.reap();
    }

    /// Frees retired snapshots that no worker reads any more; returns how many remain. Call it now
    /// and then even when nothing is published.
    pub fn reap(&mut self) -> usize {
        self.retired
            .retain(|snapshot| Arc::strong_count(snapshot) > 1);
        self.retired.len()
    }

    /// For one worker, or for whoever computes metrics.
    pub fn reader(&self) -> Reader {
        Source(Arc::clone(&self.current)).reader()
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("retired", &self.retired.len())
            .finish_non_exhaustive()
    }
}

/// How one worker sees the newest snapshot: one relaxed load per request, no reference counting.
#[derive(Clone)]
pub struct Reader {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    source: Source,
}

impl Reader {
    /// The newest snapshot.
    pub fn current(&mut self) -> &Snapshot {
        self.cache.load()
    }

    /// For whoever looks so seldom that a reader would keep what was replaced long ago.
    pub fn into_source(self) -> Source {
        self.source
    }
}

/// Where readers come from. Keeps no snapshot alive.
#[derive(Clone)]
pub struct Source(Arc<ArcSwap<Snapshot>>);

impl Source {
    /// To be dropped soon, or read from often.
    pub fn reader(&self) -> Reader {
        Reader {
            cache: Cache::new(Arc::clone(&self.0)),
            source: self.clone(),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}
