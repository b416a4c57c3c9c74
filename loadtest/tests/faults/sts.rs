//! STS down, hanging, throttling, refusing.

use std::time::Duration;

use jiff::Timestamp;
use kiam_loadtest::rig::Program::Server;
use kiam_loadtest::rig::{Rig, within};
use kiam_sim::faults::Reach;

use crate::{ENOUGH, LIST, STS_ASKED_AGAIN, STS_ASKED_RARELY, ip, nobody_noticed, rig};

/// A pod of a role that nobody has had yet is told to come back, and why it gets nothing is said.
fn waits(rig: &Rig, name: &str, role: &str, last: u8, reason: &str) {
    rig.start_pod(name, role, ip(last)).unwrap();
    let waited = rig.get(ip(last), LIST).unwrap();
    assert_eq!((waited.status, &*waited.body), (503, ""));
    within("the reason is said", || {
        let why = rig
            .admin_says(Server, &format!("/why?pod={}/{name}", rig.namespace()))
            .unwrap();
        why.contains(reason).then_some(())
    })
    .unwrap();
    let events = || rig.cluster().events();
    within("an event is written", || {
        let ours = |event: &serde_json::Value| {
            event["reason"] == "KiamCredentialError" && event["involvedObject"]["name"] == name
        };
        events().iter().any(ours).then_some(())
    })
    .unwrap();
}

#[test]
fn sts_down_and_hanging() {
    let rig = rig();
    let witness = rig.witness();
    for (reach, name, last) in [(Reach::Down, "down", 1), (Reach::Hanging, "hanging", 2)] {
        rig.sts().faults().set_reach(reach);
        waits(
            &rig,
            name,
            &format!("fresh-{name}"),
            last,
            "no usable answer",
        );
        // Roles that are there already do not need it.
        rig.start_pod(&format!("{name}-known"), "reader", ip(last + 10))
            .unwrap();
        rig.served(ip(last + 10), "reader").unwrap();
        witness.sees(ENOUGH).unwrap();
        let heals = || {
            rig.sts().faults().set_reach(Reach::Up);
            rig.served(ip(last), &format!("fresh-{name}"))
        };
        witness.heals(heals).unwrap();
    }
    nobody_noticed("sts-down-and-hanging", STS_ASKED_AGAIN, witness);
}

#[test]
fn sts_throttles_everyone() {
    let rig = rig();
    let witness = rig.witness();
    rig.sts().throttle_share(1.0);
    waits(&rig, "throttled", "fresh-0", 100, "throttling");
    for number in 1..8 {
        let role = format!("fresh-{number}");
        rig.start_pod(&role, &role, ip(number)).unwrap();
    }
    witness.sees(ENOUGH).unwrap();
    let throttled = rig.sts().total();
    let heals = || {
        rig.sts().throttle_share(0.0);
        rig.served(ip(100), "fresh-0")?;
        (1..8).try_for_each(|number| {
            let served = rig.served(ip(number), &format!("fresh-{number}"));
            served.map(drop)
        })
    };
    witness.heals(heals).unwrap();
    nobody_noticed("sts-throttling", STS_ASKED_RARELY, witness);
    // It is asked less while it throttles, and once for each role afterwards.
    assert!(throttled < 60, "{throttled} calls while throttled");
    let after = rig.sts().total() - throttled;
    assert!(after <= 16, "{after} calls for 8 roles afterwards");
}

#[test]
fn a_role_that_is_refused_holds_nobody_up() {
    let rig = rig();
    let witness = rig.witness();
    rig.sts().deny(&["*role/distrusts-us"]);
    rig.start_pod("refused", "distrusts-us", ip(1)).unwrap();
    let refused = within("it is refused", || {
        let reply = rig.get(ip(1), LIST).unwrap();
        (reply.status == 403).then_some(reply)
    })
    .unwrap();
    assert!(refused.head.contains("x-kiam-reason:"), "{}", refused.head);
    assert_eq!(refused.body, "");
    rig.start_pod("other", "fresh", ip(2)).unwrap();
    rig.served(ip(2), "fresh").unwrap();
    witness.sees(ENOUGH).unwrap();
    let heals = || {
        // Whoever mends the trust policy needs to tell nobody.
        rig.sts().deny(&[]);
        rig.served(ip(1), "distrusts-us")
    };
    witness.heals(heals).unwrap();
    nobody_noticed("sts-refuses-a-role", STS_ASKED_RARELY, witness);
}

/// Sessions end while STS is away: nothing that has ended is ever served, and when STS is back it is
/// not run over.
#[test]
fn sessions_end_while_sts_is_down() {
    let rig = rig();
    rig.sts().set_lifetime(Some(Duration::from_secs(12)));
    rig.start_pod("brief", "brief", ip(1)).unwrap();
    rig.served(ip(1), "brief").unwrap();
    let witness = rig.witness();
    rig.sts().faults().set_reach(Reach::Down);
    let path = format!("{LIST}brief");
    let mut served = 0;
    within("they end", || {
        let asked = Timestamp::now();
        let reply = rig.get(ip(1), &path).unwrap();
        if reply.status == 200 {
            let document: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
            let expiry: Timestamp = document["Expiration"].as_str().unwrap().parse().unwrap();
            // The agent's workers look at the clock twice a second, and busy machines less often.
            let latest = expiry + jiff::SignedDuration::from_secs(2);
            assert!(
                asked < latest,
                "at {asked} it was served what ended at {expiry}"
            );
            served += 1;
        }
        (reply.status == 503).then_some(())
    })
    .unwrap();
    assert!(served > 0, "they were served while they were good");
    let before = rig.sts().count(&rig.arn("brief"));
    let heals = || {
        rig.sts().set_lifetime(None);
        rig.sts().faults().set_reach(Reach::Up);
        rig.served(ip(1), "brief")
    };
    witness.heals(heals).unwrap();
    let after = rig.sts().count(&rig.arn("brief")) - before;
    nobody_noticed("sessions-end-while-sts-is-down", STS_ASKED_AGAIN, witness);
    assert!(after <= 2, "{after} calls for one role");
}
