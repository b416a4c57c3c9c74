//! A simulated day of the server's deciding half: pods come and go, STS throttles, refuses and
//! falls silent, the server restarts, its wall clock is set wrong and right again. No clock, no network, no threads: a day is a second or two,
//! and the same seed is the same day.
//!
//! What must hold all day long:
//! - No credentials are published or shown as ready that have ended, whatever the server's own wall
//!   clock says.
//! - No node holds credentials that no pod of it is granted.
//! - A granted pod is served in the step in which its credentials are there, and they are there
//!   within a minute while STS works.
//! - STS is never asked more often, by more calls at once, or twice for one id at a time, than the
//!   budget says; and no id is renewed more often than its life makes necessary.
//! - What pods hold has at least half of its life left, unless calls for it have failed.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected stops where it stands"
)]

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use kiam_server::arn::RoleArn;
use kiam_server::clock::{Moment, Now};
use kiam_server::ledger::{Effect, Event, Ledger, Pace, Standing};
use kiam_server::policy::{RoleRequest, Session};
use kiam_server::sts::fetchers::Order;
use kiam_server::sts::schedule::{Ended, Limits, Next, Schedule};
use kiam_server::sts::{IssueError, Issued};
use kiam_wire::{CredentialId, Credentials, PodUid, UnixSeconds};
use zeroize::Zeroizing;

const DAY_S: u64 = 86_400;
const NODES: usize = 8;
const ROLES: usize = 24;
const FETCHERS: usize = 4;
const CALLS_PER_S: f64 = 5.0;
/// Calls a second that STS puts up with while it is strict.
const STRICT_CALLS_PER_S: usize = 1;
/// Within this everything must be well again once STS works and the server runs.
const SETTLED_S: u64 = 60;
const CHECKED_EVERY_S: u64 = 30;
/// The longest backoff after a refusal, and the spread of a healed role.
const HEALED_S: u64 = 310 + SETTLED_S;

#[test]
fn a_day_with_faults() {
    for seed in 1..=3 {
        Day::new(seed, true).run();
    }
}

#[test]
fn a_day_without_faults() {
    assert_eq!(Day::new(4, false).run().failed, 0);
}

struct PodFacts {
    node: usize,
    request: Arc<RoleRequest>,
    since_s: u64,
}

/// What is known of one credential id, over all servers.
#[derive(Default)]
struct History {
    granted: u64,
    /// Seconds in which some pod wanted it.
    wanted_s: u64,
    /// Times at which its first pod came.
    spells: u64,
    failed_at_s: Option<u64>,
}

/// The seconds in which trouble of each kind ends.
#[derive(Default)]
struct Weather {
    silent_until: u64,
    strict_until: u64,
    refused_until: HashMap<RoleArn, u64>,
    /// The wall clock is wrong until then.
    skewed_until: u64,
    /// The last second in which STS did not work for everyone, or the wall clock was wrong.
    bad_at: Option<u64>,
}

struct Day {
    seed: u64,
    has_faults: bool,
    dice: fastrand::Rng,
    now_s: u64,
    pods: BTreeMap<String, PodFacts>,
    nodes: Vec<HashMap<CredentialId, Arc<Credentials>>>,
    histories: HashMap<CredentialId, History>,
    weather: Weather,
    ledger: Ledger,
    schedule: Schedule,
    wake_schedule_at: Moment,
    /// Calls being made, with the second in which STS answers.
    calls: Vec<(u64, Arc<RoleRequest>)>,
    /// When calls were started lately.
    started: VecDeque<u64>,
    restarted_at_s: Option<u64>,
    restarts: u64,
    /// How far the server's wall clock is ahead.
    skew_s: i64,
    /// How often it was set.
    jumps: u64,
    /// Nodes whose agents have not come back since the restart, with when they will.
    reconnecting: Vec<(u64, usize)>,
    next_pod: u64,
    failed: u64,
    /// Something has been told since the last check.
    has_changed: bool,
}

fn limits() -> Limits {
    Limits {
        fetchers: NonZeroUsize::new(FETCHERS).unwrap(),
        calls_per_s_max: CALLS_PER_S,
    }
}

fn at(seconds: u64) -> Now {
    Now {
        monotonic: Moment::new(Duration::from_secs(seconds)),
        wall: UnixSeconds::new(1_800_000_000).after(Duration::from_secs(seconds)),
    }
}

