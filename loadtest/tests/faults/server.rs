//! All servers down; a server restarted.

use kiam_loadtest::rig::Program::{Agent, Server};

use crate::{ENOUGH, LIST, ip, nobody_noticed, rig};

#[test]
fn all_servers_down() {
    let rig = rig();
    let (pod, role) = rig.granted().remove(0);
    let before = rig.ask(pod, &role).unwrap();
    let witness = rig.witness();
    rig.kill(Server).unwrap();
    // A pod that comes now waits: nobody can say whose address that is.
    rig.start_pod("late", "reader", ip(1)).unwrap();
    let waited = rig.get(ip(1), LIST).unwrap();
    assert_eq!((waited.status, &*waited.body), (503, ""));
    assert!(waited.head.contains("retry-after: 1"), "{}", waited.head);
    witness.sees(ENOUGH).unwrap();
    // The same session, not a new one: nothing was fetched.
    assert_eq!(rig.ask(pod, &role).unwrap(), before);

    rig.restart(Server).unwrap();
    rig.served(ip(1), "reader").unwrap();
    nobody_noticed("all servers down", &witness.end());
}

#[test]
fn a_server_restarted_in_order_and_killed() {
    let rig = rig();
    let witness = rig.witness();
    for round in 1..=2 {
        rig.stop(Server).unwrap();
        rig.restart(Server).unwrap();
        rig.start_pod(&format!("stopped-{round}"), "writer", ip(round))
            .unwrap();
        rig.served(ip(round), "writer").unwrap();
        rig.kill(Server).unwrap();
        rig.restart(Server).unwrap();
        rig.start_pod(&format!("killed-{round}"), "batch", ip(10 + round))
            .unwrap();
        rig.served(ip(10 + round), "batch").unwrap();
    }
    witness.sees(ENOUGH).unwrap();
    nobody_noticed("server restarted four times", &witness.end());
    // Each of the five servers fetches each role once at most.
    for role in ["reader", "writer", "batch"] {
        let calls = rig.sts().count(&rig.arn(role));
        assert!((1..=5).contains(&calls), "{role}: {calls} calls");
    }
    assert!(rig.metric(Agent, "kiam_agent_snapshot_addresses").unwrap() >= 16.0);
}
