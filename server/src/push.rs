//! Tells each node what its pods may have.
//!
//! One table per node, one stream per agent. The owner of the cluster's state changes tables and
//! says so; each stream wakes, works out what its agent has not been told and sends that. Streams
//! never wait for one another and the owner never waits for a stream: a change costs it one lock that
//! is held for as long as it takes to copy a few pointers.

mod frames;
mod sent_on;
pub mod service;
mod stream;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use kiam_wire::keys::VerificationKeys;
use kiam_wire::report::{HeldCredential, Report};
use kiam_wire::{PodUid, Revision};
use tokio::sync::{oneshot, watch};

use crate::clock::Moment;
use crate::metrics::StreamEnd;
use crate::snapshot::{NodeTable, Stamp};

/// What agents say that the owner of the cluster's state wants to know.
#[derive(Debug)]
pub enum AgentWord {
    /// An agent has come and holds these.
    Holds {
        /// Its node.
        node: Arc<str>,
        /// What it could serve without this server.
        held: Vec<HeldCredential>,
        /// Dropped once the node's table takes it into account.
        heard: oneshot::Sender<()>,
    },
    /// An agent holds requests of these addresses.
    Waiting {
        /// Its node.
        node: Arc<str>,
        /// Who is waiting.
        peers: Vec<std::net::IpAddr>,
    },
}

/// Streams of one node that may be open at a time: an agent, its successor during an upgrade, and
/// one or two whose end has not been noticed yet. The oldest makes room.
const STREAMS_PER_NODE_MAX: usize = 4;
/// An agent's pod may be younger than what the watch has shown, but not for longer than this.
const UNKNOWN_AGENT_MAX: Duration = Duration::from_mins(2);

/// Every node's table and streams.
#[derive(Debug)]
pub struct Nodes {
    by_name: DashMap<Arc<str>, Arc<Node>>,
    epoch: u64,
    numbers: AtomicU64,
    streams: AtomicU64,
    /// The streams of agents that are known by their pods, by pod.
    agents: DashMap<PodUid, Vec<AgentStream>>,
    keys: Mutex<Option<Arc<VerificationKeys>>>,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    name: Arc<str>,
    table: Mutex<NodeTable>,
    changed: watch::Sender<()>,
    /// By number; the least is the oldest.
    streams: Mutex<BTreeMap<u64, Following>>,
}

/// An open stream, as `why` shows it.
#[derive(Debug)]
struct Following {
    status: StreamStatus,
    /// Told why to end the stream; dropped when a newer one takes its place.
    ended: oneshot::Sender<StreamEnd>,
}

/// A stream whose agent's pod is known.
#[derive(Debug)]
struct AgentStream {
    node: Arc<str>,
    number: u64,
    since: Moment,
}

/// An agent that comes.
#[derive(Debug, Default)]
struct Newcomer {
    /// As it gave it.
    version: String,
    /// Its pod, if that is how it proved who it is.
    pod: Option<PodUid>,
}

/// How far an agent is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStatus {
    /// As the agent gave it.
    pub agent_version: String,
    /// The last revision it was sent.
    pub sent: Revision,
    /// The last revision it said to have applied on this stream.
    pub applied: Option<Revision>,
    /// Its last report.
    pub report: Option<Report>,
}

/// A stream's place at its node. Dropping it gives the place up.
#[derive(Debug)]
struct Place {
    node: Arc<Node>,
    nodes: Arc<Nodes>,
    number: u64,
    agent: Option<PodUid>,
    ended: oneshot::Receiver<StreamEnd>,
}

impl Nodes {
    /// No nodes. The epoch must be random, so that revisions of two servers never meet.
    pub fn new(epoch: u64) -> Self {
        Self {
            by_name: DashMap::new(),
            epoch,
            numbers: AtomicU64::new(1),
            streams: AtomicU64::new(1),
            agents: DashMap::new(),
            keys: Mutex::new(None),
        }
    }

