//! What pods see when something goes wrong: one test for each row of the design's table, and one for
//! each pair that plausibly meets. The table of what was injected and seen is in `docs/faults.md`.
//!
//! The programs are real, in processes of their own; the cluster, STS and the certificates are
//! simulated. Pods ask all the time while something goes wrong (the witness), and every test ends
//! with the system as it was, without anybody's help. Nothing is judged by how fast it is: waits are
//! bounded so generously that only something that never happens runs into the bound.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on has failed, and says what it has seen"
)]

#[path = "faults/agent.rs"]
mod agent;
#[path = "faults/api.rs"]
mod api;
#[path = "faults/certificates.rs"]
mod certificates;
#[path = "faults/clocks.rs"]
mod clocks;
#[path = "faults/exhaustion.rs"]
mod exhaustion;
#[path = "faults/floods.rs"]
mod floods;
#[path = "faults/malformed.rs"]
mod malformed;
#[path = "faults/pairs.rs"]
mod pairs;
#[path = "faults/server.rs"]
mod server;
#[path = "faults/sts.rs"]
mod sts;

use std::net::{IpAddr, Ipv4Addr};

use kiam_loadtest::rig::{Options, Rig, Seen};

const LIST: &str = "/latest/meta-data/iam/security-credentials/";

/// The system, with nothing wrong.
fn rig() -> Rig {
    rig_with(&[], &[])
}

/// The system with further flags of the agent and the server.
fn rig_with(agent: &[&str], server: &[&str]) -> Rig {
    let program = env!("CARGO_BIN_EXE_kiam-loadtest");
    Rig::start(Options::new(program, agent, server)).unwrap()
}

/// An address of a pod that a test makes.
fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 99, 0, last).into()
}

/// A dialogue for every pod that runs from the start, several times over.
const ENOUGH: u64 = 60;

/// What was seen, for `docs/faults.md`.
fn say(what: &str, seen: &Seen) {
    let (asked, failed) = (seen.asked, seen.failed());
    let (outage, failures) = (seen.outage.as_secs_f64(), &seen.failures);
    eprintln!("{what}: {asked} asked, {failed} failed within {outage:.1} s {failures:?}");
}

/// Running pods must not have noticed.
#[track_caller]
fn nobody_noticed(what: &str, seen: &Seen) {
    say(what, seen);
    assert_eq!(seen.failed(), 0, "{what}: {:?}", seen.failures);
    assert!(seen.asked >= ENOUGH, "{what}: only {} asked", seen.asked);
}
