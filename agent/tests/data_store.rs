//! The store's rules, against a model that is too simple to be fast and too simple to be wrong.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use kiam_agent::clock::Now;
use kiam_agent::snapshot::store::Doors;
use kiam_agent::snapshot::{Entry, Snapshot, Standing, Store};
use kiam_wire::credentials::Unchecked;
use kiam_wire::{
    CredentialId, Credentials, Delta, Full, Pod, PodState, PodUid, Refusal, Refused, Revision,
    UnixSeconds, Update,
};
use proptest::collection::vec;
use proptest::prelude::*;
use zeroize::Zeroizing;

const UIDS: u8 = 4;
const IPS: u8 = 4;
const IDS: u8 = 3;

/// What happens to a store.
#[derive(Debug, Clone)]
enum Event {
    Full(Vec<PodPlan>, Vec<(u8, u16)>),
    Delta(Vec<u8>, Vec<PodPlan>, Vec<(u8, u16)>),
    /// A delta from elsewhere.
    Stray(Vec<PodPlan>),
    Fence(u8),
    Unfence(u8),
    Pass(u16),
    Expire,
}

#[derive(Debug, Clone)]
struct PodPlan {
    uid: u8,
    ips: Vec<u8>,
    state: StatePlan,
}

#[derive(Debug, Clone, Copy)]
enum StatePlan {
    Granted(u8),
    Pending(u8),
    Refused,
    NoRole,
}

fn pods() -> impl Strategy<Value = Vec<PodPlan>> {
    let state = prop_oneof![
        (0..IDS).prop_map(StatePlan::Granted),
        (0..IDS).prop_map(StatePlan::Pending),
        Just(StatePlan::Refused),
        Just(StatePlan::NoRole),
    ];
    let pod = (0..UIDS, vec(0..IPS, 0..3), state).prop_map(|(uid, ips, state)| PodPlan {
        uid,
        ips,
        state,
    });
    vec(pod, 0..4)
}

fn event() -> impl Strategy<Value = Event> {
    let credentials = || vec((0..IDS, 1..500_u16), 0..3);
    prop_oneof![
        2 => (pods(), credentials()).prop_map(|(pods, held)| Event::Full(pods, held)),
        6 => (vec(0..UIDS, 0..2), pods(), credentials())
            .prop_map(|(gone, pods, held)| Event::Delta(gone, pods, held)),
        1 => pods().prop_map(Event::Stray),
        1 => (0..IPS).prop_map(Event::Fence),
        1 => (0..IPS).prop_map(Event::Unfence),
        2 => (0..300_u16).prop_map(Event::Pass),
        1 => Just(Event::Expire),
    ]
}

fn ip(n: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, n).into()
}

fn uid(n: u8) -> PodUid {
    PodUid::try_new(&format!("uid-{n}")).unwrap()
}

fn id(n: u8) -> CredentialId {
    CredentialId::new([n; 32])
}

fn pod(plan: &PodPlan) -> Pod {
    Pod {
        uid: uid(plan.uid),
        namespace: "n".into(),
        name: "p".into(),
        service_account: "s".into(),
        ips: plan.ips.iter().map(|n| ip(*n)).collect(),
        host_network: false,
        imds_v2_required: false,
        state: match plan.state {
            StatePlan::Granted(n) => PodState::Granted(id(n)),
            StatePlan::Pending(n) => PodState::Pending(id(n)),
            StatePlan::Refused => PodState::Refused(Refused::new(Refusal::Other, "no")),
            StatePlan::NoRole => PodState::NoRole,
        },
    }
}

fn credentials(n: u8, expires_at: i64) -> Arc<Credentials> {
    Arc::new(
        Credentials::try_new(Unchecked {
            id: id(n),
            role_name: "r".into(),
            role_arn: "arn:aws:iam::1:role/r".into(),
            access_key_id: format!("{n}@{expires_at}"),
            secret_access_key: Zeroizing::new("s".into()),
            session_token: Zeroizing::new("t".into()),
            issued_at: UnixSeconds::new(0),
            expires_at: UnixSeconds::new(expires_at),
        })
        .unwrap(),
    )
}

