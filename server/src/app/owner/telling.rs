//! What a batch changes on the nodes, gathered and then told to each node at once.
//!
//! All changes of one node are made under one lock of its table, with what goes before what comes.
//! A stream that looks at any moment sees the node before the batch or after it: an address that
//! moves from one pod to another is never shown by both, and no pod is shown as granted without its
//! credentials.

use std::collections::HashSet;
use std::sync::Arc;

use kiam_wire::{CredentialId, Credentials, PodState, PodUid, Refused};
use tracing::debug;

use super::Owner;
use super::decided::Verdict;
use crate::clock::Now;
use crate::ledger::Standing;
use crate::metrics::PodWord;
use crate::snapshot::{NodeTable, Shown, Stamp};

/// What one node is to be told.
#[derive(Debug, Default)]
pub(super) struct Changes {
    withdrawn: HashSet<CredentialId>,
    removed: HashSet<PodUid>,
    /// As they stand when they are told.
    put: HashSet<PodUid>,
}

impl Changes {
    /// These credentials must not be served any more.
    pub(super) fn withdraw(&mut self, id: CredentialId) {
        self.withdrawn.insert(id);
    }

    /// This pod is not on the node any more.
    pub(super) fn remove(&mut self, uid: PodUid) {
        self.put.remove(&uid);
        self.removed.insert(uid);
    }

    fn put(&mut self, uid: PodUid) {
        // One that left and came back is overwritten.
        self.removed.remove(&uid);
        self.put.insert(uid);
    }
}

/// A pod as its node is to be told of it.
struct Row {
    pod: Shown,
    /// Those it is granted.
    credentials: Option<Arc<Credentials>>,
}

impl Owner {
    /// Has the pod's node told of it, as it stands at the end of this batch.
    pub(super) fn publish(&mut self, uid: &PodUid) {
        if let Some(decided) = self.decided.get(uid) {
            let node = Arc::clone(decided.node());
            self.untold.entry(node).or_default().put(uid.clone());
        }
    }

    /// Changes the nodes' tables and wakes their streams.
    pub(super) fn tell_nodes(&mut self, now: Now) {
        for (node, changes) in std::mem::take(&mut self.untold) {
            let rows: Vec<Row> = changes.put.iter().filter_map(|uid| self.row(uid)).collect();
            for row in &rows {
                self.count(&node, &row.pod);
            }
            let changed = self.nodes.with(&node, now.monotonic, |table, stamp| {
                apply(table, &changes, rows, stamp)
            });
            if changed {
                self.nodes.tell(&node);
            }
        }
    }

    fn row(&self, uid: &PodUid) -> Option<Row> {
        let (pod, decided) = (self.cluster.get(uid)?, self.decided.get(uid)?);
        let (state, credentials) = match &decided.verdict {
            Verdict::Grant(request) => match self.ledger.standing_of(uid) {
                Some(Standing::Ready(ready)) => (PodState::Granted(ready.id()), Some(ready)),
                Some(Standing::Refused(refused)) => (PodState::Refused(refused), None),
                Some(Standing::Pending) | None => (PodState::Pending(request.id()), None),
            },
            Verdict::Refuse(refused) => (PodState::Refused(Refused::clone(refused)), None),
            Verdict::NoRole => (PodState::NoRole, None),
        };
        let owned = self.cluster.owned_ips(pod);
        Some(Row {
            pod: Shown::new(Arc::clone(pod), owned, decided.imds_v2_required, state),
            credentials,
        })
    }

    fn count(&mut self, node: &str, pod: &Shown) {
        let word = PodWord::of(pod.state());
        let Some(decided) = self.decided.get_mut(pod.uid()) else {
            return;
        };
        let before = decided.word.replace(word);
        self.metrics.decisions.moved(before, Some(word));
        if before != Some(word) {
            debug!(node, pod = pod.uid().as_str(), state = word.as_str(), "pod");
        }
    }
}

