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
use kiam_agent::snapshot::store::departed::{DEPARTED_MAX, REMEMBERED};
use kiam_agent::snapshot::store::{Doors, UNSAID};
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
    /// The pod that was behind this address so many seconds ago is gone.
    LateFence(u8, u16),
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
        2 => (0..IPS, 0..300_u16).prop_map(|(n, ago)| Event::LateFence(n, ago)),
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

/// A pod that has lost an address, the latest last.
#[derive(Debug, Clone, Copy)]
struct Departure {
    ip: u8,
    uid: u8,
    /// As the kernel has seen; otherwise a server has said so.
    seen: bool,
    at: i64,
}

/// The rules, said once more and slowly.
#[derive(Default)]
struct Model {
    pods: BTreeMap<u8, PodPlan>,
    /// Who has an address, and since when without a break.
    owners: BTreeMap<u8, (u8, i64)>,
    departed: Vec<Departure>,
    /// Expiry by id.
    held: BTreeMap<u8, i64>,
}

impl Model {
    fn take(&mut self, uid: u8) {
        self.pods.remove(&uid);
        self.owners.retain(|_, (owner, _)| *owner != uid);
    }

    fn put(&mut self, pod: &PodPlan, now: i64) {
        let before = self.owners.clone();
        self.take(pod.uid);
        for ip in &pod.ips {
            self.owners.insert(*ip, (pod.uid, now));
        }
        self.keep_since(&before);
        self.pods.insert(pod.uid, pod.clone());
    }

    /// Who had an address before has had it since then.
    fn keep_since(&mut self, before: &BTreeMap<u8, (u8, i64)>) {
        for (ip, (uid, since)) in &mut self.owners {
            if let Some((_, earlier)) = before.get(ip).filter(|(owner, _)| owner == uid) {
                *since = *earlier;
            }
        }
    }

    fn owns(&self, ip: u8, uid: u8) -> bool {
        self.owners.get(&ip).is_some_and(|(owner, _)| *owner == uid)
    }

    fn is_shut(&self, ip: u8) -> bool {
        let mut departed = self.departed.iter().filter(|one| one.ip == ip);
        departed.any(|one| self.owns(ip, one.uid))
    }

    fn depart(&mut self, ip: u8, uid: u8, seen: bool, at: i64) {
        let known = self
            .departed
            .iter()
            .position(|one| (one.ip, one.uid) == (ip, uid));
        if let Some(known) = known {
            if self.departed[known].seen && !seen {
                self.departed[known].at = at;
                return;
            }
            self.departed.remove(known);
        }
        self.departed.push(Departure { ip, uid, seen, at });
    }

    fn forget(&mut self, now: i64) {
        let owners = self.owners.clone();
        let remembered_s = i64::try_from(REMEMBERED.as_secs()).unwrap();
        self.departed.retain_mut(|one| {
            let is_old = now - one.at >= remembered_s;
            let is_named = owners.get(&one.ip).is_some_and(|(uid, _)| *uid == one.uid);
            if is_old && is_named && one.seen {
                one.at = now;
            }
            !is_old || is_named && one.seen
        });
    }

    fn fence(&mut self, ip: u8, seen: i64, now: i64) -> bool {
        let owner = self.owners.get(&ip).filter(|(_, since)| *since <= seen);
        let owner = owner.map(|(uid, _)| *uid);
        if let Some(uid) = owner {
            self.depart(ip, uid, true, now);
        }
        owner.is_some()
    }

    fn unfence(&mut self, ip: u8) -> bool {
        let last = self
            .departed
            .iter()
            .rposition(|one| one.ip == ip && one.seen);
        let owner = self.owners.get(&ip).map(|(uid, _)| *uid);
        let last = last.filter(|last| owner.is_none_or(|uid| uid == self.departed[*last].uid));
        last.map(|last| self.departed.remove(last)).is_some()
    }