fn life(role: usize) -> Duration {
    match role % 6 {
        0 => Duration::from_mins(15),
        1 => Duration::from_hours(4),
        _ => Duration::from_hours(1),
    }
}

fn request(role: usize, session: &str) -> Arc<RoleRequest> {
    let arn = format!("arn:aws:iam::123456789012:role/r{role}");
    Arc::new(RoleRequest::new(Session {
        role: RoleArn::parse(&arn).unwrap(),
        name: format!("kiam-{session}"),
        external_id: None,
        tags: vec![],
        transitive_keys: vec![],
        policy_arns: vec![],
        source_identity: None,
        duration: life(role),
    }))
}

fn uid(name: &str) -> PodUid {
    PodUid::try_new(name).unwrap()
}

impl Day {
    fn new(seed: u64, has_faults: bool) -> Self {
        Self {
            seed,
            has_faults,
            dice: fastrand::Rng::with_seed(seed),
            now_s: 0,
            pods: BTreeMap::new(),
            nodes: vec![HashMap::new(); NODES],
            histories: HashMap::new(),
            weather: Weather::default(),
            ledger: Ledger::new(Pace::default(), seed, at(0)),
            schedule: Schedule::new(limits(), at(0).monotonic),
            wake_schedule_at: Moment::ORIGIN,
            calls: Vec::new(),
            started: VecDeque::new(),
            restarted_at_s: None,
            restarts: 0,
            skew_s: 0,
            jumps: 0,
            reconnecting: Vec::new(),
            next_pod: 0,
            failed: 0,
            has_changed: false,
        }
    }

    fn run(mut self) -> Self {
        for _ in 0..20 {
            self.add_pod();
        }
        for second in 1..=DAY_S {
            self.now_s = second;
            self.change_weather();
            self.set_clock();
            self.churn();
            self.restart_sometimes();
            self.reconnect();
            self.answer_calls();
            if self.ledger.wakes_at() <= self.now().monotonic {
                self.tell(Event::Tick);
            }
            self.start_calls();
            // Between two changes only time passes, and nothing that is checked is that exact.
            if std::mem::take(&mut self.has_changed) || second % CHECKED_EVERY_S == 0 {
                self.check();
            }
            if second % CHECKED_EVERY_S == 0 {
                self.account();
            }
        }
        self.check_renewals();
        self
    }

    /// What the server's clocks say.
    fn now(&self) -> Now {
        let truth = at(self.now_s);
        Now {
            monotonic: truth.monotonic,
            wall: UnixSeconds::new(truth.wall.get() + self.skew_s),
        }
    }

    /// What STS's clock says.
    fn truth(&self) -> UnixSeconds {
        at(self.now_s).wall
    }

    /// One in `odds` seconds.
    fn happens(&mut self, odds: u64) -> bool {
        self.dice.u64(0..odds) == 0
    }

    // === the world ===

    fn change_weather(&mut self) {
        if !self.has_faults {
            return;
        }
        if self.happens(3 * 3600) {
            // Some outages are longer than the longest life but one.
            self.weather.silent_until = self.now_s + self.dice.u64(10..5400);
        }
        if self.happens(2 * 3600) {
            self.weather.strict_until = self.now_s + self.dice.u64(10..1800);
        }
        if self.happens(1800) {
            let role = self.dice.usize(0..ROLES);
            let until = self.now_s + self.dice.u64(10..7200);
            let arn = request(role, "x").role().clone();
            self.weather.refused_until.insert(arn, until);
        }
        let weather = &self.weather;
        let ends = [
            weather.silent_until,
            weather.strict_until,
            weather.skewed_until,
        ];
        if ends.iter().any(|end| self.now_s < *end) {
            self.weather.bad_at = Some(self.now_s);
        }
    }

    /// The server's wall clock is set wrong, by minutes or by a day, and some time later right.
    fn set_clock(&mut self) {
        if self.skew_s != 0 && self.now_s >= self.weather.skewed_until {
            self.skew_s = 0;
            self.jumps += 1;
        }
        if !self.has_faults || self.skew_s != 0 || !self.happens(2 * 3600) {
            return;
        }
        let (by_s, for_s) = if self.dice.u8(0..4) == 0 {
            (86_400, self.dice.u64(1..120))
        } else {
            (self.dice.i64(1..300), self.dice.u64(10..1800))
        };
        self.skew_s = if self.dice.bool() { by_s } else { -by_s };
        self.weather.skewed_until = self.now_s + for_s;
        self.weather.bad_at = Some(self.now_s);
        self.jumps += 1;
    }

