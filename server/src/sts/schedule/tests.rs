use super::*;
use crate::policy::Session;

fn at(seconds: u64) -> Moment {
    Moment::new(Duration::from_secs(seconds))
}

fn schedule(fetchers: usize, calls_per_s_max: f64) -> Schedule {
    let fetchers = NonZeroUsize::new(fetchers).unwrap();
    let limits = Limits {
        fetchers,
        calls_per_s_max,
    };
    Schedule::new(limits, Moment::ORIGIN)
}

fn request(role: &str, session: &str) -> Arc<RoleRequest> {
    let arn = format!("arn:aws:iam::123456789012:role/{role}");
    Arc::new(RoleRequest::new(Session {
        role: RoleArn::parse(&arn).unwrap(),
        name: format!("kiam-{session}"),
        external_id: None,
        tags: vec![],
        transitive_keys: vec![],
        policy_arns: vec![],
        source_identity: None,
        duration: Duration::from_hours(1),
    }))
}

fn fetch(schedule: &mut Schedule, role: &str, urgency: Urgency) -> CredentialId {
    let request = request(role, "x");
    let id = request.id();
    schedule.order(Order::Fetch(request, urgency));
    id
}

/// The roles started now, in order, none of them ended.
fn started(schedule: &mut Schedule, now: Moment) -> Vec<String> {
    let mut roles = Vec::new();
    while let Next::Start(request) = schedule.next(now) {
        roles.push(request.role().name().to_owned());
    }
    roles
}

#[test]
fn a_call_whose_answer_is_on_the_way_is_not_made_again() {
    let mut schedule = schedule(2, 10.0);
    let later = fetch(&mut schedule, "later", Urgency::New);
    let id = fetch(&mut schedule, "a", Urgency::New);
    schedule.order(Order::Hurry(id, Urgency::Waited));
    assert_eq!(started(&mut schedule, at(0)), ["a"]);
    assert_eq!(started(&mut schedule, at(1)), ["later"]);
    for id in [id, later] {
        schedule.finished(id, Ended::Answered, at(1));
    }
    // Whoever hurries has not heard of the answer yet.
    schedule.order(Order::Hurry(id, Urgency::Waited));
    assert_eq!((schedule.waiting(), schedule.running()), (0, 0));
}

#[test]
fn who_has_nothing_comes_first_then_who_ends_first() {
    let mut schedule = schedule(10, 1000.0);
    let renewal = |minutes: u64| Urgency::Renewal {
        by: at(minutes * 60),
    };
    fetch(&mut schedule, "doubtful", Urgency::Doubtful);
    fetch(&mut schedule, "late", renewal(40));
    fetch(&mut schedule, "early", renewal(35));
    fetch(&mut schedule, "shared", Urgency::Shared);
    fetch(&mut schedule, "new1", Urgency::New);
    fetch(&mut schedule, "new2", Urgency::New);
    fetch(&mut schedule, "waited", Urgency::Waited);
    assert_eq!(
        started(&mut schedule, at(1)),
        [
            "waited", "new1", "new2", "shared", "early", "late", "doubtful"
        ]
    );
}

#[test]
fn a_pressing_renewal_gets_every_fourth_call() {
    let mut schedule = schedule(10, 1000.0);
    for new in 0..6 {
        fetch(&mut schedule, &format!("new{new}"), Urgency::New);
    }
    for old in 0..2 {
        let by = at(300 + old);
        fetch(&mut schedule, &format!("old{old}"), Urgency::Renewal { by });
    }
    assert_eq!(
        started(&mut schedule, at(1)),
        [
            "old0", "new0", "new1", "new2", "old1", "new3", "new4", "new5"
        ]
    );
}

#[test]
fn a_second_order_changes_the_place_and_a_cancelled_one_loses_it() {
    let mut schedule = schedule(10, 1000.0);
    fetch(&mut schedule, "first", Urgency::New);
    fetch(&mut schedule, "second", Urgency::New);
    let third = fetch(&mut schedule, "third", Urgency::New);
    fetch(&mut schedule, "second", Urgency::Waited);
    schedule.order(Order::Cancel(third));
    assert_eq!(started(&mut schedule, at(1)), ["second", "first"]);
    fetch(&mut schedule, "first", Urgency::Waited);
    assert_eq!(schedule.waiting(), 0, "it is being made already");
}