    fn delta(&mut self, gone: &[u8], pods: &[PodPlan], now: i64) {
        let before = self.owners.clone();
        let touched =
            |ip: &u8, uid: &u8| gone.contains(uid) || pods.iter().any(|pod| pod.ips.contains(ip));
        for uid in gone {
            self.take(*uid);
        }
        for pod in pods {
            self.put(pod, now);
        }
        for (ip, (uid, _)) in before.iter().filter(|(ip, (uid, _))| touched(ip, uid)) {
            let is_anothers = self.owners.contains_key(ip) && !self.owns(*ip, *uid);
            if is_anothers || !self.pods.contains_key(uid) {
                self.depart(*ip, *uid, false, now);
            }
        }
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
        self.pods.clear();
        let before = std::mem::take(&mut self.owners);
        for pod in pods {
            self.put(pod, now);
        }
        self.keep_since(&before);
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
        let owner = model.owners.get(&n).filter(|_| !model.is_shut(n));
        let expected = owner.map(|(uid, _)| model.says(*uid, wall));
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
                    model.delta(&gone, &pods, wall);
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
                    prop_assert_eq!(store.fence(ip(n), now), model.fence(n, wall, wall));
                }
                Event::LateFence(n, ago) => {
                    let seen = (wall - i64::from(ago)).max(start.wall.get());
                    let elapsed = UnixSeconds::new(seen).since(start.wall);
                    let fenced = store.fence_as_of(ip(n), start.after(elapsed), now);
                    prop_assert_eq!(fenced, model.fence(n, seen, wall));
                }
                Event::Unfence(n) => {
                    prop_assert_eq!(store.unfence(ip(n), now), model.unfence(n));
                }
                Event::Expire => {
                    let before = model.held.len();
                    model.held.retain(|_, expires_at| *expires_at > wall);
                    prop_assert_eq!(store.expire(now), before - model.held.len());
                    prop_assert!(store.soonest_expiry().is_none_or(|soonest| !soonest.has_passed(now)));
                }
                Event::Pass(seconds) => {
                    now = now.after(Duration::from_secs(seconds.into()));
                    store.forget_departed(now);
                }
            }
            model.forget(now.wall.get());
            agree(&model, &store, now)?;
        }
        // Whoever takes over answers the same.
        if let Some(full) = store.export() {
            let mut next = Store::new(Doors::Both);
            next.apply(Update::Full(full), now).unwrap();
            for (ip, uid) in store.fenced() {
                next.restore_fence(ip, uid, now);
            }
            for (ip, uid) in store.superseded() {
                next.restore_superseded(ip, uid, now);
            }
            agree(&model, &next, now)?;
        }
    }
}

fn granted(n: u8, ips: &[u8]) -> Pod {
    pod(&PodPlan {
        uid: n,
        ips: ips.to_vec(),
        state: StatePlan::Granted(n),
    })
}

fn full(number: u64, pods: Vec<Pod>) -> Update {
    Update::Full(Full {
        revision: Revision { epoch: 1, number },
        pods,
        credentials: (0..IDS).map(|n| credentials(n, 2_000)).collect(),
        keys: None,
    })
}

/// The successor of an agent, and what it answers to address 1.
fn succeeded(store: &Store, now: Now) -> (Store, Option<String>) {
    let mut next = Store::new(Doors::Metadata);
    let everything = store.export().unwrap();
    next.apply(Update::Full(everything), now).unwrap();
    for (ip, uid) in store.fenced() {
        next.restore_fence(ip, uid, now);
    }
    for (ip, uid) in store.superseded() {
        next.restore_superseded(ip, uid, now);
    }
    let said = said(next.snapshot(now).by_ip(ip(1)), now);
    (next, said)
}