    fn churn(&mut self) {
        if self.happens(40) && self.pods.len() < 60 {
            self.add_pod();
        }
        if self.happens(60) && self.pods.len() > 10 {
            let index = self.dice.usize(0..self.pods.len());
            let name = self.pods.keys().nth(index).unwrap().clone();
            self.remove_pod(&name);
            // Half of the time it comes back elsewhere, as in a rolling restart.
            if self.dice.bool() {
                self.add_pod();
            }
        }
        if self.happens(20) {
            let index = self.dice.usize(0..self.pods.len());
            let pod = uid(self.pods.keys().nth(index).unwrap());
            self.tell(Event::Waiting { pod });
        }
    }

    fn add_pod(&mut self) {
        self.next_pod += 1;
        let name = format!("pod-{}", self.next_pod);
        let role = self.dice.usize(0..ROLES);
        // One in four has a session of its own.
        let is_own = self.dice.u8(0..4) == 0;
        let request = request(role, if is_own { &name } else { "kiam" });
        let id = request.id();
        if !self.pods.values().any(|pod| pod.request.id() == id) {
            self.histories.entry(id).or_default().spells += 1;
        }
        let facts = PodFacts {
            node: self.dice.usize(0..NODES),
            request: Arc::clone(&request),
            since_s: self.now_s,
        };
        self.pods.insert(name.clone(), facts);
        let pod = uid(&name);
        self.tell(Event::Granted { pod, request });
        self.push(id);
    }

    fn remove_pod(&mut self, name: &str) {
        let facts = self.pods.remove(name).unwrap();
        self.tell(Event::Gone { pod: uid(name) });
        self.forget_unused(facts.node);
    }

    fn forget_unused(&mut self, node: usize) {
        let used: HashSet<_> = self
            .pods
            .values()
            .filter(|pod| pod.node == node)
            .map(|pod| pod.request.id())
            .collect();
        self.nodes[node].retain(|id, _| used.contains(id));
    }

    /// A restarted server knows all pods at once; the agents come back over some seconds.
    fn restart_sometimes(&mut self) {
        if !self.has_faults || !self.happens(4 * 3600) {
            return;
        }
        self.restarts += 1;
        self.restarted_at_s = Some(self.now_s);
        self.calls.clear();
        let seed = self.dice.u64(..);
        self.ledger = Ledger::new(Pace::default(), seed, self.now());
        self.schedule = Schedule::new(limits(), self.now().monotonic);
        self.wake_schedule_at = Moment::ORIGIN;
        let pods: Vec<_> = self
            .pods
            .iter()
            .map(|(name, pod)| (uid(name), Arc::clone(&pod.request)))
            .collect();
        for (pod, request) in pods {
            self.tell(Event::Granted { pod, request });
        }
        self.reconnecting = (0..NODES)
            .map(|node| (self.now_s + self.dice.u64(0..5), node))
            .collect();
    }

    fn reconnect(&mut self) {
        let now_s = self.now_s;
        let back = |(when, _): &(u64, usize)| *when <= now_s;
        let due: Vec<_> = self.reconnecting.iter().copied().filter(back).collect();
        self.reconnecting.retain(|entry| !back(entry));
        for (_, node) in due {
            let held: Vec<_> = self
                .pods
                .iter()
                .filter(|(_, pod)| pod.node == node)
                .filter_map(|(name, pod)| {
                    let credentials = self.nodes[node].get(&pod.request.id())?;
                    Some((uid(name), credentials.id(), credentials.expires_at()))
                })
                .collect();
            for (pod, id, expires_at) in held {
                self.tell(Event::Held {
                    pod,
                    id,
                    expires_at,
                });
            }
        }
    }

    // === STS ===

    fn answer_calls(&mut self) {
        let now_s = self.now_s;
        let (due, rest) = std::mem::take(&mut self.calls)
            .into_iter()
            .partition(|(ends_s, _)| *ends_s <= now_s);
        self.calls = rest;
        for (_, request) in due {
            let id = request.id();
            let outcome = self.answer(&request);
            let ended = match outcome {
                Err(IssueError::Throttled(_)) => Ended::Throttled,
                _ => Ended::Answered,
            };
            self.schedule.finished(id, ended, self.now().monotonic);
            self.wake_schedule_at = Moment::ORIGIN;
            self.tell(Event::Answered { id, outcome });
        }
    }