#[test]
fn there_are_never_more_calls_than_fetchers() {
    let mut schedule = schedule(2, 1000.0);
    let ids: Vec<_> = ["a", "b", "c"]
        .map(|role| fetch(&mut schedule, role, Urgency::New))
        .into();
    assert_eq!(started(&mut schedule, at(1)).len(), 2);
    schedule.finished(ids[0], Ended::Answered, at(2));
    assert_eq!(started(&mut schedule, at(2)), ["c"]);
}

#[test]
fn one_role_never_takes_more_than_half_of_the_fetchers() {
    let mut schedule = schedule(4, 1000.0);
    let slow: Vec<_> = (0..6).map(|i| request("slow", &i.to_string())).collect();
    for request in &slow {
        schedule.order(Order::Fetch(Arc::clone(request), Urgency::Waited));
    }
    fetch(&mut schedule, "other", Urgency::Doubtful);
    assert_eq!(started(&mut schedule, at(1)), ["slow", "slow", "other"]);
    schedule.order(Order::Cancel(slow[2].id()));
    schedule.finished(slow[0].id(), Ended::Answered, at(2));
    assert_eq!(started(&mut schedule, at(2)), ["slow"]);
    assert_eq!(schedule.waiting(), 2);
    schedule.finished(slow[1].id(), Ended::Answered, at(3));
    schedule.finished(slow[3].id(), Ended::Answered, at(3));
    assert_eq!(started(&mut schedule, at(3)), ["slow", "slow"]);
    assert_eq!((schedule.waiting(), schedule.held_back.len()), (0, 0));
}

#[test]
fn a_cancelled_call_leaves_its_turn_to_the_next_of_its_role() {
    let mut schedule = schedule(2, 1000.0);
    let [a, b, c] = ["a", "b", "c"].map(|session| request("slow", session));
    for request in [&a, &b, &c] {
        schedule.order(Order::Fetch(Arc::clone(request), Urgency::New));
    }
    assert_eq!(started(&mut schedule, at(1)), ["slow"]);
    schedule.finished(a.id(), Ended::Answered, at(2));
    schedule.order(Order::Cancel(b.id()));
    let Next::Start(next) = schedule.next(at(2)) else {
        panic!("nothing runs and {} wait", schedule.waiting());
    };
    assert_eq!(next.id(), c.id());
    assert_eq!((schedule.waiting(), schedule.held_back.len()), (0, 0));
}

/// Calls started within `seconds`, each ending at once as `ended` says.
fn run(schedule: &mut Schedule, from_s: u64, seconds: u64, ended: Ended) -> usize {
    let mut calls = 0;
    for tick in from_s * 10..(from_s + seconds) * 10 {
        let now = Moment::new(Duration::from_millis(tick * 100));
        while let Next::Start(request) = schedule.next(now) {
            calls += 1;
            schedule.finished(request.id(), ended, now);
        }
    }
    calls
}

#[test]
fn throttling_halves_the_rate_which_then_recovers() {
    let mut schedule = schedule(8, 20.0);
    for i in 0..10_000 {
        let request = request("role", &i.to_string());
        schedule.order(Order::Fetch(request, Urgency::New));
    }
    let calm = run(&mut schedule, 1, 10, Ended::Answered);
    assert!((195..=210).contains(&calm), "{calm} in 10 s at 20/s");
    let throttled = run(&mut schedule, 11, 60, Ended::Throttled);
    assert!(throttled < 100, "{throttled} in a minute of throttling");
    assert!(schedule.calls_per_s() < 2.0);
    let recovering = run(&mut schedule, 71, 60, Ended::Answered);
    assert!(
        (400..900).contains(&recovering),
        "{recovering} in the minute after"
    );
    assert!(schedule.calls_per_s() > 19.0);
}

#[test]
fn a_rate_that_makes_no_sense_is_the_least() {
    for rate in [f64::NAN, 0.0, -1.0] {
        assert!((schedule(1, rate).calls_per_s() - CALLS_PER_S_MIN).abs() < 1e-9);
    }
}

#[test]
fn the_time_it_asks_to_be_woken_at_is_enough() {
    let mut schedule = schedule(8, 3.0);
    for i in 0..50 {
        fetch(&mut schedule, &format!("r{i}"), Urgency::New);
    }
    let mut now = at(1);
    let mut wakes = 0;
    while schedule.waiting() > 0 {
        match schedule.next(now) {
            Next::Start(request) => schedule.finished(request.id(), Ended::Answered, now),
            Next::At(later) => {
                assert!(later > now);
                now = later;
                wakes += 1;
            }
            Next::Idle => panic!("work is waiting"),
        }
    }
    assert!(wakes <= 50, "{wakes}");
}