#[test]
fn a_fence_outlives_the_agent() {
    let now = Now {
        wall: UnixSeconds::new(1_000),
        ..Now::read()
    };
    let at_one = |store: &Store| said(store.snapshot(now).by_ip(ip(1)), now);
    let mut store = Store::new(Doors::Metadata);
    store.apply(full(1, vec![granted(1, &[1])]), now).unwrap();
    assert_eq!(at_one(&store).as_deref(), Some("1@2000"));
    assert!(store.fence(ip(1), now));

    // While the pod that went is still named.
    let (mut next, said) = succeeded(&store, now);
    assert_eq!(said, None);
    next.apply(full(2, vec![granted(1, &[1])]), now).unwrap();
    assert_eq!(at_one(&next), None);
    assert!(next.unfence(ip(1), now), "the kernel saw it come back");
    assert_eq!(at_one(&next).as_deref(), Some("1@2000"));

    // After it was not named any more, to a server that is behind and names it again.
    store.apply(full(3, vec![]), now).unwrap();
    let (mut next, said) = succeeded(&store, now);
    assert_eq!(said, None);
    next.apply(full(4, vec![granted(1, &[1])]), now).unwrap();
    assert_eq!(at_one(&next), None);
    next.apply(full(5, vec![granted(2, &[1])]), now).unwrap();
    assert_eq!(at_one(&next).as_deref(), Some("2@2000"));
}

#[test]
fn a_late_word_fences_the_pod_it_is_about() {
    let start = Now {
        wall: UnixSeconds::new(1_000),
        ..Now::read()
    };
    let later = start.after(Duration::from_secs(5));
    let mut store = Store::new(Doors::Metadata);
    store.apply(full(1, vec![granted(1, &[1])]), start).unwrap();
    // The server gave the address to another pod after the first one was last seen there.
    store.apply(full(2, vec![granted(2, &[1])]), later).unwrap();
    assert!(!store.fence_as_of(ip(1), start, later));
    assert!(store.fence_as_of(ip(1), later, later));
    store.unfence(ip(1), later);

    // Being named again is not being given it anew.
    let much_later = start.after(Duration::from_secs(50));
    store
        .apply(full(3, vec![granted(2, &[1])]), much_later)
        .unwrap();
    assert!(store.fence_as_of(ip(1), later, much_later));
}

#[test]
fn a_doubted_address_waits_for_a_server() {
    let now = Now::read();
    let mut store = Store::new(Doors::Both);
    let pods = || vec![granted(0, &[0]), granted(1, &[1])];
    store.apply(full(1, pods()), now).unwrap();
    let answered = |store: &Store| [0, 1].map(|n| store.snapshot(now).by_ip(ip(n)).is_some());
    assert_eq!(store.doubt_all_but(&[ip(0)].into()), 1);
    assert!(store.has_doubts());
    assert_eq!(answered(&store), [true, false]);
    // Who proves who they are need no address.
    assert!(store.snapshot(now).by_uid(uid(1).as_str()).is_some());
    // Nothing that happens here makes it certain; the server is asked for everything.
    store.unfence(ip(1), now);
    store.expire(now);
    assert_eq!(answered(&store), [true, false]);
    assert_ne!(
        store.revision(),
        Some(Revision {
            epoch: 1,
            number: 1
        })
    );
    store.apply(full(2, pods()), now).unwrap();
    assert_eq!(answered(&store), [true, true]);
    assert!(!store.has_doubts());
}

fn delta(from: u64, pods: Vec<Pod>, gone: &[u8]) -> Update {
    Update::Delta(Delta {
        from: Revision {
            epoch: 1,
            number: from,
        },
        to: Revision {
            epoch: 1,
            number: from + 1,
        },
        pods,
        removed_pods: gone.iter().map(|n| uid(*n)).collect(),
        credentials: (0..IDS).map(|n| credentials(n, 9_000)).collect(),
        keys: None,
    })
}

fn at_start() -> Now {
    Now {
        wall: UnixSeconds::new(1_000),
        ..Now::read()
    }
}

#[test]
fn a_server_that_is_behind_does_not_bring_a_dead_pod_back() {
    let now = at_start();
    let at_one = |store: &Store| said(store.snapshot(now).by_ip(ip(1)), now);
    let mut store = Store::new(Doors::Metadata);
    store.apply(full(1, vec![granted(1, &[1])]), now).unwrap();
    assert!(store.fence(ip(1), now));
    store.apply(full(2, vec![granted(2, &[1])]), now).unwrap();
    assert_eq!(at_one(&store).as_deref(), Some("2@2000"));

    // Another replica, which has not heard of the second pod.
    let behind = || full(3, vec![granted(1, &[1])]);
    store.apply(behind(), now).unwrap();
    assert_eq!(at_one(&store), None);
    let (_, said) = succeeded(&store, now);
    assert_eq!(said, None);
    // It hears of it, and the pod that is there has lost nothing.
    let caught_up = delta(3, vec![granted(2, &[1])], &[1]);
    store.apply(caught_up, now).unwrap();
    assert_eq!(at_one(&store).as_deref(), Some("2@9000"));
    // Nor has it when the other replica is left for a third that is up to date.
    store.apply(behind(), now).unwrap();
    store.apply(full(4, vec![granted(2, &[1])]), now).unwrap();
    assert_eq!(at_one(&store).as_deref(), Some("2@2000"));
}

