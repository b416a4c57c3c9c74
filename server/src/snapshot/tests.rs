use std::time::Duration;

use kiam_wire::credentials::Unchecked;
use kiam_wire::{PodState, UnixSeconds};

use super::*;
use crate::annotations::Annotations;
use crate::nodes::PodSeen;
use kiam_wire::{Delta, Revision};

const EPOCH: u64 = 9;

fn stamp(number: u64) -> Stamp {
    Stamp {
        number,
        at: Moment::new(Duration::from_millis(number)),
    }
}

fn uid(uid: &str) -> PodUid {
    PodUid::try_new(uid).unwrap()
}

fn id(n: u8) -> CredentialId {
    CredentialId::new([n; 32])
}

fn seen(name: &str, ips: &[&str]) -> Arc<PodSeen> {
    Arc::new(PodSeen {
        uid: uid(name),
        namespace: "default".into(),
        name: name.into(),
        service_account: "".into(),
        node: Some("a".into()),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        host_network: false,
        is_static: false,
        terminating: false,
        created_at: UnixSeconds::new(0),
        annotations: Annotations::default(),
    })
}

fn pod(name: &str, state: PodState) -> Shown {
    Shown::new(seen(name, &[]), vec![], false, state)
}

fn credentials(n: u8, expires_at: i64) -> Arc<Credentials> {
    let parts = Unchecked {
        id: id(n),
        role_name: "r".into(),
        role_arn: "arn:aws:iam::123456789012:role/r".into(),
        access_key_id: "ASIA".into(),
        secret_access_key: "s".to_owned().into(),
        session_token: "t".to_owned().into(),
        issued_at: UnixSeconds::new(0),
        expires_at: UnixSeconds::new(expires_at),
    };
    Arc::new(Credentials::try_new(parts).unwrap())
}

/// `+pod` for a pod, `-pod` for a removal, `#n` for credentials, in order.
fn words(delta: &Delta) -> String {
    let mut words: Vec<String> = delta
        .pods
        .iter()
        .map(|pod| format!("+{}", pod.name))
        .collect();
    words.extend(delta.removed_pods.iter().map(|uid| format!("-{uid}")));
    let ids = delta.credentials.iter().map(|c| c.id().as_bytes()[0]);
    words.extend(ids.map(|id| format!("#{id}")));
    words.sort();
    words.join(" ")
}

#[track_caller]
fn check(table: &NodeTable, told: &mut Told, expected: Option<&str>) {
    let from = told.revision();
    let delta = told.since(table).map(|(delta, _oldest)| delta);
    assert_eq!(delta.as_ref().map(words).as_deref(), expected);
    if let Some(delta) = delta {
        assert_eq!((delta.from, delta.to), (from, told.revision()));
        assert_eq!(delta.to.number, table.number());
    }
}

#[test]
fn a_stream_says_what_changed_and_only_that() {
    let mut table = NodeTable::new(stamp(1));
    table.put_pod(pod("a", PodState::NoRole), None, stamp(2));
    let (mut told, full) = Told::full(&table, EPOCH);
    assert_eq!(full.pods.len(), 1);
    assert_eq!(
        full.revision,
        Revision {
            epoch: EPOCH,
            number: 2
        }
    );
    check(&table, &mut told, None);
    table.put_pod(pod("b", PodState::NoRole), None, stamp(3));
    check(&table, &mut told, Some("+b"));
    table.remove_pod(&uid("a"), stamp(4));
    table.put_pod(pod("b", PodState::Pending(id(1))), None, stamp(5));
    check(&table, &mut told, Some("+b -a"));
    check(&table, &mut told, None);
}

#[test]
fn what_came_and_went_unsaid_is_not_mentioned() {
    let mut table = NodeTable::new(stamp(1));
    let (mut told, _full) = Told::full(&table, EPOCH);
    table.put_pod(pod("a", PodState::NoRole), None, stamp(2));
    table.remove_pod(&uid("a"), stamp(3));
    check(&table, &mut told, None);
    // The next message starts where the agent stands.
    table.put_pod(pod("b", PodState::NoRole), None, stamp(4));
    check(&table, &mut told, Some("+b"));
}

#[test]
fn a_pod_replaced_by_another_is_removed_even_when_the_count_is_the_same() {
    let mut table = NodeTable::new(stamp(1));
    table.put_pod(pod("a", PodState::NoRole), None, stamp(2));
    let (mut told, _full) = Told::full(&table, EPOCH);
    table.remove_pod(&uid("a"), stamp(3));
    table.put_pod(pod("b", PodState::NoRole), None, stamp(4));
    check(&table, &mut told, Some("+b -a"));
}

