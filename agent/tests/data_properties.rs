//! The fuzz targets' properties, tried on the seed corpus and on some thousand inputs near it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "../fuzz/properties.rs"]
mod properties;

use std::fs;
use std::path::{Path, PathBuf};

use kiam_agent::handover::sealed::{Kind, seal};
use kiam_agent::handover::snapshot::{self, Here};
use kiam_wire::{Delta, Full, Pod, PodState, PodUid, Revision, UnixSeconds, Update, proto};
use prop::sample::Index;
use properties::World;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let seeds: Vec<_> = fs::read_dir(folder(target))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!seeds.is_empty());
    seeds
}

/// What is done to a seed.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Cut(Index, usize),
    Append(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let piece = prop_oneof![
        vec(any::<u8>(), 1..4),
        prop::sample::select(vec![
            "\r\n",
            "\n",
            "\r",
            "\0",
            " ",
            "\t",
            ":",
            "%",
            "%2e",
            "%2f",
            "/",
            "//",
            "..",
            ";",
            "?",
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Expect: 100-continue\r\n",
            "X-aws-ec2-metadata-token: a\r\n",
            "role-2",
            "HTTP/1.0",
            "uid-2",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (any::<Index>(), piece).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (any::<Index>(), 1..8_usize).prop_map(|(at, bytes)| Change::Cut(at, bytes)),
        any::<Index>().prop_map(Change::Append),
    ]
}

fn changed(seeds: &[Vec<u8>], seed: Index, changes: &[Change]) -> Vec<u8> {
    let mut input = seed.get(seeds).clone();
    for change in changes {
        match change {
            Change::Set(at, byte) if !input.is_empty() => {
                let at = at.index(input.len());
                input[at] = *byte;
            }
            Change::Insert(at, piece) => {
                let at = at.index(input.len() + 1);
                input.splice(at..at, piece.iter().copied());
            }
            Change::Cut(at, bytes) if !input.is_empty() => {
                let at = at.index(input.len());
                let end = (at + bytes).min(input.len());
                input.drain(at..end);
            }
            Change::Append(other) => input.extend::<Vec<u8>>(other.get(seeds).clone()),
            Change::Set(..) | Change::Cut(..) => {}
        }
    }
    input
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_request(seed: Index, changes in vec(change(), 0..6)) {
        thread_local!(static WORLD: World = World::new());
        let input = changed(&seeds("request"), seed, &changes);
        WORLD.with(|world| {
            world.request(&input);
            world.passthrough(&input);
        });
    }

    #[test]
    fn any_request_at_the_container_door(seed: Index, changes in vec(change(), 0..6)) {
        thread_local!(static WORLD: World = World::new());
        WORLD.with(|world| world.container(&changed(&seeds("container"), seed, &changes)));
    }

    #[test]
    fn any_update(seed: Index, changes in vec(change(), 0..6)) {
        let mut seeds = seeds("update");
        seeds.push(message(&full()));
        seeds.push(message(&delta()));
        properties::update(&changed(&seeds, seed, &changes));
    }

    #[test]
    fn anything_in_the_handover_directory(seed: Index, changes in vec(change(), 0..6)) {
        properties::handover(&changed(&seeds("handover"), seed, &changes));
    }
}

/// Nothing that once broke something, or covers what nothing else does, is left to chance.
#[test]
fn every_seed_as_it_is() {
    let world = World::new();
    let mut fetched = 0;
    for seed in seeds("request") {
        world.request(&seed);
        fetched += usize::from(world.passthrough(&seed));
    }
    assert!(fetched > 0, "nothing is ever fetched");
    for seed in seeds("container") {
        world.container(&seed);
    }
    for seed in seeds("update") {
        properties::update(&seed);
    }
    for seed in seeds("handover") {
        properties::handover(&seed);
    }
}

#[test]
fn the_handover_seed_is_one() {
    let here = Here {
        node_name: "node-a",
        boot_id: "boot-1",
        now: UnixSeconds::new(1_800_000_000),
    };
    let seed = fs::read(folder("handover").join("full")).unwrap();
    snapshot::decode(&seal(Kind::Snapshot, &seed), here).unwrap();
}

fn message(update: &Update) -> Vec<u8> {
    proto::ServerMessage::from(update).encode_to_vec()
}

fn revision() -> Revision {
    Revision {
        epoch: 1,
        number: 1,
    }
}

fn pod() -> Pod {
    Pod {
        uid: PodUid::try_new("uid-1").unwrap(),
        namespace: "default".into(),
        name: "pod-1".into(),
        service_account: "web".into(),
        ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        host_network: false,
        imds_v2_required: true,
        state: PodState::NoRole,
    }
}

fn full() -> Update {
    Update::Full(Full {
        revision: revision(),
        pods: vec![pod(), pod()],
        credentials: vec![],
        keys: None,
    })
}

fn delta() -> Update {
    Update::Delta(Delta {
        from: revision(),
        to: revision(),
        pods: vec![pod()],
        removed_pods: vec![pod().uid],
        credentials: vec![],
        keys: None,
    })
}
