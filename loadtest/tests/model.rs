//! Whatever happens in whatever order: the server's owner, ledger, schedule and node tables, and the
//! agent's store, hand-over and answers, against a reference that is too simple to be wrong.
//!
//! The rooms are the real ones, in one thread and in time that is given. In between lies what a test
//! can break: STS, the streams, both clocks, both processes. A case is a list of events; a failing
//! one is shrunk to the shortest list that still fails and printed as a transcript.
//!
//! What must hold after every event:
//! - No table and no answer has credentials that have ended by the clock of whoever has them; and no
//!   table has any that have truly ended, wherever the server's wall clock was set.
//! - No node holds credentials of a role that no pod of it may have.
//! - A granted pod is served by the push that brings its credentials, at the latest.
//! - STS gets no more calls than the budget says, and never two at once for the same id.
//! - Whatever a pod is answered, the reference allowed it at that moment.
//! - An address whose pod the kernel has seen go is not answered for that pod any more.
//! - While STS is well and the server's clock leaves a session half of its life, what the server has
//!   and what pods are served is renewed before half of that is over.
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
#[path = "model/server.rs"]
mod server;
#[path = "model/sts.rs"]
mod sts;
#[path = "model/transcript.rs"]
mod transcript;
#[path = "model/world.rs"]
mod world;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

use transcript::Transcript;
use world::World;

/// One thing that happens. Numbers name pods, nodes, namespaces, roles and addresses.
#[derive(Debug, Clone)]
enum Event {
    /// A pod is bound, and may have its address at once; it replaces an earlier one of the same
    /// number.
    PodBound {
        pod: u8,
        node: u8,
        namespace: u8,
        role: Option<u8>,
        ip: Option<u8>,
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
    /// Its wall clock is set, so far ahead of what is right; 0 sets it right.
    ServersClockSet {
        ahead_s: i32,
    },
    AgentsClockSet {
        node: u8,
        ahead_s: i32,
    },
    /// And cannot be opened until it is said.
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
    /// Its node's kernel says that nobody has its address any more, before the server says anything.
    Vanished {
        pod: u8,
    },
    /// It says that somebody has it after all.
    Reappeared {
        pod: u8,
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

const PODS: u8 = 4;
const NODES: u8 = 2;
const NAMESPACES: u8 = 2;
const ROLES: u8 = 3;
const IPS: u8 = 3;

fn event() -> impl Strategy<Value = Event> {
    let role = || prop::option::weighted(0.9, 0..ROLES);
    let ahead = |wrong: &[i32]| prop_oneof![Just(0), prop::sample::select(wrong.to_vec())];
    let mood = prop_oneof![
        Just(sts::Mood::Well),
        prop::sample::select(sts::Mood::ALL.to_vec())
    ];
    let ip = prop::option::weighted(0.7, 0..IPS);
    prop_oneof![
        10 => (0..PODS, 0..NODES, 0..NAMESPACES, role(), ip).prop_map(
            |(pod, node, namespace, role, ip)| Event::PodBound { pod, node, namespace, role, ip }
        ),
        6 => (0..PODS, 0..IPS).prop_map(|(pod, ip)| Event::PodHasAddress { pod, ip }),
        2 => (0..PODS).prop_map(|pod| Event::PodStops { pod }),
        2 => (0..PODS).prop_map(|pod| Event::PodGone { pod }),
        2 => (0..PODS, role()).prop_map(|(pod, role)| Event::Annotated { pod, role }),
        2 => (0..NAMESPACES, 0..3_u8)
            .prop_map(|(namespace, what)| Event::Permits { namespace, what }),
        1 => Just(Event::Relisted),
        4 => mood.prop_map(Event::Sts),
        8 => (1..2_500_u16).prop_map(|seconds| Event::Passes { seconds }),
        6 => (1..5_u16).prop_map(|seconds| Event::Passes { seconds }),
        6 => ahead(&[-4_000, -300, 300, 4_000, 86_400])
            .prop_map(|ahead_s| Event::ServersClockSet { ahead_s }),
        1 => (0..NODES, ahead(&[-86_400, -4_000, -300, 300, 4_000, 86_400]))
            .prop_map(|(node, ahead_s)| Event::AgentsClockSet { node, ahead_s }),
        1 => (0..NODES).prop_map(|node| Event::StreamBreaks { node }),
        6 => (0..NODES).prop_map(|node| Event::StreamOpens { node }),
        14 => (0..NODES).prop_map(|node| Event::Delivered { node }),
        4 => (0..PODS).prop_map(|pod| Event::Vanished { pod }),
        1 => (0..PODS).prop_map(|pod| Event::Reappeared { pod }),
        3 => (0..NODES).prop_map(|node| Event::Sealed { node }),
        4 => (0..NODES).prop_map(|node| Event::AgentKilled { node }),
        1 => Just(Event::ServerKilled),
        4 => (0..NODES, 0..IPS).prop_map(|(node, ip)| Event::Asked { node, ip }),
    ]
}

/// Some pods that may have what they ask for, and then anything: most events mean little where there
/// are no pods.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let served = (0..PODS, 0..NODES, 0..ROLES, 0..IPS).prop_map(|(pod, node, role, ip)| {
        let (role, ip) = (Some(role), Some(ip));
        let namespace = 0;
        Event::PodBound {
            pod,
            node,
            namespace,
            role,
            ip,
        }
    });
    let pods = prop::collection::vec(served, 0..4);
    let then = prop::collection::vec(event(), 1..100);
    (pods, then).prop_map(|(pods, then)| [pods, then].concat())
}

