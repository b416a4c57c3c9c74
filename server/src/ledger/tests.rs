mod clocks;
mod refusals;

use kiam_wire::Refusal;
use zeroize::Zeroizing;

use super::*;
use crate::policy::Session;
use crate::sts::schedule::Urgency;

const HOUR: Duration = Duration::from_hours(1);
const MINUTE: Duration = Duration::from_mins(1);

/// A ledger, a time, and what has come out since last asked.
struct Bench {
    ledger: Ledger,
    now: Now,
    effects: Vec<Effect>,
}

impl Bench {
    fn new() -> Self {
        let now = Now {
            monotonic: Moment::ORIGIN,
            wall: UnixSeconds::new(1_800_000_000),
        };
        Self {
            ledger: Ledger::new(Pace::default(), 7, now),
            now,
            effects: Vec::new(),
        }
    }

    fn on(&mut self, event: Event) {
        self.ledger.on(event, self.now, &mut self.effects);
    }

    fn granted(&mut self, name: &str, role: &str) {
        let request = request(role);
        self.on(Event::Granted {
            pod: pod(name),
            request,
        });
    }

    fn gone(&mut self, name: &str) {
        self.on(Event::Gone { pod: pod(name) });
    }

    fn held(&mut self, name: &str, role: &str, left: Duration) {
        let event = Event::Held {
            pod: pod(name),
            id: request(role).id(),
            expires_at: self.now.wall.after(left),
        };
        self.on(event);
    }

    fn issue(&mut self, role: &str) {
        let issued = Issued {
            access_key_id: "ASIAEXAMPLE0000000".into(),
            secret_access_key: Zeroizing::new("s".into()),
            session_token: Zeroizing::new("t".into()),
            expires_at: self.now.wall.after(HOUR),
            duration: HOUR,
            asked_at: self.now.monotonic,
        };
        let id = request(role).id();
        let outcome = Ok(issued);
        self.on(Event::Answered { id, outcome });
    }

    fn fail(&mut self, role: &str, error: IssueError) {
        let id = request(role).id();
        let outcome = Err(error);
        self.on(Event::Answered { id, outcome });
    }

    /// Lets time pass, with every tick on the way.
    fn pass(&mut self, duration: Duration) {
        let until = self.now.after(duration);
        while self.ledger.wakes_at() < until.monotonic {
            let step = self.ledger.wakes_at().since(self.now.monotonic);
            // Whole seconds, so that both clocks stay together.
            let step = Duration::from_secs(step.as_secs() + 1);
            self.now = self.now.after(step);
            self.on(Event::Tick);
        }
        self.now = Now {
            monotonic: self.now.monotonic.max(until.monotonic),
            wall: self.now.wall.max(until.wall),
        };
        self.on(Event::Tick);
    }

    fn of(&self, name: &str) -> Option<Standing> {
        self.ledger.standing_of(&pod(name))
    }

    /// What has come out since the last time, in words.
    fn out(&mut self) -> Vec<String> {
        let name = |id: CredentialId| {
            ["a", "b", "c"]
                .into_iter()
                .find(|role| request(role).id() == id)
                .unwrap_or("?")
        };
        let urgent = |urgency| match urgency {
            Urgency::Waited => "waited",
            Urgency::New => "new",
            Urgency::Shared => "shared",
            Urgency::Renewal { .. } => "renewal",
            Urgency::Doubtful => "doubtful",
        };
        let word = |effect| match effect {
            Effect::Fetch { request, urgency } => {
                format!("fetch {} {}", name(request.id()), urgent(urgency))
            }
            Effect::Hurry(id, urgency) => format!("hurry {} {}", name(id), urgent(urgency)),
            Effect::Cancel(id) => format!("cancel {}", name(id)),
            Effect::Publish(credentials) => format!("publish {}", name(credentials.id())),
            Effect::Withdraw(id) => format!("withdraw {}", name(id)),
            Effect::Refuse(id, refused) => format!("refuse {}: {}", name(id), refused.text()),
            Effect::Retell(pod) => format!("retell {}", pod.as_str()),
        };
        self.effects.drain(..).map(word).collect()
    }

