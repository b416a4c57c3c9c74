//! What one stream has passed on already.

use std::collections::BTreeSet;
use std::sync::Arc;

use kiam_wire::{Delta, Full, PodUid, Revision};

use super::{NodeTable, Shown, Stamp};
use crate::clock::Moment;

/// How far a stream's agent has been told, and the revision that makes.
///
/// A node's stamps only grow, so one number says which entries the agent has been told as they are.
/// What is gone has no stamp: for that the uids are kept, and nothing else for each pod.
#[derive(Debug)]
pub struct Told {
    revision: Revision,
    /// Every change up to this one has been looked at. Ahead of the revision when the changes since
    /// came to nothing.
    looked: u64,
    pods: BTreeSet<PodUid>,
}

impl Told {
    /// The revision the agent holds once it has applied what it was told.
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// Everything: the first message of a stream whose agent holds something else, or nothing.
    pub fn full(table: &NodeTable, epoch: u64) -> (Self, Full) {
        let told = Self::current(table, epoch);
        let full = Full {
            revision: told.revision,
            pods: table.pods().map(Shown::to_wire).collect(),
            credentials: table
                .credentials
                .values()
                .filter_map(|held| held.credentials.clone())
                .collect(),
            keys: table.keys.as_ref().map(|(keys, _stamp)| Arc::clone(keys)),
        };
        (told, full)
    }

    /// Nothing: the first message of a stream whose agent holds the current revision already.
    pub fn unchanged(table: &NodeTable, epoch: u64) -> (Self, Delta) {
        let told = Self::current(table, epoch);
        let revision = told.revision;
        let delta = Delta {
            from: revision,
            to: revision,
            pods: Vec::new(),
            removed_pods: Vec::new(),
            credentials: Vec::new(),
            keys: None,
        };
        (told, delta)
    }

    fn current(table: &NodeTable, epoch: u64) -> Self {
        Self {
            revision: Revision {
                epoch,
                number: table.number(),
            },
            looked: table.number(),
            pods: table.pods.keys().cloned().collect(),
        }
    }

    /// What has changed since, and when the oldest of those changes was made. `None` when there is
    /// nothing to say: what came and went unsaid is not worth a message.
    pub fn since(&mut self, table: &NodeTable) -> Option<(Delta, Moment)> {
        if table.number() == self.looked {
            return None;
        }
        let looked = std::mem::replace(&mut self.looked, table.number());
        // Removals carry no stamp any more: the last change stands for them.
        let mut oldest = table.last.at;
        let mut note = |stamp: Stamp| {
            let new = stamp.number > looked;
            if new {
                oldest = oldest.min(stamp.at);
            }
            new
        };
        let mut pods = Vec::new();
        for row in table.pods.values() {
            if note(row.stamp) {
                self.pods.insert(row.shown.uid().clone());
                pods.push(row.shown.to_wire());
            }
        }
        let mut credentials = Vec::new();
        for held in table.credentials.values() {
            if let Some(new) = &held.credentials
                && note(held.stamp)
            {
                credentials.push(Arc::clone(new));
            }
        }
        let mut keys = None;
        if let Some((new, stamp)) = &table.keys
            && note(*stamp)
        {
            keys = Some(Arc::clone(new));
        }
        let removed_pods = self.forget(table);
        let nothing =
            pods.is_empty() && removed_pods.is_empty() && credentials.is_empty() && keys.is_none();
        if nothing {
            return None;
        }
        let from = self.revision;
        self.revision.number = table.number();
        let delta = Delta {
            from,
            to: self.revision,
            pods,
            removed_pods,
            credentials,
            keys,
        };
        Some((delta, oldest))
    }

    /// Drops the pods that the table does not have any more, and says which those were. Credentials
    /// need no word: the agent drops those that none of its pods refers to.
    fn forget(&mut self, table: &NodeTable) -> Vec<PodUid> {
        let mut removed = Vec::new();
        // Every pod in the table has been noted by now, so equal counts mean equal keys.
        if self.pods.len() > table.pods.len() {
            self.pods.retain(|uid| {
                let there = table.pods.contains_key(uid);
                if !there {
                    removed.push(uid.clone());
                }
                there
            });
        }
        removed
    }
}