    /// A stamp for changes made at `at` to a table that is locked, or that nobody else sees yet.
    fn stamp(&self, at: Moment) -> Stamp {
        Stamp {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            at,
        }
    }

    /// Changes a node's table, making the node if it is new. The caller tells the streams with
    /// [`Nodes::tell`] when it is done with all its changes.
    pub fn with<T>(
        &self,
        node: &Arc<str>,
        at: Moment,
        change: impl FnOnce(&mut NodeTable, Stamp) -> T,
    ) -> T {
        let node = self.node(node, at);
        let mut table = node.table();
        // Drawn under the lock, so that a table's stamps only grow.
        let stamp = self.stamp(at);
        change(&mut table, stamp)
    }

    /// Looks at a node's table, if there is one.
    pub fn look<T>(&self, node: &str, look: impl FnOnce(&NodeTable) -> T) -> Option<T> {
        let node = self.by_name.get(node).map(|node| Arc::clone(&node))?;
        let table = node.table();
        Some(look(&table))
    }

    /// Wakes a node's streams, and forgets the node when it has neither pods nor streams.
    pub fn tell(&self, node: &str) {
        if let Some(node) = self.by_name.get(node) {
            node.changed.send_replace(());
        }
        self.forget_if_unused(node);
    }

    /// New token keys: for every node there is, and for every one to come.
    pub fn put_keys(&self, keys: &Arc<VerificationKeys>, at: Moment) {
        *lock(&self.keys) = Some(Arc::clone(keys));
        for node in &self.by_name {
            let mut table = node.table();
            let stamp = self.stamp(at);
            if table.put_keys(keys, stamp) {
                node.changed.send_replace(());
            }
        }
    }

    /// How many nodes have pods or streams.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// No node has pods or streams.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The streams of a node, oldest first.
    pub fn streams(&self, node: &str) -> Vec<StreamStatus> {
        let Some(node) = self.by_name.get(node) else {
            return Vec::new();
        };
        let streams = lock(&node.streams);
        streams.values().map(|one| one.status.clone()).collect()
    }

    /// Forgets every node that has neither pods nor streams.
    pub fn sweep(&self) {
        self.by_name.retain(|_name, node| {
            Arc::strong_count(node) > 1
                || !node.table().is_empty()
                || !lock(&node.streams).is_empty()
        });
    }

    /// Ends the streams of an agent whose pod is gone: its token is worth nothing any more.
    pub fn agent_gone(&self, agent: &PodUid) {
        let streams = self.agents.remove(agent).map(|(_agent, streams)| streams);
        for stream in streams.into_iter().flatten() {
            self.end(&stream, StreamEnd::Identity);
        }
    }

    /// Ends the streams of agents whose pods are not known although they should be by now: they
    /// were gone before their agents came, which may show a token for a short while after.
    pub fn end_unknown_agents(&self, at: Moment, is_known: impl Fn(&PodUid) -> bool) {
        let unknown = self.agents.iter().filter(|agent| {
            let old = |stream: &AgentStream| at.since(stream.since) >= UNKNOWN_AGENT_MAX;
            agent.value().iter().any(old) && !is_known(agent.key())
        });
        let unknown: Vec<PodUid> = unknown.map(|agent| agent.key().clone()).collect();
        for agent in unknown {
            self.agent_gone(&agent);
        }
    }

    fn end(&self, stream: &AgentStream, reason: StreamEnd) {
        if let Some(node) = self.by_name.get(&stream.node)
            && let Some(following) = lock(&node.streams).remove(&stream.number)
        {
            // It may be ending by itself.
            let _told = following.ended.send(reason).is_ok();
        }
    }

