//! The control side's truth about the node, and the rules by which an update changes it.
//!
//! The rules are those of `follow.proto`: a Full replaces the pods but takes no unexpired credentials
//! away from a pod that is still to have them; a Delta that starts elsewhere is a [`Gap`] and changes
//! nothing; credentials nobody refers to are dropped at once. It is pure: time is an argument, and
//! what it decides leaves as a [`Snapshot`].

pub mod departed;
mod entry;
mod fence;
mod view;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use kiam_wire::keys::VerificationKeys;
use kiam_wire::{CredentialId, Credentials, Delta, Full, Pod, PodUid, Revision, Update};
use rustc_hash::{FxHashMap, FxHashSet};

use self::departed::{Departed, Word};
pub use self::view::PodView;
use super::index::Index;
use super::{Answers, Snapshot, Verifier};
use crate::clock::{Expiry, Now};

/// What a store that lacks or doubts something of what it was told is at: no server has said it, so none
/// takes this agent to be up to date, and everything is sent anew.
pub const UNSAID: Revision = Revision {
    epoch: 0,
    number: 0,
};

/// Which doors the snapshots are for: the second one needs an index of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doors {
    /// The metadata service alone: pods are found by address.
    Metadata,
    /// And the container credentials endpoint: pods are found by uid as well.
    Both,
}

/// What an update did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Pods that are new or were replaced.
    pub changed: usize,
    /// Pods that are gone.
    pub gone: usize,
    /// Addresses that two pods claim; the one named last has them.
    pub contested: usize,
}

/// A Delta that does not start where this agent is. Nothing was changed; ask for everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the delta starts elsewhere than at the revision held")]
pub struct Gap {
    /// Where the store is.
    pub holds: Option<Revision>,
    /// Where the delta starts.
    pub from: Revision,
}

/// Everything the node should be served, and what is held to serve it.
#[derive(Debug)]
pub struct Store {
    doors: Doors,
    revision: Option<Revision>,
    /// Something of what led to `revision` could not be read.
    is_incomplete: bool,
    pods: FxHashMap<PodUid, Pod>,
    /// Who owns an address; an index of `pods`, the last claim wins.
    owners: FxHashMap<IpAddr, Owner>,
    /// Pods that are not answered from an address, whoever says that it is theirs.
    departed: Departed,
    /// Addresses that may have changed hands unseen: nobody is answered from them until a server has
    /// spoken.
    doubted: FxHashSet<IpAddr>,
    /// Every credential id that a pod refers to, and nothing else.
    sessions: FxHashMap<CredentialId, Session>,
    /// Ids whose last referent went during the update under way; empty between updates.
    orphans: Vec<CredentialId>,
    keys: Option<(Arc<VerificationKeys>, Arc<Verifier>)>,
    /// What snapshots are cloned from: `owners` less `departed` and `doubted`, as entries.
    by_ip: Index<IpAddr>,
    /// As `pods`; empty for [`Doors::Metadata`].
    by_uid: Index<PodUid>,
}

#[derive(Debug)]
struct Owner {
    uid: PodUid,
    /// When the server gave this pod this address, on the monotonic clock; being named with it
    /// again changes nothing.
    since: Instant,
}

/// One credential id on this node.
#[derive(Debug, Default)]
struct Session {
    /// Pods that refer to it as granted or pending.
    referents: FxHashSet<PodUid>,
    held: Option<Held>,
    /// Credentials were held and ended, and none came after them.
    ended: bool,
}

#[derive(Debug, Clone)]
struct Held {
    credentials: Arc<Credentials>,
    answers: Arc<Answers>,
}

impl Store {
    /// Knows nothing.
    pub fn new(doors: Doors) -> Self {
        Self {
            doors,
            revision: None,
            is_incomplete: false,
            pods: FxHashMap::default(),
            owners: FxHashMap::default(),
            departed: Departed::default(),
            doubted: FxHashSet::default(),
            sessions: FxHashMap::default(),
            orphans: Vec::new(),
            keys: None,
            by_ip: Index::default(),
            by_uid: Index::default(),
        }
    }

    /// Applies an update; publish [`Store::snapshot`] afterwards.
    pub fn apply(&mut self, update: Update, now: Now) -> Result<Applied, Gap> {
        let applied = match update {
            Update::Full(full) => self.apply_full(full, now),
            Update::Delta(delta) => self.apply_delta(delta, now)?,
        };
        self.forget_departed(now);
        Ok(applied)
    }

    /// What the data plane should see. The entries are shared with earlier snapshots; the indexes
    /// shared too but for the parts that changed, which is the whole cost of a small delta.
    pub fn snapshot(&self, now: Now) -> Snapshot {
        Snapshot {
            by_ip: self.by_ip.clone(),
            by_uid: self.by_uid.clone(),
            keys: self.keys.as_ref().map(|(_, verifier)| Arc::clone(verifier)),
            revision: self.revision,
            published_at: now,
            credentials: self.sessions.len(),
        }
    }

    /// The state held, for Applied, and the only one a Delta may start from.
    pub const fn revision(&self) -> Option<Revision> {
        self.revision
    }

