//! Decides which call to STS is made when.
//!
//! Pure: orders and endings come in with the time, calls to start come out. STS throttles an
//! account as a whole, and with it everyone else who uses that account, so the rate gives way at
//! the first sign: it is halved, and then won back little by little. Within the rate, pods that
//! have nothing come before those that are served, and those by deadline; a renewal whose end is
//! near gets every fourth call whatever else is waiting. No role gets more than half of the
//! fetchers, so that a slow one starves nobody.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::CredentialId;

use super::fetchers::Order;
use crate::arn::RoleArn;
use crate::clock::Moment;
use crate::policy::RoleRequest;

/// How much a call matters; the lesser value goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A pod's request is parked on its node at this moment.
    Waited,
    /// Some pod has nothing, and none has.
    New,
    /// Some of its pods are served by their agents from before; others may have nothing.
    Shared,
    /// Every pod is served for now.
    Renewal {
        /// When the old ones end.
        by: Moment,
    },
    /// STS refused it before; it is asked about in case someone has changed something.
    Doubtful,
}

/// The budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Calls at one time (`--fetchers`).
    pub fetchers: NonZeroUsize,
    /// Calls in one second while STS is content; finite and positive, or else it counts as the
    /// least rate there is.
    pub calls_per_s_max: f64,
}

/// What to do now.
#[derive(Debug)]
pub enum Next {
    /// Make this call, and tell its end to [`Schedule::finished`].
    Start(Arc<RoleRequest>),
    /// Nothing before then, unless told otherwise.
    At(Moment),
    /// Nothing until told otherwise.
    Idle,
}

/// How a call ended, as far as the rate is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// STS asked us to slow down.
    Throttled,
    /// Anything else, good or bad.
    Answered,
}

/// Everyone in the queue, and the rate at which it is served.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    rate: Rate,
    /// Who waits, first come first within one urgency. The ids are the keys of `waiting` but for
    /// those that are held back.
    queue: BTreeSet<Place>,
    /// Out of the queue because their role has as many calls as it may; by role.
    held_back: HashMap<RoleArn, BTreeSet<Place>>,
    waiting: HashMap<CredentialId, Waiting>,
    running: HashMap<CredentialId, RoleArn>,
    running_by_role: HashMap<RoleArn, usize>,
    orders: u64,
    starts: u64,
}

type Place = (Urgency, u64, CredentialId);

#[derive(Debug)]
struct Waiting {
    request: Arc<RoleRequest>,
    place: Place,
}

/// A renewal that ends within this may not wait for all new pods.
const PRESSING: Duration = Duration::from_mins(10);
/// One call in so many is for a pressing renewal.
const PRESSING_SHARE: u64 = 4;

impl Schedule {
    /// An empty queue at the full rate.
    pub fn new(limits: Limits, now: Moment) -> Self {
        Self {
            limits,
            rate: Rate::new(limits, now),
            queue: BTreeSet::new(),
            held_back: HashMap::new(),
            waiting: HashMap::new(),
            running: HashMap::new(),
            running_by_role: HashMap::new(),
            orders: 0,
            starts: 0,
        }
    }

    /// Calls waiting.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Calls being made.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Calls in one second, as of late.
    pub const fn calls_per_s(&self) -> f64 {
        self.rate.calls_per_s
    }

    /// Takes an order.
    pub fn order(&mut self, order: Order) {
        match order {
            Order::Fetch(request, urgency) => self.fetch(request, urgency),
            Order::Hurry(id, urgency) => self.hurry(id, urgency),
            Order::Cancel(id) => self.cancel(id),
        }
    }

    /// What to do now. To be asked again after every order, every end, and every start.
    pub fn next(&mut self, now: Moment) -> Next {
        if self.running.len() >= self.limits.fetchers.get() {
            return Next::Idle;
        }
        self.hold_back();
        if self.queue.is_empty() {
            return Next::Idle;
        }
        if let Err(at) = self.rate.take(now) {
            return Next::At(at);
        }
        let Some(place) = self.first(now) else {
            return Next::Idle;
        };
        self.queue.remove(&place);
        let Some(Waiting { request, .. }) = self.waiting.remove(&place.2) else {
            return Next::Idle;
        };
        self.starts += 1;
        let role = request.role().clone();
        *self.running_by_role.entry(role.clone()).or_default() += 1;
        self.running.insert(request.id(), role);
        Next::Start(request)
    }

    /// The call with this id has ended.
    pub fn finished(&mut self, id: CredentialId, ended: Ended, now: Moment) {
        self.rate.on(ended, now);
        let Some(role) = self.running.remove(&id) else {
            return;
        };
        if let Some(count) = self.running_by_role.get_mut(&role) {
            *count -= 1;
            if *count == 0 {
                self.running_by_role.remove(&role);
            }
        }
        if let Some(held_back) = self.held_back.get_mut(&role) {
            self.queue.extend(held_back.pop_first());
            if held_back.is_empty() {
                self.held_back.remove(&role);
            }
        }
    }

    /// A call that is not waiting any more has begun, or its answer is on the way: whoever ordered this did
    /// not know yet.
    fn hurry(&mut self, id: CredentialId, urgency: Urgency) {
        if let Some(Waiting { request, .. }) = self.waiting.get(&id) {
            let request = Arc::clone(request);
            self.fetch(request, urgency);
        }
    }

