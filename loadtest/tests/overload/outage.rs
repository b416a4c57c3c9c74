//! STS is away until the sessions of two thousand roles have ended, and then comes back: in time that
//! is given, through the real ledger and schedule.

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
use kiam_wire::{PodUid, UnixSeconds};
use zeroize::Zeroizing;

const ROLES: usize = 2_000;
/// As the server is started by default.
const FETCHERS: usize = 8;
const CALLS_PER_S: f64 = 200.0;
const LIFE: Duration = Duration::from_hours(1);

struct Outage {
    /// In [`TICK`]s.
    tick: u32,
    ledger: Ledger,
    schedule: Schedule,
    requests: Vec<Arc<RoleRequest>>,
    down: bool,
}

/// As long as it takes to answer as many calls as there are fetchers, at the rate allowed.
const TICK: Duration = Duration::from_millis(40);
const TICKS_PER_S: u32 = 25;

fn request(role: usize) -> Arc<RoleRequest> {
    let arn = format!("arn:aws:iam::123456789012:role/r{role}");
    Arc::new(RoleRequest::new(Session {
        role: RoleArn::parse(&arn).unwrap(),
        name: "kiam-kiam".into(),
        external_id: None,
        tags: vec![],
        transitive_keys: vec![],
        policy_arns: vec![],
        source_identity: None,
        duration: LIFE,
    }))
}

impl Outage {
    fn new() -> Self {
        let limits = Limits {
            fetchers: NonZeroUsize::new(FETCHERS).unwrap(),
            calls_per_s_max: CALLS_PER_S,
        };
        let now = at(0);
        let mut outage = Self {
            tick: 0,
            ledger: Ledger::new(Pace::default(), 1, now),
            schedule: Schedule::new(limits, now.monotonic),
            requests: (0..ROLES).map(request).collect(),
            down: false,
        };
        for (role, request) in outage.requests.clone().into_iter().enumerate() {
            let pod = PodUid::try_new(&format!("pod-{role}")).unwrap();
            outage.tell(Event::Granted { pod, request });
        }
        outage
    }

    fn tell(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.ledger.on(event, at(self.tick), &mut effects);
        for effect in effects {
            match effect {
                Effect::Hurry(id, urgency) => self.schedule.order(Order::Hurry(id, urgency)),
                Effect::Fetch { request, urgency } => {
                    self.schedule.order(Order::Fetch(request, urgency));
                }
                Effect::Cancel(id) => self.schedule.order(Order::Cancel(id)),
                Effect::Publish(_)
                | Effect::Withdraw(_)
                | Effect::Refuse(..)
                | Effect::Retell(_) => {}
            }
        }
    }

    fn second(&self) -> u32 {
        self.tick / TICKS_PER_S
    }

    /// One second; how many calls were made.
    fn pass(&mut self) -> usize {
        (0..TICKS_PER_S).map(|_| self.pass_a_tick()).sum()
    }

    /// Calls are answered at once.
    fn pass_a_tick(&mut self) -> usize {
        self.tick += 1;
        let mut calls = 0;
        if self.ledger.wakes_at() <= at(self.tick).monotonic {
            self.tell(Event::Tick);
        }
        while let Next::Start(request) = self.schedule.next(at(self.tick).monotonic) {
            calls += 1;
            let id = request.id();
            let now = at(self.tick);
            let outcome = if self.down {
                Err(IssueError::Unreachable("down".into()))
            } else {
                Ok(Issued {
                    access_key_id: "ASIA".into(),
                    secret_access_key: Zeroizing::new("s".into()),
                    session_token: Zeroizing::new("t".into()),
                    expires_at: now.wall.after(LIFE),
                    duration: LIFE,
                    asked_at: now.monotonic,
                })
            };
            self.schedule.finished(id, Ended::Answered, now.monotonic);
            self.tell(Event::Answered { id, outcome });
        }
        calls
    }

    fn ready(&self) -> usize {
        let is_ready = |request: &&Arc<RoleRequest>| {
            matches!(
                self.ledger.standing(&request.id()),
                Some(Standing::Ready(_))
            )
        };
        self.requests.iter().filter(is_ready).count()
    }
}

fn at(tick: u32) -> Now {
    let passed = TICK * tick;
    Now {
        monotonic: Moment::new(passed),
        wall: UnixSeconds::new(1_800_000_000).after(passed),
    }
}

#[test]
fn sts_is_away_until_two_thousand_sessions_have_ended() {
    let mut world = Outage::new();
    while world.ready() < ROLES {
        world.pass();
        assert!(world.second() < 60, "{} ready", world.ready());
    }
    world.down = true;
    let began = world.second();
    let (mut in_outage, mut busiest) = (0, 0);
    while world.ready() > 0 {
        let calls = world.pass();
        in_outage += calls;
        busiest = busiest.max(calls);
        assert!(
            world.second() < began + 4_000,
            "{} still shown",
            world.ready()
        );
    }
    let ended = world.second() - began;
    // Nothing was given up before its time: all lived to the end of their hour, and not beyond.
    assert!(ended >= 3_500, "the last ended after {ended} s");

    world.down = false;
    let back = world.second();
    let (mut after, mut most_at_once) = (0, 0);
    while world.ready() < ROLES {
        let calls = world.pass();
        after += calls;
        most_at_once = most_at_once.max(calls);
        assert!(
            world.second() < back + 120,
            "{} of {ROLES} are back",
            world.ready()
        );
    }
    let seconds = world.second() - back;
    eprintln!(
        "STS away for {ended} s: {in_outage} calls meanwhile, {busiest} in the busiest second; back: \
         {after} calls, {most_at_once} in the busiest second, all served after {seconds} s"
    );
    assert_eq!(after, ROLES, "one call for each role");
    let limit = 200 + FETCHERS;
    assert!(busiest <= limit && most_at_once <= limit);
    // The next renewal does not come in one heap either.
    let mut heap = 0;
    for _ in 0..3_600 {
        heap = heap.max(world.pass());
    }
    assert!(heap <= 100, "{heap} renewals in one second");
    assert_eq!(world.ready(), ROLES);
}
