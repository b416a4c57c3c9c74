//! One credential id: who needs it, what is in hand, and what is on the way.
//!
//! Pure. An entry knows nothing of the others; what they share (the role's circuit, the index of
//! due times) is the ledger's.

use std::collections::{HashMap, HashSet};
use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::{CredentialId, Credentials, Malformed, PodUid, Refusal, Refused, UnixSeconds};

use super::role::Role;
use super::{Effect, Standing};
use crate::clock::{Moment, Now};
use crate::policy::RoleRequest;
use crate::sts::schedule::Urgency;
use crate::sts::{IssueError, Issued, Retry};

/// Renewal begins when this part of the life is over, a throw of the dice apart: never so late
/// that less than half is left when the answer comes. For a session of one hour that is after 24
/// to 29 minutes, so that an answer has more than half an hour left; a session of 15 minutes is
/// renewed after 6 to 7, and its answers have 7.5 left at least.
const RENEWED_FROM: f64 = 0.40;
const RENEWED_UNTIL: f64 = 0.48;
const WITHDRAWN_BEFORE_END: Duration = Duration::from_secs(5);

/// What is in hand and what is on the way.
///
/// ```text
///              held by agents
///   ┌──────────┐◀─────────── ┌──────────┐  granted   ┌─────────┐  due    ┌──────────┐
///   │ Covered  │             │ Fetching │ ─────────▶ │ Holding │ ──────▶ │ Renewing │
///   └──────────┘ ──────────▶ └──────────┘            └─────────┘ ◀────── └──────────┘
///            due or uncovered  │      ▲                   │     granted or     │
///                        error ▼      │ due               │     error          │ expired
///                        ┌────────────┐                   │                    ▼
///                        │ BackingOff │ ◀─────────────────┘                 Fetching
///                        └────────────┘      expired
/// ```
///
/// `Fetching` and `Renewing` are the states with an outstanding call, so that there is never more
/// than one. When the last pod goes they fall back to `BackingOff` and `Holding`, and the call is
/// cancelled.
#[derive(Debug)]
pub(super) enum State {
    /// Nothing in hand, but every pod's agent still serves it what an earlier server gave it.
    Covered {
        /// When to ask.
        call_at: Moment,
    },
    /// Nothing in hand; waiting out an error, or the role's turn.
    BackingOff {
        /// When to ask.
        call_at: Moment,
    },
    /// Nothing in hand; asked.
    Fetching,
    /// Valid credentials in hand.
    Holding {
        /// They.
        held: Held,
        /// When to ask for the next.
        call_at: Moment,
    },
    /// Valid credentials in hand; asked for the next.
    Renewing {
        /// They.
        held: Held,
    },
}

/// Credentials, and both of their ends.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) credentials: Arc<Credentials>,
    /// Counted on the monotonic clock from when the call began, so that a wrong wall clock cannot
    /// stretch it.
    ends_at: Moment,
    life: Duration,
}

impl Held {
    pub(super) fn new(
        id: CredentialId,
        request: &RoleRequest,
        issued: Issued,
        now: Now,
    ) -> Result<Self, Malformed> {
        let life_by_wall = issued.expires_at.since(now.wall);
        let ends_at = issued.asked_at.after(issued.duration);
        let life = life_by_wall.min(ends_at.since(now.monotonic));
        let credentials = Credentials::try_new(kiam_wire::credentials::Unchecked {
            id,
            role_name: request.role().name().to_owned(),
            role_arn: request.role().as_str().to_owned(),
            access_key_id: issued.access_key_id,
            secret_access_key: issued.secret_access_key,
            session_token: issued.session_token,
            issued_at: now.wall,
            expires_at: issued.expires_at,
        })?;
        Ok(Self {
            credentials: Arc::new(credentials),
            ends_at,
            life,
        })
    }

    /// The earlier of the two ends, as far as can be told now.
    pub(super) fn ends_at(&self, now: Now) -> Moment {
        let by_wall = self.credentials.expires_at().since(now.wall);
        self.ends_at.min(now.monotonic.after(by_wall))
    }

    /// When they are taken back. A little before their end: who is served them still has to send
    /// a request, and the wall clock is read in whole seconds.
    fn withdrawn_at(&self, now: Now) -> Moment {
        self.ends_at(now).before(WITHDRAWN_BEFORE_END)
    }

