//! The clock jumps. No machine's clock is touched: the deciding rooms of both programs are given the
//! time, and here it lies.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kiam_agent::clock::{Now as AgentNow, later};
use kiam_agent::data::dry::{Dry, DryRun};
use kiam_agent::data::{DataConfig, TokenKey};
use kiam_agent::snapshot::Store;
use kiam_agent::snapshot::store::Doors;
use kiam_agent::tally::Tallies;
use kiam_loadtest::rig::Seen;
use kiam_server::arn::RoleArn;
use kiam_server::clock::{Moment, Now};
use kiam_server::ledger::{Effect, Event, Ledger, Pace, Standing};
use kiam_server::policy::{RoleRequest, Session};
use kiam_server::sts::{IssueError, Issued};
use kiam_wire::credentials::Unchecked;
use kiam_wire::{
    CredentialId, Credentials, Full, Pod, PodState, PodUid, Revision, UnixSeconds, Update,
};
use zeroize::Zeroizing;

use crate::{STS_ASKED_AGAIN, judge};

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const START_S: i64 = 1_800_000_000;
const HOUR: Duration = Duration::from_hours(1);

/// All was well `after` the clock was right again. There are no pods, but there is the line.
#[track_caller]
fn healed(fault: &str, after: Duration, within: Duration) {
    let seen = Seen {
        healed_after: Some(after),
        ..Seen::default()
    };
    judge(&[], fault, within, &seen);
}

// === the agent ===

fn data_config() -> DataConfig {
    DataConfig {
        audience: "kiam".into(),
        ..DataConfig::new(TokenKey::new([7; 32]))
    }
}

/// An agent that was given credentials for an hour at its start.
struct Agent {
    store: Store,
    start: AgentNow,
}

impl Agent {
    fn new() -> Self {
        let start = AgentNow {
            monotonic: AgentNow::read().monotonic,
            wall: UnixSeconds::new(START_S),
        };
        let id = CredentialId::new([1; 32]);
        let credentials = Credentials::try_new(Unchecked {
            id,
            role_name: "r".into(),
            role_arn: "arn:aws:iam::1:role/r".into(),
            access_key_id: "ASIA".into(),
            secret_access_key: Zeroizing::new("s".into()),
            session_token: Zeroizing::new("t".into()),
            issued_at: UnixSeconds::new(START_S),
            expires_at: UnixSeconds::new(START_S + 3600),
        });
        let pod = Pod {
            uid: PodUid::try_new("u").unwrap(),
            namespace: "n".into(),
            name: "p".into(),
            service_account: "s".into(),
            ips: vec![POD],
            host_network: false,
            imds_v2_required: false,
            state: PodState::Granted(id),
        };
        let full = Full {
            revision: Revision {
                epoch: 1,
                number: 1,
            },
            pods: vec![pod],
            credentials: vec![Arc::new(credentials.unwrap())],
            keys: None,
        };
        let mut store = Store::new(Doors::Metadata);
        store.apply(Update::Full(full), start).unwrap();
        Self { store, start }
    }