    #[track_caller]
    fn check(&mut self, expected: &[&str]) {
        assert_eq!(self.out(), expected);
    }
}

fn pod(name: &str) -> PodUid {
    PodUid::try_new(name).unwrap()
}

/// Roles that begin alike up to a dot are one role with different sessions.
fn request(role: &str) -> Arc<RoleRequest> {
    let name = role.split('.').next().unwrap();
    Arc::new(RoleRequest::new(Session {
        role: RoleArn::parse(&format!("arn:aws:iam::123456789012:role/{name}")).unwrap(),
        name: format!("kiam-{role}"),
        external_id: None,
        tags: vec![],
        transitive_keys: vec![],
        policy_arns: vec![],
        source_identity: None,
        duration: HOUR,
    }))
}

fn denied() -> IssueError {
    IssueError::Denied("trust policy".into())
}

fn unreachable() -> IssueError {
    IssueError::Unreachable("time-out".into())
}

#[test]
fn one_call_however_many_pods() {
    let mut bench = Bench::new();
    for name in ["p1", "p2", "p3"] {
        bench.granted(name, "a");
    }
    bench.granted("p1", "a");
    bench.check(&["fetch a new"]);
    let id = request("a").id();
    assert_eq!(bench.ledger.standing(&id), Some(Standing::Pending));
    bench.issue("a");
    bench.check(&["publish a"]);
    assert!(matches!(
        bench.ledger.standing(&id),
        Some(Standing::Ready(_))
    ));
    bench.granted("p4", "a");
    bench.check(&[]);
    assert_eq!(bench.ledger.pods(&id).count(), 4);
}

#[test]
fn renewal_is_early_and_an_answer_always_has_half_an_hour_left() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.issue("a");
    bench.pass(23 * MINUTE);
    bench.check(&["fetch a new", "publish a"]);
    bench.pass(6 * MINUTE);
    bench.check(&["fetch a renewal"]);
    bench.issue("a");
    bench.check(&["publish a"]);
}

#[test]
fn while_sts_is_away_the_old_ones_are_kept_to_their_end_and_then_taken_back() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.issue("a");
    bench.out();
    let mut fetches = 0;
    for _ in 0..70 {
        bench.pass(MINUTE);
        for word in bench.out() {
            match word.as_str() {
                "fetch a renewal" | "fetch a new" => {
                    fetches += 1;
                    bench.fail("a", unreachable());
                }
                "hurry a new" => {}
                "withdraw a" => {
                    let passed = bench.now.monotonic.since_origin();
                    assert!(
                        passed > 59 * MINUTE && passed <= HOUR + MINUTE,
                        "{passed:?}"
                    );
                }
                other => panic!("{other}"),
            }
        }
    }
    assert!((20..200).contains(&fetches), "{fetches}");
    let id = request("a").id();
    assert_eq!(bench.ledger.standing(&id), Some(Standing::Pending));
    bench.pass(2 * MINUTE);
    bench.out();
    bench.issue("a");
    bench.check(&["publish a"]);
}

#[test]
fn a_renewal_that_hangs_past_the_end_becomes_a_first_call() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.issue("a");
    bench.pass(HOUR);
    bench.check(&[
        "fetch a new",
        "publish a",
        "fetch a renewal",
        "withdraw a",
        "hurry a new",
    ]);
}

#[test]
fn credentials_outlive_their_last_pod_by_a_grace() {
    let mut bench = Bench::new();
    bench.granted("p1", "a");
    bench.issue("a");
    bench.gone("p1");
    bench.check(&["fetch a new", "publish a"]);
    bench.pass(2 * MINUTE);
    bench.granted("p2", "a");
    bench.check(&["publish a"]);
    bench.gone("p2");
    bench.pass(6 * MINUTE);
    bench.check(&["withdraw a"]);
    assert_eq!(bench.ledger.standing(&request("a").id()), None);
    assert_eq!(bench.ledger.roles.len() + bench.ledger.due.len(), 0);
    bench.granted("p3", "a");
    bench.check(&["fetch a new"]);
}

