//! Whatever happens in whatever order: the server's owner, ledger, schedule and node tables, and the
//! agent's store, hand-over and answers, against a reference that is too simple to be wrong.
//!
//! The rooms are the real ones, in one thread and in time that is given. In between lies what a test
//! can break: STS, the streams, both clocks, both processes. A case is a list of events; a failing
//! one is shrunk to the shortest list that still fails and printed as a transcript.
//!
//! What must hold after every event:
//! - No table and no answer has credentials that have ended by the clock of whoever has them.
//! - No node holds credentials of a role that no pod of it may have.
//! - A granted pod is served by the push that brings its credentials, at the latest.
//! - STS gets no more calls than the budget says, and never two at once for the same id.
//! - Whatever a pod is answered, the reference allowed it at that moment.
//! - When everything has been well for a while, every granted pod is served.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::option_option,
    clippy::panic,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on has failed"
)]

#[path = "model/node.rs"]
mod node;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/sts.rs"]
mod sts;
#[path = "model/world.rs"]
mod world;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

use world::World;

/// One thing that happens. Numbers name pods, nodes, namespaces, roles and addresses.
#[derive(Debug, Clone)]
enum Event {
    /// A pod is bound; it replaces an earlier one of the same number.
    PodBound {
        pod: u8,
        node: u8,
        namespace: u8,
        role: Option<u8>,
    },
    PodHasAddress {
        pod: u8,
        ip: u8,
    },
    PodStops {
        pod: u8,
    },
    PodGone {
        pod: u8,
    },
    Annotated {
        pod: u8,
        role: Option<u8>,
    },
    /// The namespace permits: nothing, role 0 only, or everything.
    Permits {
        namespace: u8,
        what: u8,
    },
    /// The watch was lost; everything is listed again.
    Relisted,
    Sts(sts::Mood),
    Passes {
        seconds: u16,
    },
    ServersClockJumps {
        seconds: i32,
    },
    AgentsClockJumps {
        node: u8,
        seconds: i32,
    },
    StreamBreaks {
        node: u8,
    },
    StreamOpens {
        node: u8,
    },
    /// The stream brings what the server has to say.
    Delivered {
        node: u8,
    },
    /// The agent writes down what it holds.
    Sealed {
        node: u8,
    },
    AgentKilled {
        node: u8,
    },
    ServerKilled,
    Asked {
        node: u8,
        ip: u8,
    },
}

const PODS: u8 = 5;
const NODES: u8 = 2;
const NAMESPACES: u8 = 2;
const ROLES: u8 = 3;
const IPS: u8 = 4;

fn event() -> impl Strategy<Value = Event> {
    let role = || prop::option::weighted(0.9, 0..ROLES);
    let jump = || prop::sample::select(vec![-86_400, -4_000, -300, 300, 4_000, 86_400]);
    let mood = prop::sample::select(sts::Mood::ALL.to_vec());
    prop_oneof![
        6 => (0..PODS, 0..NODES, 0..NAMESPACES, role()).prop_map(|(pod, node, namespace, role)| {
            Event::PodBound { pod, node, namespace, role }
        }),
        8 => (0..PODS, 0..IPS).prop_map(|(pod, ip)| Event::PodHasAddress { pod, ip }),
        2 => (0..PODS).prop_map(|pod| Event::PodStops { pod }),
        3 => (0..PODS).prop_map(|pod| Event::PodGone { pod }),
        2 => (0..PODS, role()).prop_map(|(pod, role)| Event::Annotated { pod, role }),
        3 => (0..NAMESPACES, 0..3_u8)
            .prop_map(|(namespace, what)| Event::Permits { namespace, what }),
        1 => Just(Event::Relisted),
        3 => mood.prop_map(Event::Sts),
        8 => (1..2_500_u16).prop_map(|seconds| Event::Passes { seconds }),
        8 => (1..5_u16).prop_map(|seconds| Event::Passes { seconds }),
        1 => jump().prop_map(|seconds| Event::ServersClockJumps { seconds }),
        1 => (0..NODES, jump())
            .prop_map(|(node, seconds)| Event::AgentsClockJumps { node, seconds }),
        2 => (0..NODES).prop_map(|node| Event::StreamBreaks { node }),
        3 => (0..NODES).prop_map(|node| Event::StreamOpens { node }),
        12 => (0..NODES).prop_map(|node| Event::Delivered { node }),
        3 => (0..NODES).prop_map(|node| Event::Sealed { node }),
        2 => (0..NODES).prop_map(|node| Event::AgentKilled { node }),
        1 => Just(Event::ServerKilled),
        8 => (0..NODES, 0..IPS).prop_map(|(node, ip)| Event::Asked { node, ip }),
    ]
}

/// Runs a case; what broke, and in which event, if something did.
fn run(events: &[Event], transcript: bool) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        for (number, event) in events.iter().enumerate() {
            let outcome = world.happen(event).await;
            if transcript {
                eprintln!("{number:>3}  {event:?}\n     {}", world.line());
            }
            outcome.map_err(|broken| format!("event {number}, {event:?}: {broken}"))?;
        }
        let outcome = world.heal().await;
        if transcript {
            eprintln!("     healed: {}", world.line());
        }
        outcome.map_err(|broken| format!("after everything was well again: {broken}"))
    })
}

/// How many cases; the nightly run asks for more.
fn cases() -> u32 {
    let asked = std::env::vars().find(|(name, _value)| name == "KIAM_MODEL_CASES");
    asked.map_or(60, |(_name, value)| value.parse().unwrap())
}

#[test]
fn whatever_happens_in_whatever_order() {
    let config = Config {
        cases: cases(),
        max_shrink_iters: 2_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let events = prop::collection::vec(event(), 1..80);
    let outcome = runner.run(&events, |events| {
        run(&events, false).map_err(TestCaseError::fail)
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(_reason, events)) => {
            eprintln!("the shortest case found, {} events:", events.len());
            let broken = run(&events, true).unwrap_err();
            panic!("{broken}");
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}