/// How a case begins, for a transcript.
const BEGINNING: &str = "namespace-0 permits every role, namespace-1 role-0 only; all clocks are right, \
    STS is well, both nodes have a stream, and there are no pods";

/// Runs a case. How many answers had credentials; what broke, and in which event, if something did.
fn run(events: &[Event], transcript: bool) -> Result<u64, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut world = World::new().await;
        let mut transcript = transcript.then(|| Transcript::new(&world));
        for (number, event) in events.iter().enumerate() {
            let outcome = world.happen(event).await;
            if let Some(transcript) = &mut transcript {
                transcript.happened(number, event, &world);
            }
            outcome.map_err(|broken| format!("event {number}, {event}: {broken}"))?;
        }
        let outcome = world.heal().await;
        if let Some(transcript) = &mut transcript {
            transcript.healed(&world);
        }
        outcome.map_err(|broken| format!("after everything was well again: {broken}"))?;
        Ok(world.given)
    })
}

/// Without the events that are not needed any more: shrinking leaves out first and makes simpler then.
fn needed(mut events: Vec<Event>) -> Vec<Event> {
    for number in (0..events.len()).rev() {
        let mut fewer = events.clone();
        fewer.remove(number);
        if run(&fewer, false).is_err() {
            events = fewer;
        }
    }
    events
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
        // In ms. Whoever reads it waits for it.
        max_shrink_time: 30_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new(config);
    let events = events();
    let found = Cell::new(None);
    let ran = Cell::new(0_u32);
    let given = Cell::new(0_u64);
    let outcome = runner.run(&events, |events| {
        ran.set(ran.get() + 1);
        let outcome = run(&events, false).map_err(|broken| {
            found.set(found.get().or(Some((ran.get(), events.len()))));
            TestCaseError::fail(broken)
        })?;
        given.set(given.get() + outcome);
        Ok(())
    });
    match outcome {
        Ok(()) => {
            let (cases, given) = (cases(), given.get());
            eprintln!("{cases} cases, {given} answers with credentials");
            // Usually some fifty in each. Rules about answers hold easily where there are none.
            assert!(given >= u64::from(cases), "only {given} answers");
        }
        Err(TestError::Fail(_reason, events)) => {
            if let Some((case, length)) = found.get() {
                eprintln!("case {case}, of {length} events, broke a rule");
            }
            let events = needed(events);
            eprintln!("the shortest case like it, {} events:", events.len());
            let broken = run(&events, true).unwrap_err();
            panic!("{broken}");
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}