    fn answer(&mut self, request: &RoleRequest) -> Result<Issued, IssueError> {
        let (now, truth) = (self.now(), self.truth());
        let history = self.histories.entry(request.id()).or_default();
        let lately = self
            .started
            .iter()
            .filter(|start| **start == self.now_s)
            .count();
        let refused_until_s = self.weather.refused_until.get(request.role());
        let error = if self.now_s < self.weather.silent_until {
            IssueError::Unreachable("silence".into())
        } else if self.now_s < self.weather.strict_until && lately > STRICT_CALLS_PER_S {
            IssueError::Throttled("Throttling".into())
        } else if refused_until_s.is_some_and(|until| self.now_s < *until) {
            IssueError::Denied("trust policy".into())
        } else {
            let duration = request.session().duration;
            let expires_at = truth.after(duration);
            // To a server that lives in tomorrow it is of no use, and it has to ask again.
            history.granted += u64::from(expires_at > now.wall);
            return Ok(Issued {
                access_key_id: "ASIAEXAMPLE0000000".into(),
                secret_access_key: Zeroizing::new("s".into()),
                session_token: Zeroizing::new("t".into()),
                expires_at,
                duration,
                asked_at: now.monotonic,
            });
        };
        history.failed_at_s = Some(self.now_s);
        self.failed += 1;
        Err(error)
    }

    fn start_calls(&mut self) {
        let now = self.now().monotonic;
        if self.wake_schedule_at > now {
            return;
        }
        loop {
            match self.schedule.next(now) {
                Next::Start(request) => {
                    let is_twice = self.calls.iter().any(|(_, call)| call.id() == request.id());
                    assert!(!is_twice, "seed {}: two calls for one id", self.seed);
                    self.calls.push((self.now_s + self.dice.u64(0..3), request));
                    self.started.push_back(self.now_s);
                }
                Next::At(later) => {
                    self.wake_schedule_at = later;
                    break;
                }
                Next::Idle => {
                    self.wake_schedule_at = Moment::new(Duration::MAX);
                    break;
                }
            }
        }
        assert!(self.calls.len() <= FETCHERS, "seed {}", self.seed);
        while self
            .started
            .front()
            .is_some_and(|start| start + 60 < self.now_s)
        {
            self.started.pop_front();
        }
        // Each restart brings a fresh burst.
        let restarted = self.restarted_at_s.is_some_and(|s| s + 60 >= self.now_s);
        let budget = 61 * 5 + if restarted { 2 * FETCHERS } else { FETCHERS };
        assert!(
            self.started.len() <= budget,
            "seed {}: {}",
            self.seed,
            self.started.len()
        );
    }

    // === the server ===

    fn tell(&mut self, event: Event) {
        self.has_changed |= matches!(event, Event::Granted { .. } | Event::Gone { .. });
        let mut effects = Vec::new();
        self.ledger.on(event, self.now(), &mut effects);
        for effect in effects {
            // What is asked of STS changes nothing of what is served.
            self.has_changed |= !matches!(
                effect,
                Effect::Fetch { .. } | Effect::Hurry(..) | Effect::Cancel(_)
            );
            match effect {
                Effect::Hurry(id, urgency) => self.schedule.order(Order::Hurry(id, urgency)),
                Effect::Fetch { request, urgency } => {
                    self.schedule.order(Order::Fetch(request, urgency));
                    self.wake_schedule_at = Moment::ORIGIN;
                }
                Effect::Cancel(id) => self.schedule.order(Order::Cancel(id)),
                Effect::Publish(credentials) => {
                    assert!(
                        credentials.expires_at() > self.truth(),
                        "seed {}",
                        self.seed
                    );
                    self.push(credentials.id());
                }
                Effect::Withdraw(id) => {
                    assert!(!matches!(
                        self.ledger.standing(&id),
                        Some(Standing::Ready(_))
                    ));
                }
                Effect::Retell(pod) => {
                    let standing = self.ledger.standing_of(&pod);
                    assert!(!matches!(standing, Some(Standing::Ready(_))));
                }
                Effect::Refuse(id, _) => {
                    let standing = self.ledger.standing(&id);
                    assert!(matches!(standing, Some(Standing::Refused(_))));
                }
            }
        }
    }

