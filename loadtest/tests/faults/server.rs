//! All servers down; a server restarted.

use kiam_loadtest::rig::Program::{Agent, Server};

use crate::{ENOUGH, LIST, RECONNECTS, ip, nobody_noticed, rig};

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

    let heals = || {
        rig.restart(Server)?;
        rig.served(ip(1), "reader")
    };
    witness.heals(heals).unwrap();
    nobody_noticed("all-servers-down", RECONNECTS, witness);
}

#[test]
fn a_server_restarted_in_order_and_killed() {
    let rig = rig();
    let witness = rig.witness();
    for round in 1..=2 {
        let heals = |name: &str, role: &str, last: u8| {
            rig.restart(Server)?;
            rig.start_pod(&format!("{name}-{round}"), role, ip(last))?;
            rig.served(ip(last), role)
        };
        rig.stop(Server).unwrap();
        let stopped = || heals("stopped", "writer", round);
        witness.heals(stopped).unwrap();
        rig.kill(Server).unwrap();
        let killed = || heals("killed", "batch", 10 + round);
        witness.heals(killed).unwrap();
    }
    nobody_noticed("server-restarted", RECONNECTS, witness);
    // Each of the five servers fetches each role once at most.
    for role in ["reader", "writer", "batch"] {
        let calls = rig.sts().count(&rig.arn(role));
        assert!((1..=5).contains(&calls), "{role}: {calls} calls");
    }
    assert!(rig.metric(Agent, "kiam_agent_snapshot_addresses").unwrap() >= 16.0);
}
