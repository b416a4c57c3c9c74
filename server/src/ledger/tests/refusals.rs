//! Roles that STS refuses.

use super::*;

#[test]
fn a_refused_role_says_so_is_asked_rarely_and_heals() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.fail("a", denied());
    bench.check(&["fetch a new", "refuse a: trust policy"]);
    let id = request("a").id();
    let Some(Standing::Refused(refused)) = bench.ledger.standing(&id) else {
        panic!("not refused");
    };
    assert_eq!(refused.reason(), Refusal::StsRefused);
    let mut fetches = 0;
    for _ in 0..60 {
        bench.pass(MINUTE);
        for word in bench.out() {
            assert_eq!(word, "fetch a doubtful");
            fetches += 1;
            bench.fail("a", denied());
        }
    }
    assert!((12..40).contains(&fetches), "{fetches} calls in an hour");
    bench.granted("late", "a");
    bench.check(&[]);
    bench.pass(5 * MINUTE);
    bench.check(&["fetch a doubtful"]);
    bench.issue("a");
    bench.check(&["publish a"]);
}

#[test]
fn a_refused_renewal_leaves_what_is_valid() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.issue("a");
    bench.pass(29 * MINUTE);
    bench.fail("a", denied());
    bench.check(&["fetch a new", "publish a", "fetch a renewal"]);
    for _ in 0..31 {
        bench.pass(MINUTE);
        bench.fail("a", denied());
    }
    let out = bench.out();
    let end: Vec<_> = out
        .iter()
        .filter(|word| !word.starts_with("fetch") && !word.starts_with("hurry"))
        .collect();
    assert_eq!(end, ["withdraw a", "refuse a: trust policy"]);
}

#[test]
fn a_pod_that_keeps_crashing_does_not_ask_at_every_start() {
    let mut bench = Bench::new();
    bench.granted("p0", "a");
    bench.fail("a", denied());
    bench.check(&["fetch a new", "refuse a: trust policy"]);
    for i in 0..100 {
        bench.gone(&format!("p{i}"));
        bench.granted(&format!("p{}", i + 1), "a");
    }
    bench.check(&[]);
}

#[test]
fn a_refusal_after_a_restart_takes_nothing_away() {
    for is_held_first in [true, false] {
        let mut bench = Bench::new();
        bench.granted("p", "a");
        bench.out();
        if is_held_first {
            // With less than half of its life left it is asked about at once.
            bench.held("p", "a", 25 * MINUTE);
            bench.check(&["hurry a renewal"]);
            bench.fail("a", denied());
            bench.check(&["refuse a: trust policy"]);
        } else {
            bench.fail("a", denied());
            bench.check(&["refuse a: trust policy"]);
            assert!(matches!(bench.of("p"), Some(Standing::Refused(_))));
            bench.held("p", "a", 25 * MINUTE);
            bench.check(&["retell p"]);
            // Said again by an agent that comes back: no news.
            bench.held("p", "a", 25 * MINUTE);
            bench.check(&[]);
        }
        assert_eq!(bench.of("p"), Some(Standing::Pending));
        for _ in 0..24 {
            bench.pass(MINUTE);
            bench.fail("a", denied());
            assert_eq!(bench.of("p"), Some(Standing::Pending));
        }
        assert!(bench.out().iter().all(|word| word.starts_with("fetch")));
        bench.pass(MINUTE + Duration::from_secs(2));
        assert!(matches!(bench.of("p"), Some(Standing::Refused(_))));
        assert!(bench.out().contains(&"retell p".to_owned()));
    }
}

#[test]
fn a_refusal_meets_the_pods_that_have_nothing() {
    let mut bench = Bench::new();
    bench.granted("served", "a");
    bench.granted("new", "a");
    bench.fail("a", denied());
    bench.held("served", "a", 50 * MINUTE);
    bench.check(&["fetch a new", "refuse a: trust policy", "retell served"]);
    assert_eq!(bench.of("served"), Some(Standing::Pending));
    assert!(matches!(bench.of("new"), Some(Standing::Refused(_))));
    bench.gone("served");
    bench.granted("served", "a");
    assert!(
        matches!(bench.of("served"), Some(Standing::Refused(_))),
        "a pod that was taken away holds nothing"
    );
}

#[test]
fn many_sessions_of_a_refused_role_are_spaced_out() {
    let mut bench = Bench::new();
    let roles: Vec<_> = (0..3).map(|i| format!("a.{i}")).collect();
    for role in &roles {
        bench.granted(role, role);
        bench.fail(role, denied());
    }
    bench.out();
    for i in 3..13 {
        bench.granted(&format!("a.{i}"), &format!("a.{i}"));
    }
    assert_eq!(bench.out().len(), 1);
    bench.pass(Duration::from_secs(4));
    assert!((3..=6).contains(&bench.out().len()));
    bench.issue("a.3");
    bench.pass(Duration::from_secs(12));
    let healed = bench.out();
    assert!(healed.len() >= 8, "{healed:?}");
}

/// A roll-out whose pods each have a session of their own, of a role that is refused.
#[test]
fn pods_that_are_gone_keep_no_slot_of_a_refused_role() {
    let mut bench = Bench::new();
    for i in 0..3 {
        let role = format!("a.{i}");
        bench.granted(&role, &role);
        bench.fail(&role, denied());
    }
    let crowd: Vec<_> = (3..603).map(|i| format!("a.{i}")).collect();
    for role in &crowd {
        bench.granted(role, role);
    }
    for role in &crowd {
        bench.gone(role);
    }
    bench.out();
    bench.granted("a.new", "a.new");
    bench.pass(Duration::from_secs(3));
    assert!(bench.out().iter().any(|effect| effect.starts_with("fetch")));
    // The same with those that were refused before they went: their memory outlives them.
    for round in 0..300 {
        let role = format!("a.{}", 1_000 + round);
        bench.granted(&role, &role);
        bench.gone(&role);
        bench.pass(Duration::from_millis(500));
    }
    bench.out();
    bench.granted("a.newer", "a.newer");
    bench.pass(Duration::from_secs(3));
    assert!(bench.out().iter().any(|effect| effect.starts_with("fetch")));
}
