use super::*;

fn pod(uid: &str, created_at: i64, ips: &[&str]) -> PodSeen {
    PodSeen {
        uid: PodUid::try_new(uid).unwrap(),
        namespace: "default".into(),
        name: format!("{uid}-name").into(),
        service_account: "web".into(),
        node: Some("node-a".into()),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        host_network: false,
        is_static: false,
        terminating: false,
        created_at: UnixSeconds::new(created_at),
        annotations: Annotations::default(),
    }
}

fn namespace(name: &str, permitted: &str) -> ClusterEvent {
    ClusterEvent::Namespace {
        name: name.into(),
        annotations: [("iam.amazonaws.com/permitted", permitted)]
            .into_iter()
            .collect(),
    }
}

fn account(annotations: &[(&'static str, &'static str)]) -> ClusterEvent {
    ClusterEvent::ServiceAccount {
        key: web(),
        annotations: annotations.iter().copied().collect(),
    }
}

fn web() -> AccountKey {
    AccountKey {
        namespace: "default".into(),
        name: "web".into(),
    }
}

fn uid(uid: &str) -> PodUid {
    PodUid::try_new(uid).unwrap()
}

fn cluster() -> Cluster {
    Cluster::new(&[Kind::Pods, Kind::Namespaces])
}

#[track_caller]
fn tell(cluster: &mut Cluster, event: ClusterEvent, touched: &[&str], gone: &[&str]) {
    let mut got = Touched::default();
    cluster.on(event, &mut got);
    let mut names: Vec<_> = got.pods.iter().map(PodUid::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, touched);
    let gone_names: Vec<_> = got.gone.iter().map(PodUid::as_str).collect();
    assert_eq!(gone_names, gone);
}

#[test]
fn a_repeated_fact_touches_nothing() {
    let mut cluster = cluster();
    tell(
        &mut cluster,
        ClusterEvent::Pod(pod("a", 1, &[])),
        &["a"],
        &[],
    );
    tell(&mut cluster, ClusterEvent::Pod(pod("a", 1, &[])), &[], &[]);
    tell(&mut cluster, namespace("default", ".*"), &["a"], &[]);
    tell(&mut cluster, namespace("default", ".*"), &[], &[]);
    tell(&mut cluster, namespace("default", "x"), &["a"], &[]);
}

#[test]
fn what_a_list_does_not_name_is_gone() {
    let mut cluster = cluster();
    tell(
        &mut cluster,
        ClusterEvent::Pod(pod("a", 1, &[])),
        &["a"],
        &[],
    );
    tell(
        &mut cluster,
        ClusterEvent::Pod(pod("b", 1, &[])),
        &["b"],
        &[],
    );
    tell(&mut cluster, ClusterEvent::Listing(Kind::Pods), &[], &[]);
    tell(&mut cluster, ClusterEvent::Pod(pod("b", 1, &[])), &[], &[]);
    // A list that broke off and begins again.
    tell(&mut cluster, ClusterEvent::Listing(Kind::Pods), &[], &[]);
    tell(&mut cluster, ClusterEvent::Pod(pod("b", 1, &[])), &[], &[]);
    tell(&mut cluster, ClusterEvent::Listed(Kind::Pods), &[], &["a"]);
    assert_eq!(cluster.len(), 1);
    // A second end says nothing.
    tell(&mut cluster, ClusterEvent::Listed(Kind::Pods), &[], &[]);
}

#[test]
fn it_is_in_sync_once_every_kind_has_been_listed() {
    let mut cluster = cluster();
    for (kind, synced) in [(Kind::Pods, false), (Kind::Namespaces, true)] {
        let mut touched = Touched::default();
        cluster.on(ClusterEvent::Listing(kind), &mut touched);
        cluster.on(ClusterEvent::Listed(kind), &mut touched);
        assert_eq!((cluster.synced(), touched.synced), (synced, synced));
    }
    // Only once.
    let mut touched = Touched::default();
    cluster.on(ClusterEvent::Listing(Kind::Pods), &mut touched);
    cluster.on(ClusterEvent::Listed(Kind::Pods), &mut touched);
    assert!(!touched.synced);
}