    /// A call that is being made already will answer this order too.
    fn fetch(&mut self, request: Arc<RoleRequest>, urgency: Urgency) {
        let id = request.id();
        if self.running.contains_key(&id) {
            return;
        }
        self.cancel(id);
        self.orders += 1;
        let place = (urgency, self.orders, id);
        self.queue.insert(place);
        self.waiting.insert(id, Waiting { request, place });
    }

    fn cancel(&mut self, id: CredentialId) {
        let Some(Waiting { request, place }) = self.waiting.remove(&id) else {
            return;
        };
        let was_queued = self.queue.remove(&place);
        if let Some(held_back) = self.held_back.get_mut(request.role()) {
            if was_queued {
                // It may be the one that was taken back when the last call of its role ended, and
                // then nothing else would take back the others.
                self.queue.extend(held_back.pop_first());
            } else {
                held_back.remove(&place);
            }
            if held_back.is_empty() {
                self.held_back.remove(request.role());
            }
        }
    }

    fn first(&self, now: Moment) -> Option<Place> {
        let first = self.queue.first().copied();
        if !self.starts.is_multiple_of(PRESSING_SHARE) {
            return first;
        }
        let from = Urgency::Renewal { by: Moment::ORIGIN };
        let renewal = self
            .queue
            .range((from, 0, CredentialId::new([0; CredentialId::BYTES]))..)
            .next()
            .copied();
        match renewal {
            Some(place @ (Urgency::Renewal { by }, ..)) if by.since(now) < PRESSING => Some(place),
            _ => first,
        }
    }

    /// Clears the head of the queue of those whose role has as many calls as it may. Each is put
    /// aside once, and taken back when a call of its role ends.
    fn hold_back(&mut self) {
        let most = self.limits.fetchers.get().div_ceil(2);
        let heads = |queue: &BTreeSet<Place>| queue.first().copied();
        // The head alone is not enough: a pressing renewal is taken from further down.
        while let Some(place) = heads(&self.queue) {
            if !self.is_full(&place, most) {
                break;
            }
            self.put_aside(place);
        }
        while let Some(place) = self.first(Moment::new(Duration::MAX)) {
            if !self.is_full(&place, most) {
                return;
            }
            self.put_aside(place);
        }
    }

    fn is_full(&self, place: &Place, most: usize) -> bool {
        self.waiting.get(&place.2).is_some_and(|waiting| {
            self.running_by_role
                .get(waiting.request.role())
                .is_some_and(|count| *count >= most)
        })
    }

    fn put_aside(&mut self, place: Place) {
        self.queue.remove(&place);
        if let Some(waiting) = self.waiting.get(&place.2) {
            self.held_back
                .entry(waiting.request.role().clone())
                .or_default()
                .insert(place);
        }
    }
}

/// Additive increase, multiplicative decrease.
#[derive(Debug)]
struct Rate {
    calls_per_s: f64,
    calls_per_s_max: f64,
    /// Calls that may be made at once, after a pause.
    burst: f64,
    saved: f64,
    counted_at: Moment,
    halved_at: Option<Moment>,
}

/// The rate never falls below this, or it would take too long to notice that all is well.
const CALLS_PER_S_MIN: f64 = 0.5;
/// Calls that were under way when the rate was halved say nothing about the new rate.
const HALVED_ONCE_IN: Duration = Duration::from_secs(2);
/// From least to most in so many seconds without throttling.
const RECOVERED_IN_S: f64 = 60.0;

impl Rate {
    fn new(limits: Limits, now: Moment) -> Self {
        let most = if limits.calls_per_s_max.is_finite() {
            limits.calls_per_s_max.clamp(CALLS_PER_S_MIN, 1e6)
        } else {
            CALLS_PER_S_MIN
        };
        let fetchers = u32::try_from(limits.fetchers.get()).unwrap_or(u32::MAX);
        Self {
            calls_per_s: most,
            calls_per_s_max: most,
            burst: f64::from(fetchers).min(most).max(1.0),
            saved: 1.0,
            counted_at: now,
            halved_at: None,
        }
    }

    /// Takes one call, or says when there is one to take.
    fn take(&mut self, now: Moment) -> Result<(), Moment> {
        self.count(now);
        if self.saved >= 1.0 {
            self.saved -= 1.0;
            return Ok(());
        }
        let missing_s = (1.0 - self.saved) / self.calls_per_s;
        // A millisecond more, so that rounding does not wake anyone too early.
        Err(now.after(Duration::from_secs_f64(missing_s + 0.001)))
    }

    fn count(&mut self, now: Moment) {
        let passed_s = now.since(self.counted_at).as_secs_f64();
        self.counted_at = now;
        self.saved = (self.saved + passed_s * self.calls_per_s).min(self.burst);
        let is_calm = self
            .halved_at
            .is_none_or(|at| now.since(at) >= HALVED_ONCE_IN);
        if is_calm {
            let more = passed_s * self.calls_per_s_max / RECOVERED_IN_S;
            self.calls_per_s = (self.calls_per_s + more).min(self.calls_per_s_max);
        }
    }

    fn on(&mut self, ended: Ended, now: Moment) {
        self.count(now);
        let is_calm = self
            .halved_at
            .is_none_or(|at| now.since(at) >= HALVED_ONCE_IN);
        if ended == Ended::Throttled && is_calm {
            self.calls_per_s = (self.calls_per_s / 2.0).max(CALLS_PER_S_MIN);
            self.saved = self.saved.min(1.0);
            self.halved_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests;