    /// Nobody can use them any more.
    pub(super) fn is_over(&self, now: Now) -> bool {
        self.withdrawn_at(now) <= now.monotonic
    }

    /// When to ask for the next, fresh from STS.
    pub(super) fn renewal_at(&self, now: Now, dice: f64) -> Moment {
        let part = RENEWED_FROM + (RENEWED_UNTIL - RENEWED_FROM) * dice;
        now.monotonic.after(self.life.mul_f64(part))
    }

    /// When to have asked for the next at the latest.
    fn renewal_at_latest(&self, now: Now) -> Moment {
        self.ends_at(now)
            .before(self.life.mul_f64(1.0 - RENEWED_UNTIL))
    }
}

/// One credential id.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) request: Arc<RoleRequest>,
    /// Who is granted it.
    pub(super) pods: HashSet<PodUid>,
    /// How long the agents of some of them still serve what they had before this server started.
    /// A role may have 100,000 pods, and almost always this is empty.
    covers: HashMap<PodUid, UnixSeconds>,
    /// None of `covers` ends before this, so that they need not be looked through until then.
    covers_last_until: Option<UnixSeconds>,
    /// A request of one of its pods is parked.
    pub(super) is_waited_for: bool,
    pub(super) state: State,
    /// Errors in a row.
    pub(super) failures: u32,
    /// The last answer, if it was an error.
    pub(super) error: Option<IssueError>,
    /// What its pods were told last, when nothing is in hand and STS refuses.
    pub(super) refusal: Option<Refused>,
    /// Since when it has no pods.
    pub(super) orphaned_at: Option<Moment>,
    /// Its place in the ledger's index; `None` when it is not there.
    pub(super) due: Option<Moment>,
    /// When its role lets it make the call that is due, once that has been asked.
    turn: Option<Moment>,
    /// The urgency of the outstanding call, as it was last told.
    told: Option<Urgency>,
}

impl Entry {
    pub(super) fn new(request: Arc<RoleRequest>, call_at: Moment) -> Self {
        Self {
            request,
            pods: HashSet::new(),
            covers: HashMap::new(),
            covers_last_until: None,
            is_waited_for: false,
            state: State::BackingOff { call_at },
            failures: 0,
            error: None,
            refusal: None,
            orphaned_at: None,
            due: None,
            turn: None,
            told: None,
        }
    }

    pub(super) fn held(&self) -> Option<&Held> {
        match &self.state {
            State::Holding { held, .. } | State::Renewing { held } => Some(held),
            State::Covered { .. } | State::BackingOff { .. } | State::Fetching => None,
        }
    }

    pub(super) const fn is_outstanding(&self) -> bool {
        matches!(self.state, State::Fetching | State::Renewing { .. })
    }

    /// What a pod is told whose agent serves it nothing from before.
    pub(super) fn standing(&self) -> Standing {
        match (self.held(), &self.refusal) {
            (Some(held), _) => Standing::Ready(Arc::clone(&held.credentials)),
            (None, Some(refusal)) => Standing::Refused(refusal.clone()),
            (None, None) => Standing::Pending,
        }
    }

    /// What this pod is told. A refusal would take away what its agent still serves it, and that is
    /// as valid as it was before this server started.
    pub(super) fn standing_of(&self, pod: &PodUid) -> Standing {
        match self.standing() {
            Standing::Refused(_) if self.covers.contains_key(pod) => Standing::Pending,
            standing @ (Standing::Pending | Standing::Ready(_) | Standing::Refused(_)) => standing,
        }
    }

    /// When something happens of itself. An orphan asks for nothing and only waits to be forgotten.
    pub(super) fn due_at(&self, now: Now, grace: Duration) -> Option<Moment> {
        if let Some(orphaned_at) = self.orphaned_at {
            let forgotten_at = orphaned_at.after(grace);
            let ends_at = self
                .held()
                .map_or(forgotten_at, |held| held.withdrawn_at(now));
            return Some(forgotten_at.min(ends_at));
        }
        let uncovers_at = self
            .covers_last_until
            .filter(|_end| self.refusal.is_some())
            .map(|end| now.monotonic.after(end.since(now.wall)));
        let due_at = match &self.state {
            State::Covered { call_at } | State::BackingOff { call_at } => Some(*call_at),
            State::Fetching => None,
            State::Holding { held, call_at } => Some((*call_at).min(held.withdrawn_at(now))),
            State::Renewing { held } => Some(held.withdrawn_at(now)),
        };
        due_at.into_iter().chain(uncovers_at).min()
    }

