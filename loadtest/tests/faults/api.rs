//! The Kubernetes API down, hanging, failing, and forgetting its history.

use kiam_loadtest::rig::Program::Agent;
use kiam_loadtest::rig::{Rig, within};
use kiam_sim::faults::{Failures, Reach};

use crate::{ENOUGH, LIST, WATCHES, ip, nobody_noticed, rig};

/// The agent knows nobody behind the address. Whoever asks from there waits for as long as strangers
/// do, so that the agent is asked instead.
pub(crate) fn forgotten(rig: &Rig, last: u8) -> anyhow::Result<()> {
    let address = format!("\"{}\"", ip(last));
    within("its credentials are taken away", || {
        let known = rig.admin_says(Agent, "/snapshot").ok()?;
        (!known.contains(&address)).then_some(())
    })
}

/// And answers whoever is there like a stranger.
#[track_caller]
fn a_stranger(rig: &Rig, last: u8) {
    assert_eq!(rig.get(ip(last), LIST).unwrap().status, 503);
}

#[test]
fn the_api_is_down_and_hangs() {
    let rig = rig();
    let witness = rig.witness();
    for (round, reach) in [(0, Reach::Down), (10, Reach::Hanging)] {
        rig.start_pod(&format!("goes-{round}"), "reader", ip(round + 1))
            .unwrap();
        rig.served(ip(round + 1), "reader").unwrap();
        rig.cluster().faults().set_reach(reach);
        if reach == Reach::Hanging {
            // A watch that is open already goes on; those that would replace it hang.
            rig.cluster().faults().disconnect_all();
        }
        // One comes, one goes, one comes and goes; nobody can know.
        rig.start_pod(&format!("comes-{round}"), "writer", ip(round + 2))
            .unwrap();
        rig.delete_pod(&format!("goes-{round}")).unwrap();
        rig.start_pod(&format!("brief-{round}"), "batch", ip(round + 3))
            .unwrap();
        rig.delete_pod(&format!("brief-{round}")).unwrap();
        witness.sees(ENOUGH).unwrap();
        let heals = || {
            rig.cluster().faults().set_reach(Reach::Up);
            if reach == Reach::Hanging {
                rig.cluster().faults().disconnect_all();
            }
            // There is no gap: what came is there, what went is gone.
            rig.served(ip(round + 2), "writer")?;
            forgotten(&rig, round + 1)?;
            forgotten(&rig, round + 3)
        };
        witness.heals(heals).unwrap();
        a_stranger(&rig, round + 1);
        a_stranger(&rig, round + 3);
    }
    nobody_noticed("api-down-and-hanging", WATCHES, witness);
}

#[test]
fn the_api_forgets_its_history_again_and_again() {
    let rig = rig();
    let witness = rig.witness();
    for round in 0..10 {
        rig.cluster().compact();
        rig.cluster().faults().expire_watches();
        rig.start_pod(&format!("storm-{round}"), "reader", ip(round + 1))
            .unwrap();
        if round % 2 == 1 {
            rig.delete_pod(&format!("storm-{}", round - 1)).unwrap();
        }
        witness.sees(5).unwrap();
    }
    let heals = || {
        (1..10).step_by(2).try_for_each(|round| {
            rig.served(ip(round + 1), "reader")?;
            forgotten(&rig, round)
        })
    };
    witness.heals(heals).unwrap();
    a_stranger(&rig, 1);
    nobody_noticed("api-410-gone", WATCHES, witness);
}

#[test]
fn the_api_fails_every_second_request() {
    let rig = rig();
    let witness = rig.witness();
    for (status, last) in [(429, 1), (500, 2)] {
        let share = 0.5;
        rig.cluster()
            .faults()
            .set_failures(Some(Failures { status, share }));
        rig.cluster().faults().drop_watches();
        rig.start_pod(&format!("failing-{status}"), "reader", ip(last))
            .unwrap();
        rig.served(ip(last), "reader").unwrap();
    }
    witness.sees(ENOUGH).unwrap();
    let heals = || {
        rig.cluster().faults().set_failures(None);
        rig.start_pod("after", "batch", ip(3))?;
        rig.served(ip(3), "batch")
    };
    witness.heals(heals).unwrap();
    nobody_noticed("api-failing", WATCHES, witness);
}
