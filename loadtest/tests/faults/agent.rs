//! The agent killed and upgraded. What becomes of the interception meanwhile is tried in real network
//! namespaces, in the agent's own tests.

use std::time::Duration;

use kiam_loadtest::rig::Program::{Agent, Server};
use kiam_loadtest::rig::{Failure, Rig, exchange, within};

use crate::{ENOUGH, LIST, MOMENT, NO_AGENT, RECONNECTS, ip, nobody_noticed, rig, saw_only};

/// An IMDSv2 token of this pod, for six hours.
pub(crate) fn token(rig: &Rig, from: std::net::IpAddr) -> String {
    let put = "PUT /latest/api/token HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
               x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
    let reply = exchange(rig.agent(), Some(from), put.as_bytes()).unwrap();
    assert_eq!(reply.status, 200);
    reply.body
}

/// The status of the role list asked for with a token; `None` when nobody answers.
pub(crate) fn list_with(rig: &Rig, from: std::net::IpAddr, token: &str) -> Option<u16> {
    let head = format!(
        "GET {LIST} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-aws-ec2-metadata-token: {token}\r\n\r\n"
    );
    let reply = exchange(rig.agent(), Some(from), head.as_bytes()).ok()?;
    Some(reply.status)
}

#[test]
fn an_agent_killed_without_any_server() {
    let rig = rig();
    let (pod, role) = rig.granted().remove(0);
    let before = rig.ask(pod, &role).unwrap();
    let token = token(&rig, pod);
    // What it holds is written down soon after it changed; a pod whose role is there comes last.
    rig.start_pod("last", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
    kiam_loadtest::rig::pass(Duration::from_secs(1));
    std::fs::metadata(rig.handover().join("snapshot")).unwrap();
    rig.kill(Server).unwrap();
    let witness = rig.witness();
    witness.sees(ENOUGH).unwrap();
    rig.kill(Agent).unwrap();
    let heals = || {
        rig.exec_agent()?;
        // No server is there to ask: it answers from what the one before left.
        within("the next agent answers", || list_with(&rig, pod, &token))
    };
    witness.heals(heals).unwrap();
    assert_eq!(list_with(&rig, pod, &token), Some(200), "the token is good");
    assert_eq!(rig.ask(pod, &role).unwrap(), before);
    rig.restart(Server).unwrap();
    rig.start_pod("after", "writer", ip(2)).unwrap();
    rig.served(ip(2), "writer").unwrap();
    rig.served(ip(1), "reader").unwrap();
    saw_only(&NO_AGENT, "agent-killed", MOMENT, witness);
}

#[test]
fn an_agent_upgraded_under_load() {
    let rig = rig();
    let (pod, _role) = rig.granted().remove(0);
    let token = token(&rig, pod);
    let witness = rig.witness();
    for round in 1..=3 {
        let heals = || {
            rig.upgrade_agent()?;
            assert_eq!(list_with(&rig, pod, &token), Some(200));
            rig.start_pod(&format!("new-{round}"), "reader", ip(round))?;
            rig.served(ip(round), "reader")
        };
        witness.heals(heals).unwrap();
        witness.sees(ENOUGH / 3).unwrap();
    }
    nobody_noticed("agent-upgraded", RECONNECTS, witness);
}

#[test]
fn an_agent_told_to_end_finishes_what_it_was_asked() {
    let rig = rig();
    let witness = rig.witness();
    witness.sees(ENOUGH).unwrap();
    let reply = std::thread::scope(|scope| {
        // Of nobody known, so it waits.
        let waiting = scope.spawn(|| rig.get(ip(1), LIST));
        within("it waits", || {
            let parked = rig.metric(Agent, "kiam_agent_parked_requests").unwrap();
            (parked >= 1.0 || waiting.is_finished()).then_some(())
        })
        .unwrap();
        rig.stop(Agent).unwrap();
        waiting.join().unwrap()
    });
    // Answered in full, not reset.
    let reply = reply.unwrap();
    assert_eq!((reply.status, &*reply.body), (503, ""));
    witness.heals(|| rig.restart(Agent)).unwrap();
    saw_only(&NO_AGENT, "agent-stopped", MOMENT, witness);
}

/// What cannot be read is not used, said, and replaced.
#[test]
fn what_an_agent_left_is_damaged() {
    let rig = rig();
    let (pod, role) = rig.granted().remove(0);
    let heals = || {
        rig.restart(Agent)?;
        rig.served(pod, &role)
    };
    let witness = rig.witness();
    for (number, damage) in [&b"garbage"[..], b"", &[0xff; 4096]]
        .into_iter()
        .enumerate()
    {
        rig.kill(Agent).unwrap();
        std::fs::write(rig.handover().join("snapshot"), damage).unwrap();
        witness.heals(heals).unwrap();
        let log = rig.log(Agent);
        let said = log
            .matches("what an earlier agent left is not used")
            .count();
        assert!(said > number, "after {} damages: {log}", number + 1);
    }
    // Half of a good one.
    kiam_loadtest::rig::pass(Duration::from_millis(500));
    rig.kill(Agent).unwrap();
    let whole = std::fs::read(rig.handover().join("snapshot")).unwrap();
    std::fs::write(rig.handover().join("snapshot"), &whole[..whole.len() / 2]).unwrap();
    witness.heals(heals).unwrap();
    // An agent with nothing waits for the server, and pods with it.
    let kinds = [NO_AGENT[0], NO_AGENT[1], Failure::Status(503)];
    saw_only(&kinds, "handover-damaged", RECONNECTS, witness);
}
