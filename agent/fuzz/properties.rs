//! What must hold for any input whatsoever.
//!
//! Included by the fuzz targets, which search for a counterexample, and by a test, which tries some
//! on every run.

#[path = "../tests/data_plane/node.rs"]
mod node;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use kiam_agent::clock::Now;
use kiam_agent::data::dry::{Dry, DryRun};
use kiam_agent::data::{DataConfig, DriverChoice, Passthrough};
use kiam_agent::handover::sealed::{Kind, seal};
use kiam_agent::handover::snapshot::{self, Addresses, Here};
use kiam_agent::snapshot::store::Doors;
use kiam_agent::snapshot::{Entry, Snapshot, Standing, Store};
use kiam_agent::tally::Tallies;
use kiam_wire::keys::{KeyMaterial, VerificationKey, VerificationKeys};
use kiam_wire::update::Parsed;
use kiam_wire::{Full, Pod, PodState, PodUid, UnixSeconds, Update, proto};
use regex::Regex;

/// A worker and a node of two pods.
pub(crate) struct World {
    run: DryRun,
    /// The same, where the operator lets pods have everything of the real service that they may.
    open: DryRun,
    snapshot: Snapshot,
    /// The same node, once the server has sent the cluster's token keys.
    keyed: Snapshot,
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

/// One key of each algorithm, which nobody has signed anything with: no signature is right.
fn keys() -> VerificationKeys {
    let material = [
        KeyMaterial::Rsa {
            modulus: vec![9; 256],
            exponent: vec![1, 0, 1],
        },
        KeyMaterial::P256(vec![4; 65]),
        KeyMaterial::P384(vec![4; 97]),
    ];
    VerificationKeys {
        issuer: "https://cluster".into(),
        keys: ["r", "e", "f"]
            .into_iter()
            .zip(material)
            .map(|(id, material)| VerificationKey {
                id: id.into(),
                material,
            })
            .collect(),
    }
}

/// What is held of a node of two pods.
fn store(keys: Option<VerificationKeys>, now: Now) -> Store {
    let mut store = Store::new(Doors::Both);
    let full = Full {
        revision: node::revision(1),
        pods: (1..=2).map(pod).collect(),
        credentials: (1..=2).map(|n| node::credentials(n, LIFE_S)).collect(),
        keys: keys.map(Arc::new),
    };
    store
        .apply(Update::Full(full), now)
        .expect("a full is no gap");
    store
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Now::read();
        let config = node::config(DriverChoice::Auto);
        let open = DataConfig {
            passthrough: Some(Passthrough {
                allow: Regex::new("").expect("an expression that is found everywhere"),
                endpoint: (Ipv4Addr::LOCALHOST, 1).into(),
                timeout: Duration::from_secs(1),
                body_bytes_max: 1,
            }),
            ..config.clone()
        };
        Self {
            run: DryRun::new(&config, &Tallies::new(1), now).expect("one worker"),
            open: DryRun::new(&open, &Tallies::new(1), now).expect("one worker"),
            snapshot: store(None, now).snapshot(now),
            keyed: store(Some(keys()), now).snapshot(now),
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

    /// Whatever pod 1 has the real service asked for: never what gives away the node's credentials,
    /// whichever way somebody on the way there reads it. `true` when something would be asked.
    pub(crate) fn passthrough(&self, input: &[u8]) -> bool {
        let mut out = Vec::new();
        let dry = self.open.metadata(input, ip(1), &self.snapshot, &mut out);
        check(dry, input, &out);
        let Dry::Fetched { from, to } = dry else {
            return false;
        };
        let mut path = input.get(from..to).expect("within the request").to_vec();
        assert!(path.starts_with(b"/"));
        // As it is, and as others might read it who decode it, perhaps twice, or drop what they skip.
        for _decoding in 0..3 {
            let read: String = String::from_utf8_lossy(&path)
                .to_lowercase()
                .chars()
                .filter(|char| !char.is_whitespace() && !char.is_control())
                .collect();
            for word in [
                "/security-credentials",
                "/iam",
                "/identity-credentials",
                "/user-data",
            ] {
                assert!(!read.contains(word), "{read} may be fetched");
            }
            path = decoded(&path);
        }
        true
    }

    /// Whatever pod 1 sends to the container door, before there are keys and after: nobody can
    /// sign a token, so nobody has credentials.
    pub(crate) fn container(&self, input: &[u8]) {
        for snapshot in [&self.snapshot, &self.keyed] {
            let mut out = Vec::new();
            let dry = self.run.container(input, ip(1), snapshot, &mut out);
            check(dry, input, &out);
            assert!(!matches!(dry, Dry::Answered { status: 200, .. }));
        }
    }
}

/// Percent-decoded once.
fn decoded(path: &[u8]) -> Vec<u8> {
    let (mut left, mut out) = (path, Vec::new());
    while let Some((&byte, rest)) = left.split_first() {
        let code = rest.get(..2).filter(|_| byte == b'%');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        if let Some(code) = code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            out.push(code);
            left = rest.get(2..).unwrap_or_default();
        } else {
            out.push(byte);
            left = rest;
        }
    }
    out
}

fn check(dry: Dry, input: &[u8], out: &[u8]) {
    match dry {
        Dry::Answered { bytes, .. } => {
            assert!(bytes > 0 && bytes <= input.len());
            assert!(out.starts_with(b"HTTP/1.1 "));
        }
        Dry::Refused => assert!(out.starts_with(b"HTTP/1.1 ")),
        Dry::Partial | Dry::Parked | Dry::Fetched { .. } | Dry::Withheld => assert!(out.is_empty()),
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
    // A Delta is a gap to an agent that knows nothing, and may be none to one that knows something.
    for mut store in [Store::new(Doors::Both), store(Some(keys()), now)] {
        let before = (store.revision(), store.pods_len());
        if store.apply(update.clone(), now).is_ok() {
            assert_eq!(store.revision(), Some(update.leads_to()));
        } else {
            assert_eq!((store.revision(), store.pods_len()), before);
            continue;
        }
        if let Update::Delta(delta) = &update {
            let snapshot = store.snapshot(now);
            let named = |uid: &PodUid| delta.pods.iter().any(|pod| pod.uid == *uid);
            for gone in delta.removed_pods.iter().filter(|uid| !named(uid)) {
                assert!(snapshot.by_uid(gone.as_str()).is_none(), "{gone} is gone");
            }
        }
        answers_as_if_told_at_once(&store, now);
    }
}

/// However a store came to hold what it holds, pods are answered as if it had all come in one Full.
fn answers_as_if_told_at_once(store: &Store, now: Now) {
    let full = store.export().expect("a revision");
    let pods = full.pods.clone();
    let mut told = Store::new(Doors::Both);
    told.apply(Update::Full(full), now)
        .expect("a full is no gap");
    let (held, told) = (store.snapshot(now), told.snapshot(now));
    assert_eq!(held.addresses(), told.addresses());
    assert_eq!(held.credentials(), told.credentials());
    assert_eq!(held.keys().is_some(), told.keys().is_some());
    for pod in &pods {
        let uid = pod.uid.as_str();
        assert_eq!(facts(held.by_uid(uid)), facts(told.by_uid(uid)));
        for ip in &pod.ips {
            assert_eq!(facts(held.by_ip(*ip)), facts(told.by_ip(*ip)));
            assert!(held.by_ip(*ip).is_some_and(|entry| entry.uid == pod.uid));
        }
    }
}

/// What decides a pod's answers.
fn facts(entry: Option<&Arc<Entry>>) -> Option<impl PartialEq + std::fmt::Debug> {
    entry.map(|entry| {
        let ends = match &entry.standing {
            Standing::Granted(answers) => Some(answers.expiry().wall()),
            Standing::Pending | Standing::Refused(..) | Standing::NoRole => None,
        };
        (
            entry.uid.clone(),
            entry.service_account.clone(),
            entry.imds_v2_required,
            std::mem::discriminant(&entry.standing),
            ends,
        )
    })
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
        let stands = store.restore_fence(ip, &uid, now);
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
