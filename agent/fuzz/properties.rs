//! What must hold for any input whatsoever.
//!
//! Included by the fuzz targets, which search for a counterexample, and by a test, which tries some
//! on every run.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::sync::Arc;

use kiam_agent::clock::Now;
use kiam_agent::data::dry::{Dry, DryRun};
use kiam_agent::data::{DataConfig, DriverChoice, Limits, Scheduling, TokenKey};
use kiam_agent::handover::sealed::{Kind, seal};
use kiam_agent::handover::snapshot::{self, Addresses, Here};
use kiam_agent::readiness::Following;
use kiam_agent::snapshot::store::Doors;
use kiam_agent::snapshot::{Snapshot, Store};
use kiam_agent::tally::Tallies;
use kiam_wire::credentials::Unchecked;
use kiam_wire::update::Parsed;
use kiam_wire::{
    CredentialId, Credentials, Full, Pod, PodState, PodUid, Revision, UnixSeconds, Update, proto,
};
use zeroize::Zeroizing;

/// A worker and a node of two pods.
pub(crate) struct World {
    run: DryRun,
    snapshot: Snapshot,
}

fn ip(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, n).into()
}

impl World {
    pub(crate) fn new() -> Self {
        let now = Now::read();
        let config = DataConfig {
            listen: vec![],
            container_listen: vec![],
            workers: NonZeroUsize::MIN,
            pin_workers: false,
            driver: DriverChoice::Auto,
            scheduling: Scheduling::Other,
            imds_v2_only: false,
            token_hop_limit: None,
            region: None,
            availability_zone: None,
            allow_ip_query: false,
            passthrough: None,
            audience: "kiam".into(),
            token_key: TokenKey::new([7; 32]),
            audit_log: false,
            limits: Limits::default(),
            witness: None,
            following: Following::default(),
        };
        let mut store = Store::new(Doors::Both);
        let full = Full {
            revision: Revision {
                epoch: 1,
                number: 1,
            },
            pods: (1..=2).map(pod).collect(),
            credentials: (1..=2).map(|n| credentials(n, now)).collect(),
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
    let secret = b"secret-of-2";
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

fn pod(n: u8) -> Pod {
    Pod {
        uid: PodUid::try_new(&format!("uid-{n}")).expect("a uid"),
        namespace: "default".into(),
        name: format!("pod-{n}"),
        service_account: "web".into(),
        ips: vec![ip(n)],
        host_network: false,
        imds_v2_required: false,
        state: PodState::Granted(CredentialId::new([n; 32])),
    }
}

fn credentials(n: u8, now: Now) -> Arc<Credentials> {
    Arc::new(
        Credentials::try_new(Unchecked {
            id: CredentialId::new([n; 32]),
            role_name: format!("role-{n}"),
            role_arn: format!("arn:aws:iam::123456789012:role/role-{n}"),
            access_key_id: format!("ASIA{n}"),
            secret_access_key: Zeroizing::new(format!("secret-of-{n}")),
            session_token: Zeroizing::new("token".into()),
            issued_at: now.wall,
            // Longer than any fuzzer runs.
            expires_at: UnixSeconds::new(now.wall.get() + 1_000_000_000),
        })
        .expect("credentials"),
    )
}
