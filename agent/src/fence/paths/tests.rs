use proptest::prelude::*;

use super::*;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn route(last: u8, interface: InterfaceIndex) -> Change {
    Change::Route {
        ip: ip(last),
        interface,
        table: 254,
    }
}

fn no_route(last: u8, interface: InterfaceIndex) -> Change {
    Change::NoRoute {
        ip: ip(last),
        interface,
        table: 254,
    }
}

#[track_caller]
fn check(changes: &[Change], expected: &[FenceEvent]) {
    let mut paths = Paths::default();
    let mut events: Vec<FenceEvent> = changes
        .iter()
        .flat_map(|&change| paths.on(change))
        .collect();
    events.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(events, expected);
}

use FenceEvent::{Back, Gone};

#[test]
fn what_an_earlier_agent_saw_go_is_waited_for() {
    let mut paths = Paths::default();
    for change in [Change::Up(7), Change::Up(8), route(2, 8), route(4, 8)] {
        paths.on(change);
    }
    let left = [(ip(1), 7), (ip(2), 8), (ip(3), 9), (ip(4), 7)];
    assert_eq!(paths.expect_back(&left), [Back(ip(2))]);
    assert_eq!(paths.left(), [(ip(1), 7), (ip(4), 7)]);
    assert_eq!(paths.on(route(1, 7)), [Back(ip(1))]);
}

#[test]
fn a_route_that_goes_takes_its_pod() {
    check(&[route(1, 7)], &[]);
    check(&[route(1, 7), no_route(1, 7)], &[Gone(ip(1))]);
    check(&[no_route(1, 7)], &[]);
    check(&[route(1, 7), no_route(1, 8)], &[]);
}

#[test]
fn an_interface_that_goes_takes_every_pod_behind_it() {
    let both = [Gone(ip(1)), Gone(ip(2))];
    check(
        &[route(1, 7), route(2, 7), route(3, 8), Change::Deleted(7)],
        &both,
    );
    check(
        &[
            route(1, 7),
            route(2, 7),
            Change::Down(7),
            Change::Deleted(7),
        ],
        &both,
    );
}

#[test]
fn only_the_same_interface_brings_a_pod_back() {
    check(
        &[route(1, 7), no_route(1, 7), route(1, 7)],
        &[Back(ip(1)), Gone(ip(1))],
    );
    check(&[route(1, 7), no_route(1, 7), route(1, 8)], &[Gone(ip(1))]);
    check(
        &[
            route(1, 7),
            no_route(1, 7),
            route(1, 8),
            no_route(1, 8),
            route(1, 7),
        ],
        &[Gone(ip(1)), Gone(ip(1))],
    );
    check(
        &[route(1, 7), Change::Down(7), route(1, 7)],
        &[Back(ip(1)), Gone(ip(1))],
    );
}

#[test]
fn a_replaced_route_is_an_end() {
    check(&[route(1, 7), route(1, 8)], &[Gone(ip(1))]);
    check(&[route(1, 7), route(1, 7)], &[]);
}

#[test]
fn a_second_table_keeps_an_address() {
    let elsewhere = Change::Route {
        ip: ip(1),
        interface: 7,
        table: 101,
    };
    check(&[route(1, 7), elsewhere, no_route(1, 7)], &[]);
    check(
        &[route(1, 7), elsewhere, Change::Deleted(7)],
        &[Gone(ip(1))],
    );
}

#[test]
fn a_bridge_port_that_goes_takes_its_pod() {
    let mac = [2, 0, 0, 0, 0, 1];
    let seen = Change::Neighbour { ip: ip(1), mac };
    let learned = Change::Learned { mac, port: 9 };
    check(&[seen, learned, Change::Deleted(9)], &[Gone(ip(1))]);
    check(&[learned, seen, Change::Deleted(8)], &[]);
    check(&[learned, Change::Deleted(9), seen], &[]);
}

