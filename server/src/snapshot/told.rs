//! What one stream has passed on already.

use std::collections::HashMap;
use std::sync::Arc;

use kiam_wire::{CredentialId, Delta, Full, Pod, PodUid, Revision};

use super::{NodeTable, Stamp};
use crate::clock::Moment;

/// The stamps of everything a stream's agent was told, and the revision that makes.
#[derive(Debug)]
pub struct Told {
    revision: Revision,
    pods: HashMap<PodUid, u64>,
    credentials: HashMap<CredentialId, u64>,
    keys: u64,
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
            pods: table.pods().map(|pod| Pod::clone(pod)).collect(),
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
            pods: table
                .pods
                .iter()
                .map(|(uid, (_pod, stamp))| (uid.clone(), stamp.number))
                .collect(),
            credentials: table
                .credentials
                .iter()
                .filter(|(_id, held)| held.credentials.is_some())
                .map(|(id, held)| (*id, held.stamp.number))
                .collect(),
            keys: table.keys.as_ref().map_or(0, |(_keys, stamp)| stamp.number),
        }
    }

    /// What has changed since, and when the oldest of those changes was made. `None` when there is
    /// nothing to say: what changed and changed back is not worth a message.
    pub fn since(&mut self, table: &NodeTable) -> Option<(Delta, Moment)> {
        if table.number() == self.revision.number {
            return None;
        }
        // Removals carry no stamp any more: the last change stands for them.
        let mut oldest = table.last.at;
        let mut note = |told: Option<u64>, stamp: Stamp| {
            let new = told != Some(stamp.number);
            if new {
                oldest = oldest.min(stamp.at);
            }
            new
        };
        let mut pods = Vec::new();
        for (uid, (pod, stamp)) in &table.pods {
            if note(self.pods.get(uid).copied(), *stamp) {
                self.pods.insert(uid.clone(), stamp.number);
                pods.push(Pod::clone(pod));
            }
        }
        let mut credentials = Vec::new();
        for (id, held) in &table.credentials {
            if let Some(new) = &held.credentials
                && note(self.credentials.get(id).copied(), held.stamp)
            {
                self.credentials.insert(*id, held.stamp.number);
                credentials.push(Arc::clone(new));
            }
        }
        let mut keys = None;
        if let Some((new, stamp)) = &table.keys
            && note(Some(self.keys), *stamp)
        {
            self.keys = stamp.number;
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

    /// Drops what the table does not have any more, and says which pods that were. Credentials need
    /// no word: the agent drops those that none of its pods refers to.
    fn forget(&mut self, table: &NodeTable) -> Vec<PodUid> {
        let mut removed = Vec::new();
        // Everything in the table has been noted by now, so equal counts mean equal keys.
        if self.pods.len() > table.pods.len() {
            self.pods.retain(|uid, _number| {
                let there = table.pods.contains_key(uid);
                if !there {
                    removed.push(uid.clone());
                }
                there
            });
        }
        self.credentials.retain(|id, _number| {
            table
                .credentials
                .get(id)
                .is_some_and(|held| held.credentials.is_some())
        });
        removed
    }
}
