//! What our own code costs.
//!
//! | after `cargo bench --bench data_plane` | measures |
//! |---|---|
//! | nothing | nanoseconds of an answer, microseconds of a delta |
//! | `-- instructions` | instructions of an answer, exactly, whatever else the machine does; fails beyond the budget. Needs valgrind |
//! | `-- compare [SECONDS]` | processor time of a dialogue against the barest server, both drivers in turn |
//! | `-- count answer\|httparse\|ring\|base64 KIND N` | does it N times and ends: for valgrind, by hand |
//! | `-- serve io_uring\|epoll PORT`, `-- null PORT` | serve until killed |

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark talks to a person and stops when it cannot go on"
)]

mod answers;
mod compare;
mod deltas;
mod instructions;
mod servers;

#[path = "../../tests/data_plane/node.rs"]
mod node;

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use kiam_agent::clock::Now;
use kiam_agent::snapshot::Store;
use kiam_agent::snapshot::store::Doors;
use kiam_wire::{Full, Pod, PodState, PodUid, Update};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Who asks, and owns pod 0.
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Pods that share a role.
const PODS_PER_ROLE: u32 = 50;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| *word != "--bench")
        .collect();
    match words.as_slice() {
        ["instructions"] => return instructions::report(),
        ["count", what, kind, times] => answers::count(what, kind, number(times)),
        ["compare"] => compare::report(Duration::from_secs(2)),
        ["compare", seconds] => compare::report(Duration::from_secs(number(seconds))),
        ["serve", driver, port] => servers::agent(driver, number(port)),
        ["null", port] => servers::null(number(port)),
        _ => {
            answers::report();
            deltas::report();
        }
    }
    ExitCode::SUCCESS
}

fn number<T: std::str::FromStr>(word: &str) -> T {
    word.parse()
        .unwrap_or_else(|_| panic!("{word:?} is not a number here"))
}

/// The `n`-th pod of a node, with a uid as long as real ones.
fn pod(n: u32) -> Pod {
    let [_, a, b, c] = n.to_be_bytes();
    let ip = match n {
        0 => PEER,
        _ => Ipv4Addr::new(10, a, b, c).into(),
    };
    Pod {
        uid: PodUid::try_new(&format!("6f1a2b3c-0000-4000-8000-{n:012}")).expect("a uid"),
        ..node::pod(n, ip, PodState::Granted(node::id(n / PODS_PER_ROLE)))
    }
}

/// A node with `pods` pods, all of them granted.
fn store(pods: u32, doors: Doors, now: Now) -> Store {
    let mut store = Store::new(doors);
    let full = Full {
        revision: node::revision(0),
        pods: (0..pods).map(pod).collect(),
        credentials: (0..pods.div_ceil(PODS_PER_ROLE))
            .map(|role| node::credentials(role, 3600))
            .collect(),
        keys: None,
    };
    store
        .apply(Update::Full(full), now)
        .expect("a full is no gap");
    store
}
