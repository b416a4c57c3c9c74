//! What one node should be serving, and what a stream has to say to get its agent there.
//!
//! Pure. A table holds the newest state of each pod and credential of a node, each stamped with the
//! number of the change that made it so. A stream keeps, in [`Told`], the last change it has looked
//! at and which pods its agent knows; what it says next is the difference. So there is no queue
//! anywhere: however far an agent falls behind, what is kept for it is the uids of its pods.
//!
//! The maps are ordered ones because a cluster has thousands of small tables: a hash table of
//! thirty pods has room for twice as many.

mod shown;
mod told;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use kiam_wire::keys::VerificationKeys;
use kiam_wire::{CredentialId, Credentials, PodUid};

pub use shown::Shown;
pub use told::Told;

use crate::clock::Moment;

/// Which change made something what it is, and when. Numbers are drawn from one counter for all
/// nodes, so that a table that is dropped and made again never repeats a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Greater than every earlier change's.
    pub number: u64,
    /// When the change was made.
    pub at: Moment,
}

/// What one node should be serving.
#[derive(Debug)]
pub struct NodeTable {
    /// The last change: no entry's stamp is greater.
    last: Stamp,
    /// Boxed, or the half-empty leaves of the tree would be large.
    pods: BTreeMap<PodUid, Box<Row>>,
    credentials: BTreeMap<CredentialId, Held>,
    keys: Option<(Arc<VerificationKeys>, Stamp)>,
}

#[derive(Debug)]
struct Row {
    shown: Shown,
    stamp: Stamp,
}

#[derive(Debug)]
struct Held {
    /// `None` until they are there.
    credentials: Option<Arc<Credentials>>,
    stamp: Stamp,
    /// Pods of this node that are granted or promised them; never zero.
    pods: u32,
}

impl NodeTable {
    /// A node without pods, as of `stamp`.
    pub fn new(stamp: Stamp) -> Self {
        Self {
            last: stamp,
            pods: BTreeMap::new(),
            credentials: BTreeMap::new(),
            keys: None,
        }
    }

    /// The number of the last change.
    pub const fn number(&self) -> u64 {
        self.last.number
    }

    /// How many pods the node has.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// The node has no pods.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// What the node is told of a pod.
    pub fn pod(&self, uid: &PodUid) -> Option<&Shown> {
        self.pods.get(uid).map(|row| &row.shown)
    }

    /// The node's credentials with this id, once they are there.
    pub fn credentials(&self, id: &CredentialId) -> Option<&Arc<Credentials>> {
        self.credentials.get(id)?.credentials.as_ref()
    }

    /// The ids that pods of this node are granted or promised.
    pub fn wanted(&self) -> impl Iterator<Item = &CredentialId> {
        self.credentials.keys()
    }

    /// The pods of the node, by uid.
    pub fn pods(&self) -> impl Iterator<Item = &Shown> {
        self.pods.values().map(|row| &row.shown)
    }

    /// The state of a pod. A granted pod's credentials must be given, unless the node has them.
    /// False when nothing changed.
    pub fn put_pod(
        &mut self,
        shown: Shown,
        credentials: Option<&Arc<Credentials>>,
        stamp: Stamp,
    ) -> bool {
        let id = shown.state().credential_id();
        let mut changed = true;
        let mut before = None;
        match self.pods.entry(shown.uid().clone()) {
            Entry::Occupied(mut known) => {
                let row = known.get_mut();
                before = row.shown.state().credential_id();
                changed = !row.shown.says_the_same(&shown);
                if changed {
                    row.stamp = stamp;
                }
                // Even if not: what it shares is what the watch has said last.
                row.shown = shown;
            }
            Entry::Vacant(new) => {
                new.insert(Box::new(Row { shown, stamp }));
            }
        }
        if before != id {
            if let Some(id) = id {
                let held = self.credentials.entry(id).or_insert(Held {
                    credentials: None,
                    stamp,
                    pods: 0,
                });
                held.pods += 1;
            }
            if let Some(before) = before {
                self.release(&before);
            }
        }
        if let Some(credentials) = credentials {
            changed |= self.put_credentials(credentials, stamp);
        }
        if changed {
            self.last = stamp;
        }
        changed
    }

    /// New credentials, if a pod of this node wants them. False when nothing changed.
    pub fn put_credentials(&mut self, credentials: &Arc<Credentials>, stamp: Stamp) -> bool {
        let Some(held) = self.credentials.get_mut(&credentials.id()) else {
            return false;
        };
        if held.credentials.as_ref() == Some(credentials) {
            return false;
        }
        held.credentials = Some(Arc::clone(credentials));
        held.stamp = stamp;
        self.last = stamp;
        true
    }

    /// Forgets credentials that must not be served any more; its pods are told so one by one.
    pub fn withdraw(&mut self, id: &CredentialId) {
        if let Some(held) = self.credentials.get_mut(id) {
            held.credentials = None;
        }
    }

    /// A pod that is not on the node any more. False when it was not.
    pub fn remove_pod(&mut self, uid: &PodUid, stamp: Stamp) -> bool {
        let Some(row) = self.pods.remove(uid) else {
            return false;
        };
        if let Some(id) = row.shown.state().credential_id() {
            self.release(&id);
        }
        self.last = stamp;
        true
    }

    /// The cluster's token keys. False when nothing changed.
    pub fn put_keys(&mut self, keys: &Arc<VerificationKeys>, stamp: Stamp) -> bool {
        if self
            .keys
            .as_ref()
            .is_some_and(|(known, _stamp)| known == keys)
        {
            return false;
        }
        self.keys = Some((Arc::clone(keys), stamp));
        self.last = stamp;
        true
    }

    fn release(&mut self, id: &CredentialId) {
        if let Entry::Occupied(mut held) = self.credentials.entry(*id) {
            held.get_mut().pods = held.get().pods.saturating_sub(1);
            if held.get().pods == 0 {
                held.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests;