#[test]
fn what_was_saved_is_compared_with_what_is() {
    let mut paths = Paths::default();
    for interface in [5, 7, 8, 9, 11] {
        paths.on(Change::Up(interface));
    }
    for change in [route(1, 7), route(2, 8), route(3, 9)] {
        paths.on(change);
    }
    // As it was; behind another interface; behind one that is gone; idle behind a bridge port.
    let saved = [(ip(1), 7), (ip(2), 5), (ip(4), 6), (ip(5), 11)];
    assert_eq!(paths.no_longer(&saved), [Gone(ip(2)), Gone(ip(4))]);
}

#[test]
fn only_the_way_to_pods_tells_of_their_end() {
    let mut paths = Paths::default();
    let mac = [2, 0, 0, 0, 0, 1];
    for change in [
        // The node's name server, say.
        route(1, 2),
        Change::Neighbour { ip: ip(2), mac },
        Change::Learned { mac, port: 9 },
        route(3, 7),
    ] {
        paths.on(change);
    }
    let check = |pods: &[u8], signal| {
        assert_eq!(paths.signal(pods.iter().copied().map(ip)), signal);
    };
    check(&[], Signal::None);
    check(&[4, 5], Signal::None);
    check(&[4, 2], Signal::Bridge);
    check(&[4, 2, 3], Signal::Routes);
    assert!(paths.is_reachable(ip(2)) && paths.is_reachable(ip(3)) && !paths.is_reachable(ip(4)));
}

#[test]
fn lost_messages_are_made_up_for() {
    let mut paths = Paths::default();
    for change in [route(1, 7), route(2, 8), route(3, 9), no_route(3, 9)] {
        paths.on(change);
    }
    let mut fresh = Paths::default();
    for change in [route(1, 7), route(2, 18), route(3, 9), route(4, 10)] {
        fresh.on(change);
    }
    let events = paths.replaced_by(fresh);
    assert_eq!(events, [Gone(ip(2)), Back(ip(3))]);
}

#[test]
fn who_went_while_messages_were_lost_may_come_back() {
    let mut paths = Paths::default();
    for change in [Change::Up(7), Change::Up(8), Change::Up(9)] {
        paths.on(change);
    }
    for change in [route(1, 7), route(2, 8), route(3, 9), no_route(3, 9)] {
        paths.on(change);
    }
    let mut fresh = Paths::default();
    fresh.on(Change::Up(7));
    let mut events = paths.replaced_by(fresh);
    events.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(events, [Gone(ip(1)), Gone(ip(2))]);
    assert_eq!(paths.left(), [(ip(1), 7)], "the other interfaces are gone");
    assert_eq!(paths.on(route(2, 8)), []);
    assert_eq!(paths.on(route(1, 7)), [Back(ip(1))]);
}

proptest! {
    /// Whatever the kernel says in whatever order: an address that has no path has been
    /// reported gone after its last path, and nobody comes back on another interface.
    #[test]
    fn nobody_without_a_path_is_left_unreported(
        steps in proptest::collection::vec((0u8..4, 0u8..4, 1u32..5), 0..60)
    ) {
        let mut paths = Paths::default();
        let mut served: HashMap<IpAddr, InterfaceIndex> = HashMap::new();
        for (kind, last, interface) in steps {
            let change = match kind {
                0 | 1 => route(last, interface),
                2 => no_route(last, interface),
                _ => Change::Deleted(interface),
            };
            let events = paths.on(change);
            for event in &events {
                if let Gone(ip) = event { served.remove(ip); }
                if let Back(ip) = event {
                    prop_assert!(paths.is_behind(*ip, interface));
                }
            }
            // The server names whoever has a path now.
            for (ip, interface) in paths.interfaces() {
                served.insert(ip, interface);
            }
            for (ip, interface) in &served {
                prop_assert!(paths.is_behind(*ip, *interface), "{ip} left unreported");
            }
        }
    }
}