    fn node(&self, name: &Arc<str>, at: Moment) -> Arc<Node> {
        if let Some(node) = self.by_name.get(name) {
            return Arc::clone(&node);
        }
        let node = self.by_name.entry(Arc::clone(name)).or_insert_with(|| {
            let mut table = NodeTable::new(self.stamp(at));
            if let Some(keys) = &*lock(&self.keys) {
                table.put_keys(keys, self.stamp(at));
            }
            Arc::new(Node {
                name: Arc::clone(name),
                table: Mutex::new(table),
                changed: watch::Sender::new(()),
                streams: Mutex::new(BTreeMap::new()),
            })
        });
        Arc::clone(&node)
    }

    fn forget_if_unused(&self, node: &str) {
        // Under the map's own lock, which `node` and `join` take as well: nobody can be handed a
        // node that is being forgotten, because its count is above the map's own one then.
        self.by_name.remove_if(node, |_name, node| {
            Arc::strong_count(node) == 1
                && node.table().is_empty()
                && lock(&node.streams).is_empty()
        });
    }

    /// A place for a stream of this node.
    fn join(self: &Arc<Self>, name: &Arc<str>, agent: Newcomer, at: Moment) -> Place {
        let node = self.node(name, at);
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        let (sender, ended) = oneshot::channel();
        let status = StreamStatus {
            agent_version: agent.version,
            sent: Revision {
                epoch: self.epoch,
                number: 0,
            },
            applied: None,
            report: None,
        };
        {
            let mut streams = lock(&node.streams);
            while streams.len() >= STREAMS_PER_NODE_MAX {
                streams.pop_first();
            }
            let following = Following {
                status,
                ended: sender,
            };
            streams.insert(number, following);
        }
        if let Some(pod) = &agent.pod {
            let stream = AgentStream {
                node: Arc::clone(name),
                number,
                since: at,
            };
            self.agents.entry(pod.clone()).or_default().push(stream);
        }
        Place {
            node,
            nodes: Arc::clone(self),
            number,
            agent: agent.pod,
            ended,
        }
    }
}

impl Node {
    fn table(&self) -> MutexGuard<'_, NodeTable> {
        lock(&self.table)
    }
}

impl Place {
    /// Notes how far the stream is.
    fn note(&self, change: impl FnOnce(&mut StreamStatus)) {
        if let Some(following) = lock(&self.node.streams).get_mut(&self.number) {
            change(&mut following.status);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.node.streams).remove(&self.number);
        if let Some(agent) = &self.agent {
            self.nodes.agents.remove_if_mut(agent, |_agent, streams| {
                streams.retain(|stream| stream.number != self.number);
                streams.is_empty()
            });
        }
        // The place's own reference is still counted here. Were someone else looking at the node at
        // this moment, the next sweep would forget it.
        let name = Arc::clone(&self.node.name);
        let nodes = Arc::clone(&self.nodes);
        nodes.by_name.remove_if(&name, |_name, node| {
            Arc::strong_count(node) <= 2
                && node.table().is_empty()
                && lock(&node.streams).is_empty()
        });
    }
}

