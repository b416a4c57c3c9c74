//! Two faults at once, where they plausibly meet.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiam_loadtest::rig::Program::{Agent, Server};
use kiam_loadtest::rig::{pass, within};
use kiam_sim::faults::Reach;

use crate::agent::{list_with, token};
use crate::api::forgotten;
use crate::{
    ENOUGH, NO_AGENT, RECONNECTS, STS_ASKED_AGAIN, STS_ASKED_RARELY, WATCHES, ip, nobody_noticed,
    rig, saw_only,
};

/// The new server has nothing and cannot get anything; the nodes have everything that they need.
#[test]
fn a_server_restarts_while_sts_throttles() {
    let rig = rig();
    let before = rig.sts().total();
    let witness = rig.witness();
    rig.sts().throttle_share(1.0);
    for _ in 0..2 {
        rig.kill(Server).unwrap();
        rig.restart(Server).unwrap();
        witness.sees(ENOUGH).unwrap();
    }
    // A new pod whose role is on the node already.
    rig.start_pod("known", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
    let throttled = rig.sts().total() - before;
    let heals = || {
        rig.sts().throttle_share(0.0);
        rig.start_pod("fresh", "fresh", ip(2))?;
        rig.served(ip(2), "fresh")
    };
    witness.heals(heals).unwrap();
    nobody_noticed("server-restarted+sts-throttling", STS_ASKED_RARELY, witness);
    assert!(throttled < 60, "{throttled} calls while throttled");
}

#[test]
fn a_server_restarts_while_sts_is_down() {
    let rig = rig();
    let witness = rig.witness();
    rig.sts().faults().set_reach(Reach::Down);
    rig.kill(Server).unwrap();
    rig.restart(Server).unwrap();
    rig.start_pod("known", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
    // Even an agent that is replaced meanwhile has them.
    rig.upgrade_agent().unwrap();
    rig.served(ip(1), "reader").unwrap();
    rig.kill(Server).unwrap();
    rig.restart(Server).unwrap();
    rig.served(ip(1), "reader").unwrap();
    witness.sees(ENOUGH).unwrap();
    let heals = || {
        rig.sts().faults().set_reach(Reach::Up);
        rig.start_pod("fresh", "fresh", ip(2))?;
        rig.served(ip(2), "fresh")
    };
    witness.heals(heals).unwrap();
    nobody_noticed("server-restarted+sts-down", STS_ASKED_AGAIN, witness);
}

#[test]
fn the_api_forgets_while_agents_come_back() {
    let rig = rig();
    let over = AtomicBool::new(false);
    let witness = rig.witness();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                rig.cluster().compact();
                rig.cluster().faults().expire_watches();
                pass(Duration::from_millis(300));
            }
        });
        let work = || -> anyhow::Result<()> {
            for round in 1..=3 {
                rig.upgrade_agent()?;
                rig.kill(Server)?;
                rig.restart(Server)?;
                rig.start_pod(&format!("new-{round}"), "writer", ip(round))?;
                rig.served(ip(round), "writer")?;
            }
            witness.sees(ENOUGH)
        };
        let worked = work();
        over.store(true, Ordering::Relaxed);
        worked.unwrap();
    });
    let heals = || {
        rig.delete_pod("new-1")?;
        forgotten(&rig, 1)
    };
    witness.heals(heals).unwrap();
    nobody_noticed("api-410-gone+agents-reconnect", WATCHES, witness);
}

#[test]
fn certificates_rotate_during_a_rolling_upgrade() {
    let rig = rig();
    let witness = rig.witness();
    rig.introduce_authority().unwrap();
    rig.upgrade_agent().unwrap();
    rig.rotate_certificates().unwrap();
    rig.stop(Server).unwrap();
    rig.restart(Server).unwrap();
    rig.start_pod("one", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
    rig.retire_authority().unwrap();
    rig.rotate_certificates().unwrap();
    rig.upgrade_agent().unwrap();
    rig.stop(Server).unwrap();
    let heals = || {
        rig.restart(Server)?;
        rig.start_pod("two", "writer", ip(2))?;
        rig.served(ip(2), "writer")
    };
    witness.heals(heals).unwrap();
    nobody_noticed("authority-replaced+rolling-upgrade", RECONNECTS, witness);
}

/// Server, Kubernetes API and STS are away at once, and then the agent dies too.
#[test]
fn everything_is_down_and_the_agent_is_killed() {
    let rig = rig();
    let (pod, role) = rig.granted().remove(0);
    let token = token(&rig, pod);
    let before = rig.ask(pod, &role).unwrap();
    // What it holds has been written down.
    pass(Duration::from_secs(1));
    rig.sts().faults().set_reach(Reach::Down);
    rig.cluster().faults().set_reach(Reach::Down);
    rig.kill(Server).unwrap();
    let witness = rig.witness();
    witness.sees(ENOUGH).unwrap();
    rig.kill(Agent).unwrap();
    let next_agent = || {
        rig.exec_agent()?;
        within("it answers", || list_with(&rig, pod, &token))
    };
    witness.heals(next_agent).unwrap();
    witness.sees(ENOUGH).unwrap();
    assert_eq!(witness.so_far().relapses, 0, "it needs nobody");
    assert_eq!(rig.ask(pod, &role).unwrap(), before);
    let all_back = || {
        rig.cluster().faults().set_reach(Reach::Up);
        rig.restart(Server)?;
        rig.sts().faults().set_reach(Reach::Up);
        rig.start_pod("fresh", "fresh", ip(1))?;
        rig.served(ip(1), "fresh")
    };
    witness.heals(all_back).unwrap();
    saw_only(&NO_AGENT, "all-down+agent-killed", STS_ASKED_AGAIN, witness);
}

/// The API is down while the server is replaced: it cannot know the cluster, and must not say that
/// there are no pods.
#[test]
fn a_server_starts_while_the_api_is_down() {
    let rig = rig();
    let witness = rig.witness();
    rig.kill(Server).unwrap();
    rig.cluster().faults().set_reach(Reach::Hanging);
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| rig.restart(Server));
        witness.sees(2 * ENOUGH).unwrap();
        let heals = || {
            rig.cluster().faults().set_reach(Reach::Up);
            rig.cluster().faults().disconnect_all();
            // It may have given up, as its owner would see: then it is started again.
            if starting.join().unwrap().is_err() {
                rig.restart(Server)?;
            }
            rig.start_pod("fresh", "fresh", ip(1))?;
            rig.served(ip(1), "fresh")
        };
        witness.heals(heals).unwrap();
    });
    nobody_noticed("server-started+api-hanging", WATCHES, witness);
}
