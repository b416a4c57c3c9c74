//! What pods see when something goes wrong: one test for each row of the design's table, and one for
//! each pair that plausibly meets. The table of what was injected and seen is in `docs/faults.md`.
//!
//! The programs are real, in processes of their own; the cluster, STS and the certificates are
//! simulated. Pods ask all the time while something goes wrong (the witness), and every test ends
//! with the system as it was, without anybody's help. Each prints one line: dialogues and those that
//! failed, the longest that a pod went without, and how long after the fault's end all was well.
//! Nothing is judged by how fast it is: what heals must do so within the longest wait that the
//! programs are made to take, and everything else is bounded so generously that only something that
//! never happens runs into the bound.

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
use std::time::Duration;

use kiam_loadtest::rig::{Failure, Options, Rig, Seen, Witness};

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

// === how long it may take until all is well ===

/// What a machine that is busy with other things may take for what takes a moment.
const MOMENT: Duration = Duration::from_secs(30);
/// An agent's longest wait before it tries a server again (`--reconnect-delay-max`).
const RECONNECTS: Duration = Duration::from_secs(15);
/// A server's longest wait before it asks the Kubernetes API again.
const WATCHES: Duration = Duration::from_secs(20);
/// A server's longest wait before it calls an STS again that was not there.
const STS_ASKED_AGAIN: Duration = Duration::from_secs(30);
/// The same for one that throttled, or refused the role a few times.
const STS_ASKED_RARELY: Duration = Duration::from_mins(1);

/// What a pod can see while no agent runs on its node.
const NO_AGENT: [Failure; 2] = [Failure::Refused, Failure::Closed];

/// Running pods did not notice, and everything healed: `within` the longest wait that is meant, and a
/// moment.
#[track_caller]
fn nobody_noticed(fault: &str, within: Duration, witness: Witness) {
    saw_only(&[], fault, within, witness);
}

/// Running pods saw only these failures, none once everything had healed, and it healed.
#[track_caller]
fn saw_only(kinds: &[Failure], fault: &str, within: Duration, witness: Witness) {
    // What heals stays well.
    witness.sees(ENOUGH).unwrap();
    let seen = witness.end();
    judge(kinds, fault, within, &seen);
}

#[track_caller]
fn judge(kinds: &[Failure], fault: &str, within: Duration, seen: &Seen) {
    eprintln!("{}", seen.line(fault));
    assert!(
        seen.failures.keys().all(|kind| kinds.contains(kind)),
        "{fault}: {:?}",
        seen.failures
    );
    assert_eq!(seen.relapses, 0, "{fault}: failed after it had healed");
    let healed_after = seen.healed_after.unwrap();
    assert!(
        healed_after <= within + MOMENT,
        "{fault}: healed after {healed_after:?}"
    );
    let outage = seen.longest_outage;
    assert!(
        outage <= MOMENT,
        "{fault}: a pod went without for {outage:?}"
    );
}
