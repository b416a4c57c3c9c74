//! What must hold for any input whatsoever.
//!
//! Included by the fuzz targets, which search for a counterexample, and by a test, which tries some
//! on every run.

#[path = "../tests/data_plane/node.rs"]
mod node;

use std::net::{IpAddr, Ipv4Addr};

use kiam_agent::clock::Now;
use kiam_agent::data::DriverChoice;
use kiam_agent::data::dry::{Dry, DryRun};
use kiam_agent::handover::sealed::{Kind, seal};
use kiam_agent::handover::snapshot::{self, Addresses, Here};
use kiam_agent::snapshot::store::Doors;
use kiam_agent::snapshot::{Snapshot, Store};
use kiam_agent::tally::Tallies;
use kiam_wire::update::Parsed;
use kiam_wire::{Full, Pod, PodState, UnixSeconds, Update, proto};

/// A worker and a node of two pods.
pub(crate) struct World {
    run: DryRun,
    snapshot: Snapshot,
}

/// Longer than any fuzzer runs.
const LIFE_S: i64 = 1_000_000_000;

/// The address of the `n`-th pod.
fn ip(n: u32) -> IpAddr {
    let [.., last] = n.to_be_bytes();
    Ipv4Addr::new(10, 0, 0, last).into()
}

fn pod(n: u32) -> Pod {
    node::pod(n, ip(n), PodState::Granted(node::id(n)))
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Now::read();
        let config = node::config(DriverChoice::Auto);
        let mut store = Store::new(Doors::Both);
        let full = Full {
            revision: node::revision(1),
            pods: (1..=2).map(pod).collect(),
            credentials: (1..=2).map(|n| node::credentials(n, LIFE_S)).collect(),
            keys: None,
        };
        store
            .apply(Update::Full(full), now)
            .expect("a full is no gap");
        Self {
            run: DryRun::new(&config, &Tallies::new(1), now).expect("one worker"),
            snapshot: store.snapshot(now),
        }
    }

    /// Whatever pod 1 sends to the metadata door.
    pub(crate) fn request(&self, input: &[u8]) {
        let mut out = Vec::new();
        let dry = self.run.metadata(input, ip(1), &self.snapshot, &mut out);
        check(dry, input, &out);
        // What a worker makes of the beginning never contradicts what it makes of the whole.
        if let Dry::Answered { bytes, status } = dry {
            let mut again = Vec::new();
            let exactly = input.get(..bytes).unwrap_or_default();
            let same = self
                .run
                .metadata(exactly, ip(1), &self.snapshot, &mut again);
            assert_eq!(same, Dry::Answered { bytes, status });
            for shorter in [bytes / 2, bytes.saturating_sub(1)] {
                let part = input.get(..shorter).unwrap_or_default();
                let mut ignored = Vec::new();
                let dry = self.run.metadata(part, ip(1), &self.snapshot, &mut ignored);
                assert!(
                    matches!(dry, Dry::Partial),
                    "{dry:?} for a part of a request"
                );
            }
        }
    }

    /// Whatever pod 1 sends to the container door: nobody has a key, so nobody has credentials.
    pub(crate) fn container(&self, input: &[u8]) {
        let mut out = Vec::new();
        let dry = self.run.container(input, ip(1), &self.snapshot, &mut out);
        check(dry, input, &out);
        assert!(!matches!(dry, Dry::Answered { status: 200, .. }));
    }
}

fn check(dry: Dry, input: &[u8], out: &[u8]) {
    match dry {
        Dry::Answered { bytes, .. } => {
            assert!(bytes > 0 && bytes <= input.len());
            assert!(out.starts_with(b"HTTP/1.1 "));
        }
        Dry::Refused => assert!(out.starts_with(b"HTTP/1.1 ")),
        Dry::Partial | Dry::Parked | Dry::Fetched => assert!(out.is_empty()),
    }
    let secret = b"secret-2";
    assert!(!out.windows(secret.len()).any(|window| window == secret));
}

/// Whatever a server sends: no panic, and a store that still makes sense.
pub(crate) fn update(input: &[u8]) {
    let Ok(message) = <proto::ServerMessage as prost::Message>::decode(input) else {
        return;
    };
    let Ok(Parsed { update, .. }) = Parsed::try_from(message) else {
        return;
    };
    let now = Now::read();
    let mut store = Store::new(Doors::Both);
    let leads_to = update.leads_to();
    if store.apply(update, now).is_ok() {
        assert_eq!(store.revision(), Some(leads_to));
    } else {
        assert_eq!((store.revision(), store.pods_len()), (None, 0));
    }
    drop(store.snapshot(now));
}

/// Whatever is found in the hand-over directory, under a seal that fits or not.
pub(crate) fn handover(input: &[u8]) {
    let here = Here {
        node_name: "node-a",
        boot_id: "boot-1",
        now: UnixSeconds::new(1_800_000_000),
    };
    drop(snapshot::decode(input, here));
    let Ok(left) = snapshot::decode(&seal(Kind::Snapshot, input), here) else {
        return;
    };
    let now = Now {
        wall: here.now,
        ..Now::read()
    };
    let mut store = Store::new(Doors::Both);
    store
        .apply(Update::Full(left.full), now)
        .expect("a full is no gap");
    for (ip, uid) in left.addresses.fenced {
        let stands = store.restore_fence(ip, &uid);
        assert!(!stands || store.snapshot(now).by_ip(ip).is_none());
    }
    assert!(
        store
            .soonest_expiry()
            .is_none_or(|soonest| !soonest.has_passed(now))
    );
    // What the next agent would be left.
    let full = store.export().expect("a revision");
    let bytes = snapshot::encode(full, &Addresses::default(), here);
    snapshot::decode(&bytes, here).expect("what this agent leaves can be read");
}
