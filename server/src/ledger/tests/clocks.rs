//! Wall clocks that are wrong.

use super::*;

#[test]
fn the_wall_clock_may_jump() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.issue("a");
    bench.out();
    let wall = bench.now.wall;
    bench.now.wall = wall.after(20 * MINUTE);
    bench.on(Event::Tick);
    bench.check(&[]);
    bench.now.wall = wall.after(32 * MINUTE);
    bench.on(Event::Tick);
    bench.check(&["fetch a renewal"]);
    bench.now.wall = wall.after(2 * HOUR);
    bench.on(Event::Tick);
    bench.check(&["withdraw a", "hurry a new"]);
}

#[test]
fn what_a_jump_of_the_wall_clock_ends_is_asked_for_at_once() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.issue("a");
    bench.out();
    bench.now.wall = bench.now.wall.after(2 * HOUR);
    bench.on(Event::Tick);
    bench.check(&["withdraw a", "fetch a new"]);
}

#[test]
fn a_wall_clock_set_back_does_not_stretch_a_life() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    bench.issue("a");
    bench.now.wall = UnixSeconds::new(bench.now.wall.get() - 7_200);
    bench.pass(HOUR);
    assert!(bench.out().contains(&"withdraw a".to_owned()));
}

#[test]
fn credentials_that_are_over_on_arrival_are_an_error() {
    let mut bench = Bench::new();
    bench.granted("p", "a");
    let issued = Issued {
        access_key_id: "ASIAEXAMPLE0000000".into(),
        secret_access_key: Zeroizing::new("s".into()),
        session_token: Zeroizing::new("t".into()),
        expires_at: bench.now.wall,
        duration: HOUR,
        asked_at: bench.now.monotonic,
    };
    let id = request("a").id();
    bench.on(Event::Answered {
        id,
        outcome: Ok(issued),
    });
    let account = bench.ledger.account(&id).unwrap();
    assert_eq!((account.failures, account.standing), (1, Standing::Pending));
    assert!(account.last_error.unwrap().contains("expires_at"));
}