/// Makes a batch's changes; false when there was nothing to change.
fn apply(table: &mut NodeTable, changes: &Changes, rows: Vec<Row>, stamp: Stamp) -> bool {
    for id in &changes.withdrawn {
        table.withdraw(id);
    }
    let mut changed = false;
    for uid in &changes.removed {
        changed |= table.remove_pod(uid, stamp);
    }
    for Row { pod, credentials } in rows {
        changed |= table.put_pod(pod, credentials.as_ref(), stamp);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::super::testing::owner;
    use super::*;
    use crate::annotations::Annotations;
    use crate::app::Question;
    use crate::clock::Moment;
    use crate::nodes::{ClusterEvent, Kind, PodSeen, Touched};
    use crate::snapshot::Told;
    use kiam_wire::UnixSeconds;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn pod(name: &str, stops: bool) -> ClusterEvent {
        ClusterEvent::Pod(PodSeen {
            uid: PodUid::try_new(name).unwrap(),
            namespace: "team".into(),
            name: name.into(),
            service_account: "web".into(),
            node: Some("a".into()),
            ips: ["10.0.0.1".parse().unwrap()].into(),
            host_network: false,
            is_static: false,
            terminating: stops,
            created_at: UnixSeconds::new(1),
            annotations: Annotations::default(),
        })
    }

    /// Takes all of it in as one batch.
    fn batch(owner: &mut Owner, events: Vec<ClusterEvent>) {
        let mut touched = Touched::default();
        for event in events {
            owner.hear((Moment::ORIGIN, event), &mut touched);
        }
        owner.settle(touched);
    }

    fn listed(owner: &mut Owner) {
        let namespace = ClusterEvent::Namespace {
            name: "team".into(),
            annotations: Annotations::default(),
        };
        let mut events = vec![ClusterEvent::Listing(Kind::Namespaces), namespace];
        events.push(ClusterEvent::Listed(Kind::Namespaces));
        events.push(ClusterEvent::Listing(Kind::Pods));
        events.extend([pod("one", true), pod("two", false)]);
        events.push(ClusterEvent::Listed(Kind::Pods));
        batch(owner, events);
    }

    #[tokio::test]
    async fn the_award_of_an_address_comes_with_its_removal() {
        let mut owner = owner();
        listed(&mut owner);
        let nodes = Arc::clone(&owner.nodes);
        let told = nodes.look("a", |table| Told::full(table, 1).0);
        let mut told = told.unwrap();
        let gone = ClusterEvent::PodGone(PodUid::try_new("two").unwrap());
        batch(&mut owner, vec![gone]);
        let delta = nodes.look("a", |table| told.since(table)).unwrap();
        let (delta, _at) = delta.unwrap();
        assert_eq!(delta.removed_pods, [PodUid::try_new("two").unwrap()]);
        let pods: Vec<_> = delta
            .pods
            .iter()
            .map(|pod| (&*pod.name, pod.ips.len()))
            .collect();
        assert_eq!(pods, [("one", 1)]);
    }

    #[tokio::test]
    async fn an_address_conflict_is_counted_explained_and_over_when_one_lets_go() {
        let mut owner = owner();
        let metrics = owner.metrics.watch.clone();
        listed(&mut owner);
        let nodes = Arc::clone(&owner.nodes);
        let shown = || nodes.look("a", |table| table.pods().map(|pod| pod.ips().len()).sum());
        batch(&mut owner, vec![pod("one", false)]);
        assert_eq!((metrics.contested_now(), shown()), (1, Some(0)));
        let (reply, facts) = tokio::sync::oneshot::channel();
        owner.answer(Question::Why {
            namespace: "team".into(),
            name: "two".into(),
            reply,
        });
        let contested = facts.await.unwrap().known.unwrap().contested;
        let ip = "10.0.0.1".parse().unwrap();
        assert_eq!(contested, [(ip, vec!["team/one".to_owned()])]);
        batch(&mut owner, vec![pod("one", true)]);
        assert_eq!((metrics.contested_now(), shown()), (0, Some(1)));
    }

    #[tokio::test]
    async fn no_look_at_a_node_shows_an_address_twice() {
        let mut owner = owner();
        listed(&mut owner);
        let nodes = Arc::clone(&owner.nodes);
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let looking = std::thread::spawn(move || {
            let (mut looks, mut wrong) = (0_u64, 0_u64);
            while !is_done.load(Ordering::Relaxed) {
                let ips = nodes.look("a", |table| {
                    table.pods().map(|pod| pod.ips().len()).sum::<usize>()
                });
                looks += 1;
                wrong += u64::from(ips != Some(1));
            }
            (looks, wrong)
        });
        // The address goes back and forth; in each batch one pod lets go and the other has it.
        for round in 0..2_000 {
            let even = round % 2 == 0;
            batch(&mut owner, vec![pod("one", !even), pod("two", even)]);
        }
        done.store(true, Ordering::Relaxed);
        let (looks, wrong) = looking.join().unwrap();
        assert!(looks > 0);
        assert_eq!(wrong, 0, "of {looks} looks");
    }
}