    /// What the pod is answered when the monotonic clock has moved by `ran` and the wall clock shows
    /// `wall_s` more than at the start.
    fn answers(&mut self, ran: Duration, wall_s: i64) -> bool {
        let now = AgentNow {
            monotonic: later(self.start.monotonic, ran),
            wall: UnixSeconds::new(START_S + wall_s),
        };
        // As the agent does every second.
        self.store.expire(now);
        let tallies = Tallies::new(1);
        let dry = DryRun::new(&data_config(), &tallies, now).unwrap();
        let request = b"GET /latest/meta-data/iam/security-credentials/r HTTP/1.1\r\n\r\n";
        let mut out = Vec::new();
        match dry.metadata(request, POD, &self.store.snapshot(now), &mut out) {
            Dry::Answered { status: 200, .. } => true,
            Dry::Parked => false,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_agents_clock_jumps() {
    let mut agent = Agent::new();
    assert!(agent.answers(HOUR / 2, 1_800));
    // Set forward past the end: they may have ended, so they are not served.
    assert!(!agent.answers(HOUR / 2, 7_200));
    // And back to what it was: they are good, and nobody had to be asked.
    assert!(agent.answers(HOUR / 2, 1_800));
    healed("agents-clock-jumps", Duration::ZERO, Duration::ZERO);
    // Suspended: the monotonic clock stood still, the wall clock did not.
    assert!(!agent.answers(Duration::ZERO, 3_600));
    // Set back a day: the monotonic clock still knows.
    assert!(agent.answers(HOUR / 2, -86_400));
    assert!(!agent.answers(HOUR, -86_400));
    // Then they are gone for good.
    assert!(!agent.answers(HOUR / 2, 1_800));
}

// === the server ===

struct Server {
    ledger: Ledger,
    request: Arc<RoleRequest>,
    now: Now,
    effects: Vec<Effect>,
}

impl Server {
    fn new() -> Self {
        let now = Now {
            monotonic: Moment::new(HOUR),
            wall: UnixSeconds::new(START_S),
        };
        let request = Arc::new(RoleRequest::new(Session {
            role: RoleArn::parse("arn:aws:iam::123456789012:role/r").unwrap(),
            name: "kiam-kiam".into(),
            external_id: None,
            tags: vec![],
            transitive_keys: vec![],
            policy_arns: vec![],
            source_identity: None,
            duration: HOUR,
        }));
        let mut server = Self {
            ledger: Ledger::new(Pace::default(), 1, now),
            request,
            now,
            effects: Vec::new(),
        };
        let pod = PodUid::try_new("u").unwrap();
        let request = Arc::clone(&server.request);
        server.tell(Event::Granted { pod, request });
        assert_eq!(server.fetches(), 1);
        server
    }

    fn tell(&mut self, event: Event) {
        self.ledger.on(event, self.now, &mut self.effects);
    }

    /// Calls ordered since last asked.
    fn fetches(&mut self) -> usize {
        let fetch = |effect: &Effect| matches!(effect, Effect::Fetch { .. });
        std::mem::take(&mut self.effects)
            .iter()
            .filter(|effect| fetch(effect))
            .count()
    }

    /// STS answers what was asked `took` ago; its own clock shows `sts_s` more than ours did at the
    /// start.
    fn answered(&mut self, took: Duration, sts_s: i64) {
        let issued = Issued {
            access_key_id: "ASIA".into(),
            secret_access_key: Zeroizing::new("s".into()),
            session_token: Zeroizing::new("t".into()),
            expires_at: UnixSeconds::new(START_S + sts_s + 3600),
            duration: HOUR,
            asked_at: self.now.monotonic.before(took),
        };
        let id = self.request.id();
        let outcome = Ok(issued);
        self.tell(Event::Answered { id, outcome });
    }

    fn pass(&mut self, monotonic: Duration, wall_s: i64) {
        self.now.monotonic = self.now.monotonic.after(monotonic);
        self.now.wall = UnixSeconds::new(self.now.wall.get() + wall_s);
        self.tell(Event::Tick);
    }

    /// Served, and not ended by our own clock.
    fn serves(&self) -> bool {
        match self.ledger.standing(&self.request.id()) {
            Some(Standing::Ready(credentials)) => {
                assert!(credentials.expires_at() > self.now.wall, "ended and shown");
                true
            }
            _ => false,
        }
    }

    /// Lets time pass until the ledger asks STS, or for two hours.
    fn until_it_asks(&mut self) -> Duration {
        let mut waited = Duration::ZERO;
        let step = Duration::from_secs(1);
        while self.fetches() == 0 {
            assert!(waited < 2 * HOUR, "it never asks again");
            self.pass(step, 1);
            waited += step;
        }
        waited
    }
}

#[test]
fn the_servers_clock_jumps_forward_and_back() {
    let mut server = Server::new();
    server.answered(Duration::ZERO, 0);
    assert!(server.serves());
    server.fetches();
    // Past the end: nothing that may have ended is shown, and new ones are asked for at once.
    server.pass(Duration::from_secs(10), 7_200);
    assert!(!server.serves());
    let waited = server.until_it_asks();
    assert!(waited <= Duration::from_mins(1), "{waited:?}");
    // STS's clock did not jump: what it gives has ended by ours, and is not shown.
    server.answered(Duration::ZERO, 10);
    assert!(!server.serves());
    // Set right again: it asks again by itself, and then shows what it is given.
    server.pass(Duration::from_secs(10), -7_190);
    let waited = server.until_it_asks();
    server.answered(Duration::ZERO, 30);
    assert!(server.serves());
    healed("servers-clock-jumps", waited, STS_ASKED_AGAIN);
}

/// A pair: the clock jumps while a renewal is under way.
#[test]
fn the_clock_jumps_during_a_renewal() {
    let mut longest = Duration::ZERO;
    for jump_s in [-86_400, -600, 600, 1_500, 7_200, 86_400] {
        let mut server = Server::new();
        server.answered(Duration::ZERO, 0);
        server.fetches();
        let until_renewal = server.until_it_asks();
        assert!(until_renewal <= HOUR / 2, "{until_renewal:?}");
        let sts_s = server.now.wall.get() - START_S;
        server.pass(Duration::from_secs(1), jump_s);
        let old_is_good = server.serves();
        server.answered(Duration::from_secs(1), sts_s);
        // Never less than before: an answer that our clock takes for ended takes nothing away.
        assert!(server.serves() || !old_is_good, "jump of {jump_s} s");
        // However the clock stands, it goes on renewing, and heals when the clock is set right.
        server.fetches();
        server.pass(Duration::from_secs(1), -jump_s);
        if !server.serves() {
            longest = longest.max(server.until_it_asks());
            server.answered(Duration::ZERO, server.now.wall.get() - START_S);
        }
        assert!(server.serves(), "jump of {jump_s} s");
    }
    healed("clock-jumps+renewal", longest, STS_ASKED_AGAIN);
}

/// A pair: STS fails while the clock jumps back and forth; nobody is stampeded.
#[test]
fn the_clock_jumps_while_sts_fails() {
    let mut server = Server::new();
    let mut calls = 0;
    for minute in 0..60_i64 {
        let failed = IssueError::Unreachable("silence".into());
        let id = server.request.id();
        server.tell(Event::Answered {
            id,
            outcome: Err(failed),
        });
        let jump = if minute % 2 == 0 { 3_600 } else { -3_600 };
        for _ in 0..60 {
            server.pass(Duration::from_secs(1), 1);
        }
        server.pass(Duration::from_secs(1), jump);
        calls += usize::from(server.fetches() > 0);
        assert!(!server.serves());
    }
    assert!(calls <= 60, "{calls} calls in an hour");
    // STS is back just after it has failed for the last time.
    let outcome = Err(IssueError::Unreachable("silence".into()));
    let id = server.request.id();
    server.tell(Event::Answered { id, outcome });
    let waited = server.until_it_asks();
    server.answered(Duration::ZERO, server.now.wall.get() - START_S);
    assert!(server.serves());
    healed("clock-jumps+sts-failing", waited, STS_ASKED_AGAIN);
}