#[test]
fn an_orphan_is_not_renewed() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.issue("a");
    bench.pass(22 * MINUTE);
    bench.gone("p");
    bench.pass(4 * MINUTE + MINUTE / 2);
    bench.check(&["fetch a new", "publish a"]);
    bench.granted("p", "a");
    bench.pass(3 * MINUTE);
    bench.check(&["publish a", "fetch a renewal"]);
}

#[test]
fn orphans_are_bounded() {
    let mut bench = Bench::new();
    bench.ledger.pace.orphans_max = 1;
    for role in ["a", "b"] {
        bench.granted(role, role);
        bench.issue(role);
        bench.pass(MINUTE);
    }
    bench.out();
    bench.gone("a");
    bench.check(&[]);
    bench.pass(MINUTE);
    bench.gone("b");
    bench.check(&["withdraw a"]);
    assert_eq!(bench.ledger.totals().orphans, 1);
}

#[test]
fn a_call_nobody_needs_is_cancelled_and_its_answer_dropped() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.gone("p");
    bench.issue("a");
    bench.check(&["fetch a new", "cancel a"]);
    assert_eq!(bench.ledger.totals(), Totals::default());
}

#[test]
fn a_changed_role_moves_the_pod() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.granted("p", "b");
    bench.check(&["fetch a new", "cancel a", "fetch b new"]);
    assert_eq!(bench.ledger.id_of(&pod("p")), Some(request("b").id()));
}

#[test]
fn what_every_agent_still_serves_is_fetched_later() {
    let mut bench = Bench::new();
    bench.granted("p1", "a");
    bench.granted("p2", "a");
    bench.held("p1", "a", 50 * MINUTE);
    bench.held("p1", "b", 50 * MINUTE);
    bench.check(&["fetch a new", "hurry a shared"]);
    bench.held("p2", "a", 55 * MINUTE);
    bench.check(&["cancel a"]);
    bench.pass(20 * MINUTE);
    bench.check(&["fetch a renewal"]);
}

#[test]
fn a_pod_that_nobody_serves_ends_the_waiting() {
    let mut bench = Bench::new();
    bench.granted("p1", "a");
    bench.held("p1", "a", 55 * MINUTE);
    bench.check(&["fetch a new", "cancel a"]);
    bench.granted("p2", "a");
    bench.check(&["fetch a shared"]);
    let mut bench = Bench::new();
    bench.granted("p1", "b");
    bench.held("p1", "b", 20 * MINUTE);
    bench.check(&["fetch b new", "hurry b renewal"]);
}

#[test]
fn restarts_do_not_stampede() {
    let mut bench = Bench::new();
    let roles: Vec<_> = (0..2_000).map(|i| format!("r{i}")).collect();
    for role in &roles {
        bench.granted(role, role);
        bench.held(role, role, 45 * MINUTE);
    }
    bench.out();
    let mut most = 0;
    let mut all = 0;
    for _ in 0..15 {
        bench.pass(MINUTE);
        let fetches = bench.out().len();
        all += fetches;
        most = most.max(fetches);
    }
    assert_eq!(all, 2_000);
    assert!(most < 300, "{most} in one minute");
}

#[test]
fn a_parked_request_puts_its_pod_first() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.on(Event::Waiting { pod: pod("p") });
    bench.on(Event::Waiting { pod: pod("p") });
    bench.on(Event::Waiting {
        pod: pod("unknown"),
    });
    bench.check(&["fetch a new", "hurry a waited"]);
    bench.issue("a");
    bench.on(Event::Waiting { pod: pod("p") });
    bench.check(&["publish a"]);
}