#[test]
fn credentials_travel_once_with_the_first_pod_that_is_granted_them() {
    let mut table = NodeTable::new(stamp(1));
    let (mut told, _full) = Told::full(&table, EPOCH);
    let issued = credentials(1, 100);
    table.put_pod(pod("a", PodState::Pending(id(1))), None, stamp(2));
    check(&table, &mut told, Some("+a"));
    table.put_pod(pod("a", PodState::Granted(id(1))), Some(&issued), stamp(3));
    check(&table, &mut told, Some("#1 +a"));
    table.put_pod(pod("b", PodState::Granted(id(1))), Some(&issued), stamp(4));
    check(&table, &mut told, Some("+b"));
    table.put_credentials(&credentials(1, 200), stamp(5));
    check(&table, &mut told, Some("#1"));
    // The same again is no change, and nobody's credentials are not kept.
    assert!(!table.put_credentials(&credentials(1, 200), stamp(6)));
    assert!(!table.put_credentials(&credentials(2, 200), stamp(6)));
    assert_eq!(table.number(), 5);
}

#[test]
fn credentials_that_left_with_their_last_pod_travel_again() {
    let mut table = NodeTable::new(stamp(1));
    let (mut told, _full) = Told::full(&table, EPOCH);
    let issued = credentials(1, 100);
    table.put_pod(pod("a", PodState::Granted(id(1))), Some(&issued), stamp(2));
    check(&table, &mut told, Some("#1 +a"));
    table.remove_pod(&uid("a"), stamp(3));
    check(&table, &mut told, Some("-a"));
    assert!(table.credentials(&id(1)).is_none());
    table.put_pod(pod("b", PodState::Granted(id(1))), Some(&issued), stamp(4));
    check(&table, &mut told, Some("#1 +b"));
}

#[test]
fn credentials_withdrawn_and_published_again_travel_again() {
    let mut table = NodeTable::new(stamp(1));
    let (mut told, _full) = Told::full(&table, EPOCH);
    let issued = credentials(1, 100);
    table.put_pod(pod("a", PodState::Granted(id(1))), Some(&issued), stamp(2));
    check(&table, &mut told, Some("#1 +a"));
    table.withdraw(&id(1));
    table.put_pod(pod("a", PodState::Pending(id(1))), None, stamp(3));
    check(&table, &mut told, Some("+a"));
    table.put_pod(pod("a", PodState::Granted(id(1))), Some(&issued), stamp(4));
    check(&table, &mut told, Some("#1 +a"));
}

#[test]
fn a_pod_is_told_with_the_addresses_it_owns_and_again_only_when_that_changes() {
    let mut table = NodeTable::new(stamp(1));
    let both = seen("a", &["10.0.0.1", "fd00::1"]);
    let own = |owned: &[&str]| {
        let owned = owned.iter().map(|ip| ip.parse().unwrap()).collect();
        Shown::new(Arc::clone(&both), owned, false, PodState::NoRole)
    };
    assert!(table.put_pod(own(&["10.0.0.1", "fd00::1"]), None, stamp(2)));
    let (mut told, full) = Told::full(&table, EPOCH);
    assert_eq!(full.pods[0].ips, *both.ips);
    assert!(!table.put_pod(own(&["10.0.0.1", "fd00::1"]), None, stamp(3)));
    assert!(table.put_pod(own(&["fd00::1"]), None, stamp(4)));
    let (delta, _oldest) = told.since(&table).unwrap();
    assert_eq!(delta.pods[0].ips, both.ips[1..]);
    // Only what its agent does not care about has changed.
    let mut stopping = PodSeen::clone(&both);
    stopping.terminating = true;
    let ips = vec!["fd00::1".parse().unwrap()];
    let shown = Shown::new(Arc::new(stopping), ips, false, PodState::NoRole);
    assert!(!table.put_pod(shown, None, stamp(5)));
    check(&table, &mut told, None);
}

#[test]
fn keys_are_said_when_they_change() {
    let keys = |issuer: &str| {
        Arc::new(VerificationKeys {
            issuer: issuer.into(),
            keys: vec![],
        })
    };
    let mut table = NodeTable::new(stamp(1));
    let (mut told, full) = Told::full(&table, EPOCH);
    assert!(full.keys.is_none());
    assert!(table.put_keys(&keys("a"), stamp(2)));
    let (delta, _oldest) = told.since(&table).unwrap();
    assert_eq!(delta.keys, Some(keys("a")));
    assert!(!table.put_keys(&keys("a"), stamp(3)));
    assert!(told.since(&table).is_none());
}

#[test]
fn the_oldest_change_of_a_message_is_known() {
    let mut table = NodeTable::new(stamp(1));
    let (mut told, _full) = Told::full(&table, EPOCH);
    table.put_pod(pod("a", PodState::NoRole), None, stamp(20));
    table.put_pod(pod("b", PodState::NoRole), None, stamp(30));
    let (_delta, oldest) = told.since(&table).unwrap();
    assert_eq!(oldest, stamp(20).at);
}

#[test]
fn an_agent_that_holds_the_current_revision_is_told_nothing_new() {
    let mut table = NodeTable::new(stamp(1));
    table.put_pod(pod("a", PodState::NoRole), None, stamp(2));
    let (mut told, delta) = Told::unchanged(&table, EPOCH);
    assert_eq!((words(&delta).as_str(), delta.from), ("", delta.to));
    table.put_pod(pod("b", PodState::NoRole), None, stamp(3));
    check(&table, &mut told, Some("+b"));
}
