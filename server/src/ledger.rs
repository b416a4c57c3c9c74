//! Who holds which credentials, and until when.
//!
//! Pure: everything it knows arrives as an [`Event`], everything it wants leaves as an [`Effect`];
//! time comes with the event, dice from a seed. What one credential id goes through is drawn at
//! [`entry::State`]. It never has two calls for one id outstanding, however many pods and nodes
//! want it; it asks for the next credentials while the old ones have more than half of their life
//! left; and it takes credentials back before they end, whatever STS does meanwhile.
//!
//! Decisions worth knowing:
//! - Pods that come and go do not make calls: credentials outlive their last pod by a grace, and so
//!   does the memory of a refusal, or a crash-looping pod would ask STS at every start.
//! - After a restart agents tell what their pods are still served. An id whose every pod is served
//!   is fetched at a random moment in good time, so that what nobody holds comes first and a large
//!   cluster's restart is no stampede. And a pod that is served is not refused before that ends: a
//!   restart takes nothing away that the server before it had left alone.
//! - A role that STS refuses is asked about rarely, by itself ([`role`]), and last in the queue. It
//!   heals without anyone's help once its trust policy is right.

mod account;
mod backoff;
mod entry;
mod event;
mod role;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::{CredentialId, PodUid, UnixSeconds};

pub use account::{Account, Totals};
use entry::{Entry, Held, State};
pub use event::{Effect, Event, Standing};
use role::Role;

use crate::arn::RoleArn;
use crate::clock::{Moment, Now};
use crate::policy::RoleRequest;
use crate::sts::{IssueError, Issued, Retry};

/// How the ledger paces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// How long credentials are kept after their last pod has gone, so that a rolling restart
    /// finds them.
    pub grace: Duration,
    /// How many such are kept at most.
    pub orphans_max: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            grace: Duration::from_mins(5),
            orphans_max: 1_000,
        }
    }
}

/// Who holds what, until when.
#[derive(Debug)]
pub struct Ledger {
    pace: Pace,
    dice: fastrand::Rng,
    /// The truth. An entry without pods is an orphan.
    entries: HashMap<CredentialId, Entry>,
    /// Each pod's one request. Shared, because an id of 32 bytes for each pod adds up.
    pods: HashMap<PodUid, Arc<RoleRequest>>,
    /// Every role of an entry.
    roles: HashMap<RoleArn, Role>,
    /// Index of the entries' `due`.
    due: BTreeSet<(Moment, CredentialId)>,
    /// Index of the entries' `orphaned_at`.
    orphans: BTreeSet<(Moment, CredentialId)>,
    /// The last time told.
    last: Now,
}

/// The wall clock may jump between two events, and nothing but an event shows it.
const TICK_EVERY: Duration = Duration::from_secs(10);
/// A jump of less than this is rounding.
const JUMP_S: u64 = 2;
/// Over this the calls of a role whose circuit closes are spread.
const HEALED_WITHIN: Duration = Duration::from_secs(5);

impl Ledger {
    /// An empty ledger. `seed` throws the dice of every jitter.
    pub fn new(pace: Pace, seed: u64, now: Now) -> Self {
        Self {
            pace,
            dice: fastrand::Rng::with_seed(seed),
            entries: HashMap::new(),
            pods: HashMap::new(),
            roles: HashMap::new(),
            due: BTreeSet::new(),
            orphans: BTreeSet::new(),
            last: now,
        }
    }