/// A poisoned lock means that a task panicked while it held it. What it guards is replaced whole,
/// entry by entry, so that what is there is still usable; and the other nodes must be served.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::annotations::Annotations;
    use crate::nodes::PodSeen;
    use crate::snapshot::Shown;
    use kiam_wire::{PodState, UnixSeconds};

    fn pod(uid: &str) -> Shown {
        let seen = PodSeen {
            uid: PodUid::try_new(uid).unwrap(),
            namespace: "default".into(),
            name: uid.into(),
            service_account: "".into(),
            node: Some("a".into()),
            ips: Box::default(),
            host_network: false,
            is_static: false,
            terminating: false,
            created_at: UnixSeconds::new(0),
            annotations: Annotations::default(),
        };
        Shown::new(Arc::new(seen), vec![], false, PodState::NoRole)
    }

    #[test]
    fn a_node_without_pods_and_streams_is_forgotten() {
        let nodes = Arc::new(Nodes::new(1));
        let name: Arc<str> = "a".into();
        nodes.with(&name, Moment::ORIGIN, |table, stamp| {
            table.put_pod(pod("u"), None, stamp)
        });
        nodes.tell("a");
        assert_eq!(nodes.len(), 1);
        let place = nodes.join(&name, Newcomer::default(), Moment::ORIGIN);
        let uid = PodUid::try_new("u").unwrap();
        nodes.with(&name, Moment::ORIGIN, |table, stamp| {
            table.remove_pod(&uid, stamp)
        });
        nodes.tell("a");
        assert_eq!(nodes.len(), 1, "the stream keeps it");
        drop(place);
        assert!(nodes.is_empty());
    }

    #[test]
    fn a_node_made_again_never_repeats_a_revision() {
        let nodes = Arc::new(Nodes::new(1));
        let name: Arc<str> = "a".into();
        let first = nodes.with(&name, Moment::ORIGIN, |table, _stamp| table.number());
        nodes.tell("a");
        assert!(nodes.is_empty());
        let second = nodes.with(&name, Moment::ORIGIN, |table, _stamp| table.number());
        assert!(second > first);
    }

    #[test]
    fn the_oldest_of_too_many_streams_makes_room() {
        let nodes = Arc::new(Nodes::new(1));
        let name: Arc<str> = "a".into();
        let mut places: Vec<Place> = (0..=STREAMS_PER_NODE_MAX)
            .map(|n| nodes.join(&name, newcomer(&n.to_string(), None), Moment::ORIGIN))
            .collect();
        assert_eq!(nodes.streams("a").len(), STREAMS_PER_NODE_MAX);
        assert_eq!(
            places[0].ended.try_recv(),
            Err(oneshot::error::TryRecvError::Closed)
        );
        assert_eq!(nodes.streams("a")[0].agent_version, "1");
        assert_eq!(
            places[1].ended.try_recv(),
            Err(oneshot::error::TryRecvError::Empty)
        );
    }

    fn newcomer(version: &str, pod: Option<&str>) -> Newcomer {
        Newcomer {
            version: version.to_owned(),
            pod: pod.map(|uid| PodUid::try_new(uid).unwrap()),
        }
    }

    #[test]
    fn streams_end_with_their_agents_pod() {
        let nodes = Arc::new(Nodes::new(1));
        let name: Arc<str> = "a".into();
        let at = |minutes| Moment::new(Duration::from_mins(minutes));
        let join = |pod, minute| nodes.join(&name, newcomer("1", Some(pod)), at(minute));
        let (mut old, mut other, mut late) = (join("one", 0), join("two", 0), join("three", 9));
        nodes.agent_gone(&PodUid::try_new("one").unwrap());
        assert_eq!(old.ended.try_recv(), Ok(StreamEnd::Identity));
        let is_open =
            |place: &mut Place| place.ended.try_recv() == Err(oneshot::error::TryRecvError::Empty);
        assert!(is_open(&mut other));
        // Known or young, they go on.
        nodes.end_unknown_agents(at(10), |agent| agent.as_str() == "two");
        assert!(is_open(&mut other) && is_open(&mut late));
        nodes.end_unknown_agents(at(11), |agent| agent.as_str() == "two");
        assert_eq!(late.ended.try_recv(), Ok(StreamEnd::Identity));
        assert_eq!(nodes.streams("a").len(), 1);
        drop((old, other, late));
        assert!(nodes.is_empty() && nodes.agents.is_empty());
    }

    #[test]
    fn keys_reach_nodes_that_come_later() {
        let nodes = Nodes::new(1);
        let keys = Arc::new(VerificationKeys {
            issuer: "i".into(),
            keys: vec![],
        });
        nodes.put_keys(&keys, Moment::ORIGIN);
        let changed = nodes.with(&"a".into(), Moment::ORIGIN, |table, stamp| {
            table.put_keys(&keys, stamp)
        });
        assert!(!changed);
    }
}