#[test]
fn an_address_belongs_to_the_pod_that_is_not_stopping() {
    let mut cluster = cluster();
    let owned = |cluster: &Cluster, pod: &str| cluster.owned_ips(cluster.get(&uid(pod)).unwrap());
    // Created later than all others: it does not count against one that is not stopping.
    let mut old = pod("z", 9, &["10.0.0.1", "fd00::1"]);
    tell(&mut cluster, ClusterEvent::Pod(old.clone()), &["z"], &[]);
    old.terminating = true;
    tell(&mut cluster, ClusterEvent::Pod(old.clone()), &["z"], &[]);
    // It keeps its addresses while nobody else has them.
    assert_eq!(owned(&cluster, "z").len(), 2);
    // The new pod has one of them: both are to be looked at.
    let new = pod("b", 1, &["10.0.0.1"]);
    tell(&mut cluster, ClusterEvent::Pod(new), &["b", "z"], &[]);
    assert_eq!(owned(&cluster, "z"), ["fd00::1".parse::<IpAddr>().unwrap()]);
    assert_eq!(owned(&cluster, "b").len(), 1);
    // It gives the address up, which falls back.
    let new = pod("b", 1, &[]);
    tell(&mut cluster, ClusterEvent::Pod(new), &["b", "z"], &[]);
    assert_eq!(owned(&cluster, "z").len(), 2);
    // Of two that are stopping, the newer owns it, by creation, then by uid.
    for (name, created_at, owner) in [("a", 10, "a"), ("c", 10, "c"), ("d", 8, "c")] {
        let mut other = pod(name, created_at, &["10.0.0.1"]);
        other.terminating = true;
        cluster.on(ClusterEvent::Pod(other), &mut Touched::default());
        let now = cluster.owner("10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(now.uid, uid(owner), "after {name}");
    }
    assert_eq!(cluster.contested(), 0);
}

#[test]
fn an_address_that_two_running_pods_show_is_nobodys_until_one_lets_go() {
    let ip: IpAddr = "10.0.0.1".parse().unwrap();
    for let_go in ["stops", "gives it up", "goes", "is not listed"] {
        let mut cluster = cluster();
        let mut touched = Touched::default();
        cluster.on(
            ClusterEvent::Pod(pod("holder", 1, &["10.0.0.1", "fd00::1"])),
            &mut touched,
        );
        let mut other = pod("other", 2, &["10.0.0.1"]);
        assert!(touched.contested.is_empty());
        cluster.on(ClusterEvent::Pod(other.clone()), &mut touched);
        assert_eq!(touched.contested, [ip], "{let_go}");
        assert!(cluster.owner(ip).is_none(), "{let_go}");
        assert!(cluster.is_contested(ip));
        let owned =
            |cluster: &Cluster, pod: &str| cluster.owned_ips(cluster.get(&uid(pod)).unwrap());
        assert_eq!(
            owned(&cluster, "holder"),
            ["fd00::1".parse::<IpAddr>().unwrap()]
        );
        assert!(owned(&cluster, "other").is_empty());
        // Another change of a contestant is not a new contest.
        other.annotations = [("iam.amazonaws.com/role", "r")].into_iter().collect();
        let mut touched = Touched::default();
        cluster.on(ClusterEvent::Pod(other.clone()), &mut touched);
        assert!(touched.contested.is_empty(), "{:?}", touched.contested);
        match let_go {
            "stops" => {
                other.terminating = true;
                cluster.on(ClusterEvent::Pod(other), &mut touched);
            }
            "gives it up" => {
                other.ips = Box::default();
                cluster.on(ClusterEvent::Pod(other), &mut touched);
            }
            "goes" => cluster.on(ClusterEvent::PodGone(uid("other")), &mut touched),
            _ => {
                cluster.on(ClusterEvent::Listing(Kind::Pods), &mut touched);
                let holder = pod("holder", 1, &["10.0.0.1", "fd00::1"]);
                cluster.on(ClusterEvent::Pod(holder), &mut touched);
                cluster.on(ClusterEvent::Listed(Kind::Pods), &mut touched);
            }
        }
        assert_eq!(cluster.owner(ip).unwrap().uid, uid("holder"), "{let_go}");
        assert!(touched.pods.contains(&uid("holder")), "{let_go}");
        assert_eq!(cluster.contested(), 0, "{let_go}");
    }
}

#[test]
fn an_address_is_each_nodes_own() {
    let ip: IpAddr = "10.0.0.1".parse().unwrap();
    let mut cluster = cluster();
    let mut touched = Touched::default();
    cluster.on(
        ClusterEvent::Pod(pod("here", 1, &["10.0.0.1"])),
        &mut touched,
    );
    let mut there = pod("there", 2, &["10.0.0.1"]);
    there.node = Some("node-b".into());
    cluster.on(ClusterEvent::Pod(there.clone()), &mut touched);
    for (name, node) in [("here", "node-a"), ("there", "node-b")] {
        assert_eq!(cluster.owned_ips(cluster.get(&uid(name)).unwrap()), [ip]);
        assert_eq!(cluster.owner_on(node, ip).unwrap().uid, uid(name));
    }
    assert!(touched.contested.is_empty() && !cluster.is_contested(ip));
    assert!(cluster.owner_on("node-c", ip).is_none());
    // Who does not say where it saw it cannot be told whose it is.
    assert!(cluster.owner(ip).is_none());
    there.terminating = true;
    cluster.on(ClusterEvent::Pod(there), &mut touched);
    assert_eq!(cluster.owner(ip).unwrap().uid, uid("here"));
}

#[test]
fn a_pod_is_held_back_until_its_namespace_has_been_seen() {
    let mut cluster = cluster();
    let web = pod("a", 1, &[]);
    tell(&mut cluster, ClusterEvent::Pod(web.clone()), &["a"], &[]);
    assert!(cluster.surroundings(&web, false).is_none());
    tell(&mut cluster, namespace("default", ".*"), &["a"], &[]);
    assert!(cluster.surroundings(&web, false).is_some());
    tell(
        &mut cluster,
        ClusterEvent::NamespaceGone("default".into()),
        &["a"],
        &[],
    );
    assert!(cluster.surroundings(&web, false).is_none());
}

#[test]
fn a_service_account_that_is_late_is_told_from_one_that_is_gone() {
    let mut cluster = cluster();
    let pod = pod("a", 1, &[]);
    tell(&mut cluster, namespace("default", ".*"), &[], &[]);
    tell(&mut cluster, ClusterEvent::Pod(pod.clone()), &["a"], &[]);
    assert!(cluster.surroundings(&pod, true).is_none());
    tell(
        &mut cluster,
        account(&[("iam.amazonaws.com/role", "r")]),
        &["a"],
        &[],
    );
    let around = cluster.surroundings(&pod, true).unwrap();
    assert!(around.service_account.is_some());
    tell(
        &mut cluster,
        ClusterEvent::ServiceAccountGone(web()),
        &["a"],
        &[],
    );
    let around = cluster.surroundings(&pod, true).unwrap();
    assert!(around.service_account.is_none());
}

#[test]
fn an_account_that_no_list_names_does_not_hold_its_pods_back() {
    let mut cluster = cluster();
    let pod = pod("a", 1, &[]);
    tell(&mut cluster, namespace("default", ".*"), &[], &[]);
    tell(&mut cluster, ClusterEvent::Pod(pod.clone()), &["a"], &[]);
    tell(
        &mut cluster,
        ClusterEvent::Listing(Kind::ServiceAccounts),
        &[],
        &[],
    );
    tell(
        &mut cluster,
        ClusterEvent::Listed(Kind::ServiceAccounts),
        &["a"],
        &[],
    );
    assert!(cluster.surroundings(&pod, true).is_some());
}

#[test]
fn a_pod_that_comes_after_its_account_is_gone_is_not_held_back() {
    let mut cluster = cluster();
    tell(&mut cluster, namespace("default", ".*"), &[], &[]);
    tell(&mut cluster, account(&[]), &[], &[]);
    let gone = ClusterEvent::ServiceAccountGone(web());
    tell(&mut cluster, gone, &[], &[]);
    let pod = pod("a", 1, &[]);
    tell(&mut cluster, ClusterEvent::Pod(pod.clone()), &["a"], &[]);
    let around = cluster.surroundings(&pod, true).unwrap();
    assert!(around.service_account.is_none());
    // It is forgotten with its namespace.
    tell(&mut cluster, ClusterEvent::PodGone(uid("a")), &[], &["a"]);
    let gone = ClusterEvent::NamespaceGone("default".into());
    tell(&mut cluster, gone, &[], &[]);
    assert_eq!(cluster.accounts.len(), 0);
}

#[test]
fn a_pod_with_a_role_of_its_own_does_not_wait_for_its_account() {
    let mut cluster = cluster();
    tell(&mut cluster, namespace("default", ".*"), &[], &[]);
    let mut asks = pod("a", 1, &[]);
    assert!(cluster.surroundings(&asks, true).is_none());
    asks.annotations = [("iam.amazonaws.com/role", "r")].into_iter().collect();
    let around = cluster.surroundings(&asks, true).unwrap();
    assert!(around.service_account.is_none());
}

#[test]
fn pods_are_found_by_name() {
    let mut cluster = cluster();
    let mut old = pod("old", 5, &[]);
    old.name = "web-0".into();
    old.terminating = true;
    let mut new = pod("new", 5, &[]);
    new.name = "web-0".into();
    tell(&mut cluster, ClusterEvent::Pod(old), &["old"], &[]);
    tell(&mut cluster, ClusterEvent::Pod(new), &["new"], &[]);
    assert_eq!(cluster.find("default", "web-0").unwrap().uid, uid("new"));
    assert!(cluster.find("default", "web-1").is_none());
    assert!(cluster.find("other", "web-0").is_none());
}