    /// Takes in an event and appends what follows from it to `effects`.
    ///
    /// After [`Event::Granted`] the pod's state is [`Ledger::standing_of`] it; from then on the
    /// effects tell every change.
    pub fn on(&mut self, event: Event, now: Now, effects: &mut Vec<Effect>) {
        self.notice_jump(now, effects);
        match event {
            Event::Granted { pod, request } => self.admit(pod, request, now, effects),
            Event::Gone { pod } => self.dismiss(&pod, now, effects),
            Event::Waiting { pod } => {
                if let Some(id) = self.id_of(&pod) {
                    self.change(id, now, effects, |entry| {
                        entry.is_waited_for = entry.held().is_none();
                    });
                }
            }
            Event::Held {
                pod,
                id,
                expires_at,
            } => self.cover(&pod, id, expires_at, now, effects),
            Event::Answered { id, outcome } => match outcome {
                Ok(issued) => self.record(id, issued, now, effects),
                Err(error) => self.fail(id, error, now, effects),
            },
            Event::Tick => {}
        }
        self.run_due(now, effects);
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn wakes_at(&self) -> Moment {
        let tick = self.last.monotonic.after(TICK_EVERY);
        self.due.first().map_or(tick, |(due, _id)| tick.min(*due))
    }

    /// What pods with this id are to be told whose agents serve them nothing from before; `None`
    /// for an id that is not known.
    pub fn standing(&self, id: &CredentialId) -> Option<Standing> {
        self.entries.get(id).map(Entry::standing)
    }

    /// What this pod is to be told; `None` for a pod that is granted nothing.
    pub fn standing_of(&self, pod: &PodUid) -> Option<Standing> {
        let entry = self.entries.get(&self.id_of(pod)?)?;
        Some(entry.standing_of(pod))
    }

    /// Whether the pod's agent still serves it what it had before this server started.
    pub fn is_covered(&self, pod: &PodUid) -> bool {
        let entry = self.id_of(pod).and_then(|id| self.entries.get(&id));
        entry.is_some_and(|entry| entry.is_covered(pod))
    }

    /// The pods that are granted this id.
    pub fn pods(&self, id: &CredentialId) -> impl Iterator<Item = &PodUid> {
        self.entries
            .get(id)
            .into_iter()
            .flat_map(|entry| entry.pods.iter())
    }

    /// The id the pod is granted.
    pub fn id_of(&self, pod: &PodUid) -> Option<CredentialId> {
        self.pods.get(pod).map(|request| request.id())
    }

    fn admit(
        &mut self,
        pod: PodUid,
        request: Arc<RoleRequest>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let id = request.id();
        match self.pods.get(&pod) {
            Some(known) if known.id() == id => return,
            Some(_) => self.dismiss(&pod, now, effects),
            None => {}
        }
        if !self.entries.contains_key(&id) {
            let role = self.roles.entry(request.role().clone()).or_default();
            role.ids.insert(id);
            self.entries.insert(id, Entry::new(request, now.monotonic));
        }
        let orphans = &mut self.orphans;
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        self.pods.insert(pod.clone(), Arc::clone(&entry.request));
        entry.pods.insert(pod);
        if let Some(orphaned_at) = entry.orphaned_at.take() {
            orphans.remove(&(orphaned_at, id));
            // It was kept, but those who follow the effects were told nothing of it meanwhile.
            if let Some(held) = entry.held().filter(|held| !held.is_over(now)) {
                effects.push(Effect::Publish(Arc::clone(&held.credentials)));
            }
        }
        self.settle(id, now, effects);
    }

    fn dismiss(&mut self, pod: &PodUid, now: Now, effects: &mut Vec<Effect>) {
        let Some(id) = self.pods.remove(pod).map(|request| request.id()) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.remove(pod);
        if entry.pods.is_empty() {
            entry.cancel(now, effects);
            if let Some(role) = self.roles.get_mut(entry.request.role()) {
                entry.leave_turn(role, now);
            }
            entry.is_waited_for = false;
            if entry.held().is_none() && entry.failures == 0 {
                self.forget(id, effects);
                return;
            }
            entry.orphaned_at = Some(now.monotonic);
            self.orphans.insert((now.monotonic, id));
        }
        self.settle(id, now, effects);
        while self.orphans.len() > self.pace.orphans_max {
            let Some((_orphaned_at, oldest)) = self.orphans.first().copied() else {
                return;
            };
            self.forget(oldest, effects);
        }
    }

    fn cover(
        &mut self,
        pod: &PodUid,
        id: CredentialId,
        expires_at: UnixSeconds,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        if self.id_of(pod) != Some(id) || expires_at <= now.wall {
            return;
        }
        let dice = self.dice.f64();
        let Some(entry) = self
            .entries
            .get_mut(&id)
            .filter(|entry| entry.held().is_none())
        else {
            return;
        };
        entry.cover(pod, expires_at, effects);
        let is_first_call = matches!(entry.state, State::Fetching) && entry.failures == 0;
        if let (true, Some(end)) = (is_first_call, entry.cover_ends(now)) {
            let life = entry.request.session().duration;
            let call_at = entry::covered_call_at(end, life, now, dice);
            if call_at > now.monotonic {
                entry.cancel(now, effects);
                entry.state = State::Covered { call_at };
            }
        }
        self.settle(id, now, effects);
    }

    fn record(&mut self, id: CredentialId, issued: Issued, now: Now, effects: &mut Vec<Effect>) {
        // An id that was forgotten meanwhile: the answer is dropped, and its secrets wiped.
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let held = match Held::new(id, &entry.request, issued, now) {
            Ok(held) if !held.is_over(now) => held,
            Ok(_) => {
                let text = "the credentials have ended already; compare the clock of this machine";
                return self.fail(id, IssueError::Unreachable(text.to_owned()), now, effects);
            }
            Err(malformed) => {
                let error = IssueError::Unreachable(malformed.to_string());
                return self.fail(id, error, now, effects);
            }
        };
        // A call that was cancelled too late may be overtaken by the next one.
        let is_older = entry
            .held()
            .is_some_and(|known| known.ends_at(now) > held.ends_at(now));
        if !is_older {
            if entry.orphaned_at.is_none() {
                effects.push(Effect::Publish(Arc::clone(&held.credentials)));
            }
            let call_at = held.renewal_at(now, self.dice.f64());
            entry.granted(held, call_at);
        }
        let role = entry.request.role().clone();
        let mut healed = Vec::new();
        if let Some(role) = self.roles.get_mut(&role)
            && role.granted()
        {
            healed.extend(role.ids.iter().copied());
        }
        self.settle(id, now, effects);
        self.heal(&healed, now, effects);
    }

    /// The role grants again: those of its ids that it refused are asked about soon.
    fn heal(&mut self, ids: &[CredentialId], now: Now, effects: &mut Vec<Effect>) {
        for id in ids {
            let soon = now.monotonic.after(HEALED_WITHIN.mul_f64(self.dice.f64()));
            self.change(*id, now, effects, |entry| match &mut entry.state {
                State::BackingOff { call_at } => *call_at = (*call_at).min(soon),
                State::Holding { call_at, .. } if entry.failures > 0 => {
                    *call_at = (*call_at).min(soon);
                }
                State::Covered { .. }
                | State::Fetching
                | State::Holding { .. }
                | State::Renewing { .. } => {}
            });
        }
    }

    fn fail(&mut self, id: CredentialId, error: IssueError, now: Now, effects: &mut Vec<Effect>) {
        let Some(entry) = self
            .entries
            .get_mut(&id)
            .filter(|entry| entry.is_outstanding())
        else {
            return;
        };
        entry.failures = entry.failures.saturating_add(1);
        let retry = error.retry();
        let mut wait = backoff::delay(retry, entry.failures, self.dice.f64());
        if let Some(held) = entry.held() {
            // Several more tries before the end, whatever the backoff says.
            let left = held.ends_at(now).since(now.monotonic);
            wait = wait.min((left / 4).max(Duration::from_secs(1)));
        }
        let call_at = now.monotonic.after(wait);
        if retry == Retry::Rarely {
            if let Some(role) = self.roles.get_mut(entry.request.role()) {
                role.refused();
            }
            if entry.held().is_none() {
                entry.refuse(&error, effects);
            }
        }
        entry.error = Some(error);
        entry.failed(call_at);
        self.settle(id, now, effects);
    }

    fn change(
        &mut self,
        id: CredentialId,
        now: Now,
        effects: &mut Vec<Effect>,
        change: impl FnOnce(&mut Entry),
    ) {
        if let Some(entry) = self.entries.get_mut(&id) {
            change(entry);
            self.settle(id, now, effects);
        }
    }

    /// Does what is due for an entry, and files it under the time it is due next.
    fn settle(&mut self, id: CredentialId, now: Now, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.uncover(now, effects);
        entry.expire(now, effects);
        if entry.orphaned_at.is_none() {
            if let Some(role) = self.roles.get_mut(entry.request.role()) {
                entry.take_turn(role, now);
            }
            entry.ask(now, effects);
        }
        let due = entry.due_at(now, self.pace.grace);
        if entry.orphaned_at.is_some() && due.is_some_and(|due| due <= now.monotonic) {
            self.forget(id, effects);
            return;
        }
        if entry.due != due {
            if let Some(before) = std::mem::replace(&mut entry.due, due) {
                self.due.remove(&(before, id));
            }
            self.due.extend(due.map(|due| (due, id)));
        }
    }

    fn run_due(&mut self, now: Now, effects: &mut Vec<Effect>) {
        while let Some((due, id)) = self.due.first().copied() {
            if due > now.monotonic {
                return;
            }
            self.due.remove(&(due, id));
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.due = None;
            }
            self.settle(id, now, effects);
        }
    }

    fn forget(&mut self, id: CredentialId, effects: &mut Vec<Effect>) {
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        if entry.held().is_some() {
            effects.push(Effect::Withdraw(id));
        }
        if let Some(due) = entry.due {
            self.due.remove(&(due, id));
        }
        if let Some(orphaned_at) = entry.orphaned_at {
            self.orphans.remove(&(orphaned_at, id));
        }
        if let Some(role) = self.roles.get_mut(entry.request.role()) {
            role.ids.remove(&id);
            if role.ids.is_empty() {
                self.roles.remove(entry.request.role());
            }
        }
    }

    /// A wall clock that was set, or a machine that slept, moves every end: all is filed anew.
    fn notice_jump(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let monotonic_s = now.monotonic.since(self.last.monotonic).as_secs();
        let ahead_s = now.wall.since(self.last.wall).as_secs();
        let has_jumped = now.wall < self.last.wall || ahead_s.abs_diff(monotonic_s) >= JUMP_S;
        self.last = now;
        if has_jumped {
            let ids: Vec<_> = self.entries.keys().copied().collect();
            for id in ids {
                self.settle(id, now, effects);
            }
        }
    }
}

#[cfg(test)]
mod tests;