    /// What a node's stream does: its pods' credentials, as the ledger shows them.
    fn push(&mut self, id: CredentialId) {
        let Some(Standing::Ready(credentials)) = self.ledger.standing(&id) else {
            return;
        };
        for pod in self.ledger.pods(&id) {
            let node = self.pods[pod.as_str()].node;
            self.nodes[node].insert(id, Arc::clone(&credentials));
        }
    }

    // === what must hold ===

    fn account(&mut self) {
        let wanted: HashSet<_> = self.pods.values().map(|pod| pod.request.id()).collect();
        for id in wanted {
            self.histories.entry(id).or_default().wanted_s += CHECKED_EVERY_S;
        }
    }

    fn check(&self) {
        let truth = self.truth();
        let (seed, now_s) = (self.seed, self.now_s);
        let granted: HashSet<_> = self
            .pods
            .values()
            .map(|pod| (pod.node, pod.request.id()))
            .collect();
        for (node, held) in self.nodes.iter().enumerate() {
            for id in held.keys() {
                let is_granted = granted.contains(&(node, *id));
                assert!(
                    is_granted,
                    "seed {seed}, second {now_s}: node {node} holds too much"
                );
            }
        }
        for (name, pod) in &self.pods {
            let id = pod.request.id();
            let role = pod.request.role();
            let place = || format!("seed {seed}, second {now_s}, {name} with {role}");
            assert_eq!(self.ledger.id_of(&uid(name)), Some(id), "{}", place());
            let standing = self.ledger.standing(&id).unwrap();
            let held = self.nodes[pod.node].get(&id);
            if let Standing::Ready(credentials) = &standing {
                assert!(credentials.expires_at() > truth, "{}: ended", place());
                assert_eq!(held, Some(credentials), "{}: not pushed", place());
            }
            let valid = held.filter(|credentials| credentials.expires_at() > truth);
            if self.should_be_served(pod) {
                assert!(valid.is_some(), "{}: not served, {standing:?}", place());
            }
            if let Some(credentials) = valid {
                self.check_freshness(pod, credentials, place);
            }
        }
    }

    fn is_calm_since(&self, seconds: u64) -> bool {
        let is_past = |when: u64| when + seconds < self.now_s;
        self.weather.bad_at.is_none_or(is_past) && self.restarted_at_s.is_none_or(is_past)
    }

    fn should_be_served(&self, pod: &PodFacts) -> bool {
        let refused_until_s = self.weather.refused_until.get(pod.request.role());
        pod.since_s + SETTLED_S < self.now_s
            && self.is_calm_since(SETTLED_S)
            && refused_until_s.is_none_or(|until| until + HEALED_S < self.now_s)
    }

    fn check_freshness(
        &self,
        pod: &PodFacts,
        credentials: &Credentials,
        place: impl Fn() -> String,
    ) {
        let life_s = pod.request.session().duration.as_secs();
        let left_s = credentials.expires_at().since(self.truth()).as_secs();
        if 2 * left_s >= life_s {
            return;
        }
        let issued_at_s = self.now_s + left_s - life_s;
        let history = &self.histories[&pod.request.id()];
        let has_failed = history
            .failed_at_s
            .is_some_and(|failed| failed > issued_at_s);
        // A pod that comes back within the grace finds them as they are, and so does a server that
        // restarts at the moment of renewal; the next are then on the way.
        let came_back = pod.since_s + SETTLED_S >= self.now_s;
        assert!(
            has_failed || came_back || !self.is_calm_since(SETTLED_S),
            "{}: {left_s} s left of {life_s}",
            place()
        );
    }

    /// Renewal begins when 0.4 of the life is over, so there is no reason for more than this.
    fn check_renewals(&self) {
        for (id, history) in &self.histories {
            let role_life_s = (0..ROLES)
                .find(|role| request(*role, "kiam").id() == *id)
                .map_or(900, |role| life(role).as_secs());
            // A clock that is ahead makes lives shorter, by a third at most for long.
            let most = history.spells
                + self.restarts
                + 4 * self.jumps
                + history.wanted_s * 10 / (role_life_s * 4)
                + 1;
            assert!(
                history.granted <= most,
                "seed {}: {} of {most}",
                self.seed,
                history.granted
            );
        }
    }
}