#[test]
fn without_the_kernels_word_the_order_of_one_stream_is_remembered() {
    let start = at_start();
    let at_one = |store: &Store, now| said(store.snapshot(now).by_ip(ip(1)), now);
    for replaced in [
        // The first pod is gone, or still stops; the second has its address.
        delta(1, vec![granted(2, &[1])], &[1]),
        delta(1, vec![granted(2, &[1]), granted(1, &[])], &[]),
        // Gone, and nobody named yet.
        delta(1, vec![], &[1]),
    ] {
        let mut store = Store::new(Doors::Metadata);
        store.apply(full(1, vec![granted(1, &[1])]), start).unwrap();
        store.apply(replaced, start).unwrap();
        store.apply(full(3, vec![granted(1, &[1])]), start).unwrap();
        assert_eq!(at_one(&store, start), None);
        // For a while: a server's word is not the kernel's.
        let later = start.after(REMEMBERED);
        assert!(store.forget_departed(later));
        store.apply(full(4, vec![granted(1, &[1])]), start).unwrap();
        assert!(at_one(&store, start).is_some());
        assert!(!store.forget_departed(later));
    }
    // What a Full no longer names may only be too new for who sends it.
    let mut store = Store::new(Doors::Metadata);
    store.apply(full(1, vec![granted(1, &[1])]), start).unwrap();
    store.apply(full(2, vec![]), start).unwrap();
    store.apply(full(3, vec![granted(1, &[1])]), start).unwrap();
    assert!(at_one(&store, start).is_some());
}

#[test]
fn a_pod_that_cannot_be_read_is_lost_and_may_come_back() {
    let now = at_start();
    let at_one = |store: &Store| said(store.snapshot(now).by_ip(ip(1)), now);
    let mut store = Store::new(Doors::Both);
    let pods = vec![granted(1, &[1]), granted(2, &[2])];
    store.apply(full(1, pods), now).unwrap();
    assert!(!store.lose(&[uid(3)]));
    assert!(store.lose(&[uid(1)]));
    store.apply(delta(1, vec![], &[]), now).unwrap();
    store.lacks_something();
    assert_eq!(at_one(&store), None);
    assert!(store.snapshot(now).by_uid(uid(1).as_str()).is_none());
    assert_eq!(store.held().len(), 1, "its credentials go with it");
    // The next stream, and the next agent, ask for everything; this stream goes on.
    assert_eq!(
        (store.named(), store.export().unwrap().revision),
        (None, UNSAID)
    );
    // It has not left its address to anybody.
    store
        .apply(delta(2, vec![granted(1, &[1])], &[]), now)
        .unwrap();
    assert_eq!(at_one(&store).as_deref(), Some("1@9000"));
    assert_eq!(store.named(), None);
    store.apply(full(4, vec![]), now).unwrap();
    assert_eq!(store.named(), store.revision());
}

#[test]
fn addresses_that_nobody_has_again_leave_no_trace() {
    let now = at_start();
    let mut store = Store::new(Doors::Metadata);
    store.apply(full(1, vec![]), now).unwrap();
    for n in 0..100_000_u32 {
        let address = IpAddr::from(std::net::Ipv6Addr::from(u128::from(n) + 1));
        let uid = PodUid::try_new(&n.to_string()).unwrap();
        store.restore_fence(address, &uid, now);
    }
    assert_eq!(store.fenced().count(), DEPARTED_MAX);
    store.forget_departed(now.after(REMEMBERED));
    assert_eq!(store.fenced().count(), 0);
}
