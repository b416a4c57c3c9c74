//! One delta: applied, published, and with requests parked that wait for something else.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use kiam_agent::clock::{Now, monotonic};
use kiam_agent::data::{self, DriverChoice};
use kiam_agent::snapshot::store::Doors;
use kiam_agent::snapshot::{Publisher, Store};
use kiam_agent::tally::Tallies;
use kiam_wire::{Delta, Full, Update};

use crate::{node, pod, store};

const ROUNDS: u64 = 400;

pub(crate) fn report() {
    println!("apply a one-pod delta and publish, p50 / p99");
    for pods in [110, 250, 1_000, 10_000] {
        for doors in [Doors::Metadata, Doors::Both] {
            let now = Now::read();
            let mut store = store(pods, doors, now);
            let mut publisher = Publisher::new(now);
            let times = (0..ROUNDS)
                .map(|number| one(&mut store, &mut publisher, number, pods))
                .collect();
            println!("  {pods:6} pods, {doors:?}: {}", percentiles(times));
        }
    }
    for pods in [250, 1_000, 10_000] {
        beside_waiters(pods);
    }
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap();
    format!("{:?} / {:?}", at(50), at(99))
}

/// One pod changes; the store applies it and a snapshot is published.
fn one(store: &mut Store, publisher: &mut Publisher, number: u64, pods: u32) -> Duration {
    let n = 1 + u32::try_from(number).unwrap() % (pods - 1);
    let delta = Update::Delta(Delta {
        from: node::revision(number),
        to: node::revision(number + 1),
        pods: vec![pod(n)],
        removed_pods: vec![],
        credentials: vec![],
        keys: None,
    });
    let now = Now::read();
    let began = monotonic();
    store.apply(delta, now).unwrap();
    publisher.publish(store.snapshot(now));
    began.elapsed()
}

/// The same beside a worker that has requests parked, ringing included.
fn beside_waiters(pods: u32) {
    const WAITING: u32 = 500;
    let mut config = node::config(DriverChoice::Auto);
    config.limits.park_timeout = Duration::from_mins(1);
    config.limits.peer_parked_max = 1024;
    config.limits.peer_connections_max = 1024;
    config.limits.peer_burst = 10_000;
    let now = Now::read();
    let (mut publisher, tallies) = (Publisher::new(now), Tallies::new(1));
    let plane = data::start(config, &publisher, &tallies).unwrap();
    let door = *plane.listening().first().unwrap();
    let waiting: Vec<TcpStream> = (0..WAITING)
        .map(|_| {
            let mut stream = TcpStream::connect(door).unwrap();
            let path = "/latest/meta-data/iam/security-credentials/";
            write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    std::thread::park_timeout(Duration::from_millis(300));
    let mut store = Store::new(Doors::Metadata);
    let full = Full {
        revision: node::revision(0),
        // Pod 0 would own the address everybody waits at.
        pods: (1..pods).map(pod).collect(),
        credentials: vec![],
        keys: None,
    };
    store.apply(Update::Full(full), now).unwrap();
    let ringer = plane.ringer();
    let times = (0..ROUNDS)
        .map(|number| {
            let applied = one(&mut store, &mut publisher, number, pods);
            let began = monotonic();
            ringer.ring();
            applied + began.elapsed()
        })
        .collect();
    println!(
        "  {pods:6} pods, {WAITING} requests parked: {}",
        percentiles(times)
    );
    drop(waiting);
    plane.drain(Duration::from_secs(2));
}