    /// The state held, for Hello; `None` where something of it is lacking, so that everything is sent anew.
    pub const fn named(&self) -> Option<Revision> {
        if self.is_incomplete {
            None
        } else {
            self.revision
        }
    }

    /// Something was left out of what was applied last. A Full of which all could be read makes up for it.
    pub const fn lacks_something(&mut self) {
        self.is_incomplete = true;
    }

    /// Answers these pods no longer, until a server says of them what can be read. To be followed by
    /// [`Store::apply`], which drops what nobody refers to any more. `false` when none was known.
    pub fn lose(&mut self, unreadable: &[PodUid]) -> bool {
        let lost = unreadable.iter().filter(|uid| self.take(uid).is_some());
        lost.count() > 0
    }

    fn apply_full(&mut self, full: Full, now: Now) -> Applied {
        let Full {
            revision,
            pods,
            credentials,
            keys,
        } = full;
        let before = std::mem::replace(self, Self::new(self.doors));
        // The server may be behind the one before it.
        self.departed = before.departed;
        let mut applied = Applied::default();
        for pod in pods {
            self.put(pod, now, &mut applied);
        }
        for (ip, earlier) in before.owners {
            if let Some(owner) = self.owners.get_mut(&ip)
                && owner.uid == earlier.uid
            {
                owner.since = earlier.since;
            }
        }
        // The same pod twice in one Full: its first state may have named other credentials.
        self.drop_orphans();
        for (id, earlier) in before.sessions.iter().filter(|(_, earlier)| earlier.ended) {
            if let Some(session) = self.sessions.get_mut(id) {
                session.ended = earlier.ended;
            }
        }
        let kept = before
            .sessions
            .into_values()
            .filter_map(|session| session.held);
        for held in kept.filter(|held| !held.answers.expiry().has_passed(now)) {
            self.hold(held);
        }
        for credentials in credentials {
            self.receive(credentials, now);
        }
        applied.gone = before
            .pods
            .keys()
            .filter(|uid| !self.pods.contains_key(*uid))
            .count();
        self.keys = None;
        self.set_keys(keys, before.keys);
        self.revision = Some(revision);
        let everyone: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in &everyone {
            self.render(uid, now);
        }
        applied
    }

    fn apply_delta(&mut self, delta: Delta, now: Now) -> Result<Applied, Gap> {
        let Delta {
            from,
            to,
            pods,
            removed_pods,
            credentials,
            keys,
        } = delta;
        if self.revision != Some(from) {
            return Err(Gap {
                holds: self.revision,
                from,
            });
        }
        let mut applied = Applied::default();
        let before = self.owners_before(&pods, &removed_pods);
        for uid in &removed_pods {
            if self.take(uid).is_some() {
                applied.gone += 1;
            }
        }
        let mut touched: Vec<PodUid> = Vec::with_capacity(pods.len());
        // What a server does not change it confirms.
        for ip in std::mem::take(&mut self.doubted) {
            touched.extend(self.owner(ip).cloned());
        }
        for pod in pods {
            touched.push(pod.uid.clone());
            self.put(pod, now, &mut applied);
        }
        self.note_departures(before, now);
        for credentials in credentials {
            let id = credentials.id();
            if self.receive(credentials, now)
                && let Some(session) = self.sessions.get(&id)
            {
                touched.extend(session.referents.iter().cloned());
            }
        }
        // Only now: credentials that moved from one pod to another within this delta stay.
        self.drop_orphans();
        if keys.is_some() {
            let before = self.keys.take();
            self.set_keys(keys, before);
        }
        for uid in &touched {
            self.render(uid, now);
        }
        self.revision = Some(to);
        Ok(applied)
    }

    /// Who has the addresses that a Delta may give to others or leave to nobody.
    fn owners_before(&self, pods: &[Pod], removed: &[PodUid]) -> Vec<(IpAddr, PodUid)> {
        let removed = removed.iter().filter_map(|uid| self.pods.get(uid));
        let ips = pods.iter().chain(removed).flat_map(|pod| &pod.ips);
        ips.filter_map(|ip| Some((*ip, self.owner(*ip)?.clone())))
            .collect()
    }

    /// A Delta follows on what was before it: who had an address then, and is gone now or has left it to
    /// another, does not have it again.
    fn note_departures(&mut self, before: Vec<(IpAddr, PodUid)>, now: Now) {
        for (ip, uid) in before {
            let is_anothers = self.owner(ip).is_some_and(|owner| *owner != uid);
            if is_anothers || !self.pods.contains_key(&uid) {
                self.departed.note(ip, &uid, Word::Server, now.monotonic);
            }
        }
    }