/// The rules, said once more and slowly.
#[derive(Default)]
struct Model {
    pods: BTreeMap<u8, PodPlan>,
    owners: BTreeMap<u8, u8>,
    fenced: BTreeMap<u8, u8>,
    /// Expiry by id.
    held: BTreeMap<u8, i64>,
}

impl Model {
    fn take(&mut self, uid: u8) {
        self.pods.remove(&uid);
        self.owners.retain(|_, owner| *owner != uid);
    }

    fn put(&mut self, pod: &PodPlan) {
        self.take(pod.uid);
        for ip in &pod.ips {
            self.owners.insert(*ip, pod.uid);
            if self.fenced.get(ip).is_some_and(|uid| *uid != pod.uid) {
                self.fenced.remove(ip);
            }
        }
        self.pods.insert(pod.uid, pod.clone());
    }

    fn receive(&mut self, credentials: &[(u8, i64)]) {
        for (id, expires_at) in credentials {
            let held = self.held.entry(*id).or_insert(*expires_at);
            *held = (*held).max(*expires_at);
        }
        let pods = &self.pods;
        self.held.retain(|id, _| {
            pods.values().any(|pod| match pod.state {
                StatePlan::Granted(n) | StatePlan::Pending(n) => n == *id,
                StatePlan::Refused | StatePlan::NoRole => false,
            })
        });
    }

    fn full(&mut self, pods: &[PodPlan], credentials: &[(u8, i64)], now: i64) {
        let fenced = std::mem::take(&mut self.fenced);
        self.pods.clear();
        self.owners.clear();
        for pod in pods {
            self.put(pod);
        }
        self.fenced = fenced;
        let owners = &self.owners;
        self.fenced
            .retain(|ip, uid| owners.get(ip).is_none_or(|owner| owner == uid));
        self.held.retain(|_, expires_at| *expires_at > now);
        self.receive(credentials);
    }

    fn says(&self, uid: u8, now: i64) -> String {
        match self.pods[&uid].state {
            StatePlan::Granted(id) | StatePlan::Pending(id) => self
                .held
                .get(&id)
                .filter(|expires_at| **expires_at > now)
                .map_or("pending".into(), |expires_at| format!("{id}@{expires_at}")),
            StatePlan::Refused => "refused".into(),
            StatePlan::NoRole => "no role".into(),
        }
    }
}

fn said(entry: Option<&Arc<Entry>>, now: Now) -> Option<String> {
    entry.map(|entry| match &entry.standing {
        Standing::Granted(answers) if answers.expiry().has_passed(now) => "pending".into(),
        Standing::Granted(answers) => answers.access_key_id().into(),
        Standing::Pending => "pending".into(),
        Standing::Refused(..) => "refused".into(),
        Standing::NoRole => "no role".into(),
    })
}

fn agree(model: &Model, store: &Store, now: Now) -> Result<(), TestCaseError> {
    let snapshot: Snapshot = store.snapshot(now);
    let wall = now.wall.get();
    for n in 0..IPS {
        let owner = model
            .owners
            .get(&n)
            .filter(|_| !model.fenced.contains_key(&n));
        let expected = owner.map(|uid| model.says(*uid, wall));
        prop_assert_eq!(said(snapshot.by_ip(ip(n)), now), expected, "at {}", ip(n));
    }
    for n in 0..UIDS {
        let expected = model.pods.contains_key(&n).then(|| model.says(n, wall));
        prop_assert_eq!(
            said(snapshot.by_uid(uid(n).as_str()), now),
            expected,
            "for {}",
            n
        );
    }
    let mut held: Vec<_> = store
        .held()
        .iter()
        .map(|held| (held.id.as_bytes()[0], held.expires_at.get()))
        .collect();
    held.sort_unstable();
    prop_assert_eq!(held, model.held.clone().into_iter().collect::<Vec<_>>());
    Ok(())
}