    /// Forgets covers that have ended. Their pods are told of a refusal then.
    pub(super) fn uncover(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.covers_last_until.is_none_or(|end| end > now.wall) {
            return;
        }
        let is_refused = self.refusal.is_some();
        self.covers.retain(|pod, end| {
            let lasts = *end > now.wall;
            if !lasts && is_refused {
                effects.push(Effect::Retell(pod.clone()));
            }
            lasts
        });
        self.covers_last_until = self.covers.values().min().copied();
    }

    /// Lets go of credentials that have ended.
    pub(super) fn expire(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if !self.held().is_some_and(|held| held.is_over(now)) {
            return;
        }
        self.state = match &self.state {
            // Over before their renewal was due: the wall clock has jumped ahead, or the machine has
            // slept. The renewal's time means nothing any more; that of a backoff does.
            State::Holding { .. } if self.failures == 0 => State::BackingOff {
                call_at: now.monotonic,
            },
            State::Holding { call_at, .. } => State::BackingOff { call_at: *call_at },
            State::Renewing { .. }
            | State::Fetching
            | State::Covered { .. }
            | State::BackingOff { .. } => State::Fetching,
        };
        effects.push(Effect::Withdraw(self.request.id()));
        if let Some(error) = self
            .error
            .take_if(|error| matches!(error.retry(), Retry::Rarely))
        {
            self.refuse(&error, effects);
            self.error = Some(error);
        }
    }

    /// Tells its pods that STS refuses.
    pub(super) fn refuse(&mut self, error: &IssueError, effects: &mut Vec<Effect>) {
        let refusal = Refused::new(Refusal::StsRefused, &error.to_string());
        if self.refusal.as_ref() != Some(&refusal) {
            effects.push(Effect::Refuse(self.request.id(), refusal.clone()));
            self.refusal = Some(refusal);
        }
    }

    /// Puts off a first call that is due if its role has been refusing, to the role's next slot.
    pub(super) fn take_turn(&mut self, role: &mut Role, now: Now) {
        if let State::BackingOff { call_at } = &mut self.state
            && *call_at <= now.monotonic
            && self.turn.is_none()
        {
            *call_at = role.slot(now.monotonic);
            self.turn = Some(*call_at);
        }
    }

    /// Leaves the turn that it has not had yet to others of its role: nobody needs it for now.
    pub(super) fn leave_turn(&mut self, role: &mut Role, now: Now) {
        if let State::BackingOff { .. } = self.state
            && let Some(turn) = self.turn.take_if(|turn| *turn > now.monotonic)
        {
            role.give_back(turn);
        }
    }

    /// Asks when it is time to, and tells a changed urgency of a call that is on its way.
    pub(super) fn ask(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let is_due = |call_at: Moment| call_at <= now.monotonic;
        let cover_end = self.cover_ends(now);
        let is_waited_for = self.is_waited_for;
        match &mut self.state {
            State::Covered { call_at } => {
                // A wall clock that was behind when the call was planned has put it off too far.
                if let Some(end) = cover_end {
                    let life = self.request.session().duration;
                    *call_at = (*call_at).min(covered_call_at(end, life, now, 1.0));
                }
                if is_due(*call_at) || cover_end.is_none() || is_waited_for {
                    self.state = State::Fetching;
                }
            }
            State::BackingOff { call_at } => {
                if is_due(*call_at) {
                    self.state = State::Fetching;
                }
            }
            State::Holding { held, call_at } => {
                // A wall clock that has jumped ahead leaves less life than was counted on.
                if self.failures == 0 {
                    *call_at = (*call_at).min(held.renewal_at_latest(now));
                }
                if is_due(*call_at) {
                    self.state = State::Renewing { held: held.clone() };
                }
            }
            State::Fetching | State::Renewing { .. } => {}
        }
        if !self.is_outstanding() {
            self.told = None;
            return;
        }
        let urgency = self.urgency(now);
        // A deadline that moves by a second is not worth telling.
        let is_told = self
            .told
            .is_some_and(|told| discriminant(&told) == discriminant(&urgency));
        if is_told {
            return;
        }
        effects.push(if self.told.replace(urgency).is_some() {
            Effect::Hurry(self.request.id(), urgency)
        } else {
            Effect::Fetch {
                request: Arc::clone(&self.request),
                urgency,
            }
        });
    }