    /// Adds a pod, or replaces it with its new state.
    fn put(&mut self, pod: Pod, now: Now, applied: &mut Applied) {
        let since: Vec<Instant> = pod
            .ips
            .iter()
            .map(|ip| match self.owners.get(ip) {
                Some(owner) if owner.uid == pod.uid => owner.since,
                Some(_) | None => now.monotonic,
            })
            .collect();
        self.take(&pod.uid);
        applied.changed += 1;
        for (ip, since) in pod.ips.iter().zip(since) {
            let uid = pod.uid.clone();
            let previous = self.owners.insert(*ip, Owner { uid, since });
            if previous.is_some_and(|owner| owner.uid != pod.uid) {
                applied.contested += 1;
                self.by_ip.remove(ip);
            }
        }
        if let Some(id) = pod.state.credential_id() {
            let session = self.sessions.entry(id).or_default();
            session.referents.insert(pod.uid.clone());
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    /// Removes a pod from everywhere. Its credentials stay until the update is done.
    fn take(&mut self, uid: &PodUid) -> Option<Pod> {
        let pod = self.pods.remove(uid)?;
        self.by_uid.remove(uid);
        for ip in &pod.ips {
            if self.owner(*ip) == Some(uid) {
                self.owners.remove(ip);
                self.by_ip.remove(ip);
            }
        }
        if let Some(id) = pod.state.credential_id()
            && let Some(session) = self.sessions.get_mut(&id)
        {
            session.referents.remove(uid);
            if session.referents.is_empty() {
                self.orphans.push(id);
            }
        }
        Some(pod)
    }

    fn owner(&self, ip: IpAddr) -> Option<&PodUid> {
        self.owners.get(&ip).map(|owner| &owner.uid)
    }

    fn drop_orphans(&mut self) {
        for id in std::mem::take(&mut self.orphans) {
            if self
                .sessions
                .get(&id)
                .is_some_and(|session| session.referents.is_empty())
            {
                self.sessions.remove(&id);
            }
        }
    }

    /// Takes credentials from the server; `true` when they are news to a pod.
    fn receive(&mut self, credentials: Arc<Credentials>, now: Now) -> bool {
        let Some(session) = self.sessions.get(&credentials.id()) else {
            return false;
        };
        let known = session.held.as_ref();
        if known.is_some_and(|known| known.credentials.expires_at() >= credentials.expires_at()) {
            return false;
        }
        let answers = Arc::new(Answers::new(&credentials, now));
        self.hold(Held {
            credentials,
            answers,
        })
    }

    /// Keeps the longer-lived of two credentials of one id, and none that no pod refers to.
    fn hold(&mut self, held: Held) -> bool {
        let Some(session) = self.sessions.get_mut(&held.credentials.id()) else {
            return false;
        };
        let better = session
            .held
            .as_ref()
            .is_none_or(|known| known.credentials.expires_at() < held.credentials.expires_at());
        if better {
            session.held = Some(held);
            session.ended = false;
        }
        better
    }

    /// The prepared form is kept when the keys are the ones held before: every token in the
    /// workers' caches hangs on it.
    fn set_keys(
        &mut self,
        keys: Option<Arc<VerificationKeys>>,
        before: Option<(Arc<VerificationKeys>, Arc<Verifier>)>,
    ) {
        self.keys = keys.map(|keys| match before {
            Some((known, verifier)) if known == keys => (known, verifier),
            Some(_) | None => {
                let verifier = Arc::new(Verifier::new(&keys));
                (keys, verifier)
            }
        });
    }

    /// Brings the indexes in line with what is known about one pod.
    fn render(&mut self, uid: &PodUid, now: Now) {
        let Some(pod) = self.pods.get(uid) else {
            return;
        };
        let held = pod
            .state
            .credential_id()
            .and_then(|id| self.sessions.get(&id))
            .and_then(|session| session.held.as_ref())
            .filter(|held| !held.answers.expiry().has_passed(now));
        let entry = Arc::new(entry::of(pod, held.map(|held| &held.answers)));
        for ip in &pod.ips {
            let is_shut = self.departed.is_shut(*ip, uid) || self.doubted.contains(ip);
            if self.owner(*ip) == Some(uid) && !is_shut {
                self.by_ip.insert(*ip, Arc::clone(&entry));
            }
        }
        match self.doors {
            Doors::Metadata => {}
            Doors::Both => {
                self.by_uid.insert(uid.clone(), entry);
            }
        }
    }

    /// Drops credentials that have ended, and with them their secrets; their pods wait for new ones.
    /// Returns how many there were: publish afterwards, if any.
    ///
    /// Those that have ended by the wall clock alone stay, and are not served: the clock may have
    /// been set wrong, and when it is set right nobody would send them again before their renewal.
    pub fn expire(&mut self, now: Now) -> usize {
        let mut ended = 0;
        let mut touched: Vec<PodUid> = Vec::new();
        for session in self.sessions.values_mut() {
            let over = |held: &mut Held| held.answers.expiry().is_spent(now);
            if session.held.take_if(over).is_some() {
                ended += 1;
                session.ended = true;
                touched.extend(session.referents.iter().cloned());
            }
        }
        for uid in &touched {
            self.render(uid, now);
        }
        ended
    }

    /// When the first of the credentials held expires.
    pub fn soonest_expiry(&self) -> Option<Expiry> {
        self.sessions
            .values()
            .filter_map(|session| session.held.as_ref())
            .map(|held| held.answers.expiry())
            .min_by_key(|expiry| expiry.wall())
    }
}