proptest! {
    #[test]
    fn the_store_does_what_the_model_does(events in vec(event(), 1..24)) {
        let start = Now { wall: UnixSeconds::new(1_000), ..Now::read() };
        let (mut store, mut model) = (Store::new(Doors::Both), Model::default());
        let (mut now, mut number) = (start, 0);
        let revision = |number| Revision { epoch: 1, number };
        for event in events {
            let wall = now.wall.get();
            let timed = |held: &[(u8, u16)]| -> Vec<(u8, i64)> {
                held.iter().map(|(id, life)| (*id, wall + i64::from(*life))).collect()
            };
            let sent = |held: &[(u8, i64)]| {
                held.iter().map(|(id, at)| credentials(*id, *at)).collect::<Vec<_>>()
            };
            match event {
                Event::Full(pods, held) => {
                    let held = timed(&held);
                    number += 1;
                    model.full(&pods, &held, wall);
                    store.apply(Update::Full(Full {
                        revision: revision(number),
                        pods: pods.iter().map(pod).collect(),
                        credentials: sent(&held),
                        keys: None,
                    }), now).unwrap();
                }
                Event::Delta(gone, pods, held) if number > 0 => {
                    let held = timed(&held);
                    for uid in &gone {
 model.take(*uid);
 }
                    for pod in &pods {
 model.put(pod);
 }
                    model.receive(&held);
                    number += 1;
                    store.apply(Update::Delta(Delta {
                        from: revision(number - 1),
                        to: revision(number),
                        pods: pods.iter().map(pod).collect(),
                        removed_pods: gone.iter().map(|n| uid(*n)).collect(),
                        credentials: sent(&held),
                        keys: None,
                    }), now).unwrap();
                }
                Event::Delta(_, pods, _) | Event::Stray(pods) => {
                    let gap = store.apply(Update::Delta(Delta {
                        from: revision(number + 100),
                        to: revision(number + 101),
                        pods: pods.iter().map(pod).collect(),
                        removed_pods: (0..UIDS).map(uid).collect(),
                        credentials: vec![credentials(0, wall + 1_000)],
                        keys: None,
                    }), now).unwrap_err();
                    prop_assert_eq!(gap.holds, (number > 0).then(|| revision(number)));
                }
                Event::Fence(n) => {
                    let owner = model.owners.get(&n).copied();
                    prop_assert_eq!(store.fence(ip(n)), owner.is_some());
                    if let Some(owner) = owner {
                        model.fenced.insert(n, owner);
                    }
                }
                Event::Unfence(n) => {
                    prop_assert_eq!(store.unfence(ip(n), now), model.fenced.remove(&n).is_some());
                }
                Event::Expire => {
                    let before = model.held.len();
                    model.held.retain(|_, expires_at| *expires_at > wall);
                    prop_assert_eq!(store.expire(now), before - model.held.len());
                    prop_assert!(store.soonest_expiry().is_none_or(|soonest| !soonest.has_passed(now)));
                }
                Event::Pass(seconds) => now = now.after(Duration::from_secs(seconds.into())),
            }
            agree(&model, &store, now)?;
        }
        // Whoever takes over from an export answers the same.
        if let Some(full) = store.export() {
            let mut next = Store::new(Doors::Both);
            next.apply(Update::Full(full), now).unwrap();
            // Fences are handed over beside it.
            for n in model.fenced.keys() {
                next.fence(ip(*n));
            }
            let snapshot = next.snapshot(now);
            for n in 0..IPS {
                let owner = model.owners.get(&n).filter(|_| !model.fenced.contains_key(&n));
                let expected = owner.map(|uid| model.says(*uid, now.wall.get()));
                prop_assert_eq!(said(snapshot.by_ip(ip(n)), now), expected, "handed over: {}", ip(n));
            }
            for n in 0..UIDS {
                let expected = model.pods.contains_key(&n).then(|| model.says(n, now.wall.get()));
                prop_assert_eq!(said(snapshot.by_uid(uid(n).as_str()), now), expected);
            }
        }
    }
}