    /// Takes the call back, if one is on its way: nobody needs the answer for now.
    pub(super) fn cancel(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let call_at = now.monotonic;
        self.state = match &self.state {
            State::Fetching => State::BackingOff { call_at },
            State::Renewing { held } => State::Holding {
                held: held.clone(),
                call_at,
            },
            State::Covered { .. } | State::BackingOff { .. } | State::Holding { .. } => return,
        };
        self.told = None;
        self.turn = None;
        effects.push(Effect::Cancel(self.request.id()));
    }

    /// The end of the call as far as the entry is concerned; the next one is not before `call_at`.
    pub(super) fn failed(&mut self, call_at: Moment) {
        self.told = None;
        self.turn = None;
        self.state = match &self.state {
            State::Renewing { held } | State::Holding { held, .. } => State::Holding {
                held: held.clone(),
                call_at,
            },
            State::Covered { .. } | State::BackingOff { .. } | State::Fetching => {
                State::BackingOff { call_at }
            }
        };
    }

    /// New credentials in hand.
    pub(super) fn granted(&mut self, held: Held, call_at: Moment) {
        self.told = None;
        self.turn = None;
        self.failures = 0;
        self.error = None;
        self.refusal = None;
        self.is_waited_for = false;
        // With its room: it will not be needed again.
        self.covers = HashMap::new();
        self.covers_last_until = None;
        self.state = State::Holding { held, call_at };
    }

    /// The pod's agent still serves it something until `end`. Takes back a refusal it was told.
    pub(super) fn cover(&mut self, pod: &PodUid, end: UnixSeconds, effects: &mut Vec<Effect>) {
        if !self.pods.contains(pod) {
            return;
        }
        let is_new = self.covers.insert(pod.clone(), end).is_none();
        self.covers_last_until = Some(self.covers_last_until.map_or(end, |first| first.min(end)));
        if is_new && self.refusal.is_some() {
            effects.push(Effect::Retell(pod.clone()));
        }
    }

    /// Whether the pod's agent still serves it something from before.
    pub(super) fn is_covered(&self, pod: &PodUid) -> bool {
        self.covers.contains_key(pod)
    }

    /// Whether the pod was one of its.
    pub(super) fn remove(&mut self, pod: &PodUid) -> bool {
        self.covers.remove(pod);
        self.pods.remove(pod)
    }

    /// When the first of its pods' agents runs out; `None` when some pod has nothing.
    pub(super) fn cover_ends(&self, now: Now) -> Option<UnixSeconds> {
        if self.covers.len() < self.pods.len() {
            return None;
        }
        let first = self.covers.values().min()?;
        (*first > now.wall).then_some(*first)
    }

    fn urgency(&self, now: Now) -> Urgency {
        if let Some(held) = self.held() {
            return Urgency::Renewal {
                by: held.ends_at(now),
            };
        }
        let is_doubtful = self
            .error
            .as_ref()
            .is_some_and(|error| matches!(error.retry(), Retry::Rarely));
        if is_doubtful {
            Urgency::Doubtful
        } else if self.is_waited_for {
            Urgency::Waited
        } else if let Some(end) = self.cover_ends(now) {
            let by = now.monotonic.after(end.since(now.wall));
            Urgency::Renewal { by }
        } else if !self.covers.is_empty() {
            Urgency::Shared
        } else {
            Urgency::New
        }
    }
}

/// When to fetch what every agent still serves: at a random moment before the first of them has
/// less than half of its life left, so that a restarted server does not fetch everything at once.
pub(super) fn covered_call_at(end: UnixSeconds, life: Duration, now: Now, dice: f64) -> Moment {
    let spare = end
        .since(now.wall)
        .saturating_sub(life.mul_f64(1.0 - RENEWED_UNTIL));
    now.monotonic.after(spare.mul_f64(dice))
}
