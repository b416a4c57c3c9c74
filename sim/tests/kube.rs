//! The simulated API server through the eyes of a real `kube` client.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets the unexpected stops where it stands"
)]

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use kiam_sim::certificates::Authority;
use kiam_sim::cluster::{Cluster, ClusterOptions, Kind, NewPod, Phase};
use kiam_sim::faults::{Failures, Reach};
use kiam_sim::kubeconfig::Kubeconfig;
use kube::api::{
    DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::config::KubeConfigOptions;
use kube::core::PartialObjectMeta;
use kube::runtime::events::{EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;

/// No step of these tests takes longer on a working machine, however busy.
const PATIENCE: Duration = Duration::from_mins(1);

async fn client(cluster: &Cluster, authority_pem: Option<String>, token: Option<String>) -> Client {
    let config = Kubeconfig {
        server: cluster.url(),
        authority_pem,
        token,
        namespace: "default".to_owned(),
    };
    let config = serde_json::from_value(config.to_json()).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options)
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

async fn plain(options: ClusterOptions) -> (Cluster, Client) {
    let cluster = Cluster::start(options).await.unwrap();
    let client = client(&cluster, None, None).await;
    (cluster, client)
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("no end: {what}"))
}

/// Follows a watcher until it has seen every name in `wanted` as present, and no other.
async fn sees<K: Resource + Clone>(
    stream: &mut (impl futures::Stream<Item = watcher::Result<watcher::Event<K>>> + Unpin),
    present: &mut BTreeMap<String, Option<String>>,
    wanted: &[&str],
) {
    let done = |present: &BTreeMap<String, Option<String>>| {
        present
            .keys()
            .map(String::as_str)
            .eq(wanted.iter().copied())
    };
    while !done(present) {
        let event = within(&format!("{wanted:?}, have {present:?}"), stream.next())
            .await
            .unwrap();
        match event {
            Ok(watcher::Event::Init) => present.clear(),
            Ok(watcher::Event::Apply(one) | watcher::Event::InitApply(one)) => {
                present.insert(one.name_any(), one.meta().resource_version.clone());
            }
            Ok(watcher::Event::Delete(one)) => drop(present.remove(&one.name_any())),
            // What a fault did; the watcher tries again by itself.
            Ok(watcher::Event::InitDone) | Err(_) => {}
        }
    }
}

async fn follow(config: watcher::Config) {
    let (cluster, client) = plain(ClusterOptions {
        bookmark_interval: Duration::from_millis(50),
        ..ClusterOptions::default()
    })
    .await;
    let handle = cluster.handle();
    handle.create_namespace("ns", &[]).unwrap();
    handle
        .create_pods(["a", "b", "c"].map(|name| NewPod::new("ns", name)))
        .unwrap();
    let mut stream = pin!(watcher(Api::<Pod>::all(client), config));
    let mut present = BTreeMap::new();
    sees(&mut stream, &mut present, &["a", "b", "c"]).await;
    handle.create_pod(NewPod::new("ns", "d")).unwrap();
    handle.delete(Kind::Pod, "ns", "a").unwrap();
    sees(&mut stream, &mut present, &["b", "c", "d"]).await;

    // While nobody watches, things change and the history of it is lost: 410, and a new list.
    handle.faults().set_reach(Reach::Down);
    handle.delete(Kind::Pod, "ns", "b").unwrap();
    handle.create_pod(NewPod::new("ns", "e")).unwrap();
    handle.compact();
    handle.faults().set_reach(Reach::Up);
    sees(&mut stream, &mut present, &["c", "d", "e"]).await;

    // The same in the middle of a stream.
    let lists = handle.requests("list", "pods") + handle.requests("watch", "pods");
    handle.faults().expire_watches();
    handle.create_pod(NewPod::new("ns", "f")).unwrap();
    sees(&mut stream, &mut present, &["c", "d", "e", "f"]).await;
    // The pod may have come before the expiry; the new list comes in any case.
    while handle.requests("list", "pods") + handle.requests("watch", "pods") == lists {
        let waited = tokio::time::timeout(Duration::from_millis(20), stream.next()).await;
        if let Ok(Some(Ok(watcher::Event::Init))) = waited {
            present.clear();
        }
    }

    // A watch that merely breaks goes on where it was.
    handle.faults().drop_watches();
    handle.delete(Kind::Pod, "ns", "c").unwrap();
    sees(&mut stream, &mut present, &["d", "e", "f"]).await;
}

#[tokio::test]
async fn a_watcher_follows_through_faults_with_list_and_watch() {
    follow(watcher::Config::default().page_size(2)).await;
}

#[tokio::test]
async fn a_watcher_follows_through_faults_with_a_streaming_list() {
    follow(watcher::Config::default().streaming_lists()).await;
}

#[tokio::test]
async fn a_metadata_watcher_sees_annotations() {
    let (cluster, client) = plain(ClusterOptions::default()).await;
    let handle = cluster.handle();
    handle.create_namespace("ns", &[("k", "1")]).unwrap();
    let config = watcher::Config::default().fields("metadata.name=ns");
    let mut stream = pin!(watcher(
        Api::<PartialObjectMeta<Namespace>>::all(client),
        config
    ));
    let mut value = String::new();
    while value != "2" {
        let event = within("annotation", stream.next()).await.unwrap().unwrap();
        if let watcher::Event::Apply(one) | watcher::Event::InitApply(one) = event {
            value.clone_from(&one.annotations()["k"]);
            if value == "1" {
                handle
                    .annotate(Kind::Namespace, "", "ns", "k", Some("2"))
                    .unwrap();
            }
        }
    }
}

#[tokio::test]
async fn selectors_move_pods_in_and_out_of_a_watch() {
    let (cluster, client) = plain(ClusterOptions::default()).await;
    let handle = cluster.handle();
    handle
        .create_pods(["a", "b"].map(|name| NewPod::new("default", name)))
        .unwrap();
    handle.bind("default", "a", "n").unwrap();
    let config = watcher::Config::default().fields("spec.nodeName=n,status.phase!=Failed");
    let mut stream = pin!(watcher(Api::<Pod>::all(client), config));
    let mut present = BTreeMap::new();
    sees(&mut stream, &mut present, &["a"]).await;
    handle.bind("default", "b", "n").unwrap();
    sees(&mut stream, &mut present, &["a", "b"]).await;
    handle.set_phase("default", "a", Phase::Failed).unwrap();
    sees(&mut stream, &mut present, &["b"]).await;
}

#[tokio::test]
async fn lists_have_pages_of_one_revision() {
    let (cluster, client) = plain(ClusterOptions::default()).await;
    let handle = cluster.handle();
    handle
        .create_pods((0..5).map(|at| NewPod::new("default", format!("p{at}"))))
        .unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let first = pods.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(3));
    handle.delete(Kind::Pod, "default", "p3").unwrap();
    let token = first.metadata.continue_.clone().unwrap();
    let rest = pods
        .list(&ListParams::default().continue_token(&token))
        .await
        .unwrap();
    assert_eq!(
        rest.items
            .iter()
            .map(ResourceExt::name_any)
            .collect::<Vec<_>>(),
        ["p2", "p3", "p4"]
    );
    assert_eq!(
        rest.metadata.resource_version,
        first.metadata.resource_version
    );
    handle.compact();
    let expired = pods
        .list(&ListParams::default().continue_token(&token))
        .await
        .unwrap_err();
    assert!(matches!(expired, kube::Error::Api(status) if status.code == 410));
    let old = first.metadata.resource_version.unwrap();
    let Err(kube::Error::Api(status)) = pods.watch(&WatchParams::default(), &old).await.map(drop)
    else {
        panic!("a watch from before the compaction")
    };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
}

#[tokio::test]
async fn objects_are_created_changed_and_deleted() {
    let (cluster, client) = plain(ClusterOptions::default()).await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]},
    }))
    .unwrap();
    let made = pods.create(&PostParams::default(), &pod).await.unwrap();
    assert_eq!(
        made.status.as_ref().unwrap().phase.as_deref(),
        Some("Pending")
    );
    let again = pods.create(&PostParams::default(), &pod).await.unwrap_err();
    assert!(matches!(again, kube::Error::Api(status) if status.is_already_exists()));

    let annotation = json!({"metadata": {"annotations": {"k": "v"}}});
    let params = PatchParams::default();
    let patched = pods
        .patch("a", &params, &Patch::Merge(&annotation))
        .await
        .unwrap();
    assert_eq!(patched.annotations()["k"], "v");
    let status = json!({"status": {"podIP": "10.0.0.1"}, "spec": {"nodeName": "ignored"}});
    let patched = pods
        .patch_status("a", &params, &Patch::Merge(&status))
        .await
        .unwrap();
    assert_eq!(patched.status.unwrap().pod_ip.as_deref(), Some("10.0.0.1"));
    assert_eq!(patched.spec.unwrap().node_name, None);
    let stale = pods
        .replace("a", &PostParams::default(), &made)
        .await
        .unwrap_err();
    assert!(matches!(stale, kube::Error::Api(status) if status.is_conflict()));

    let mut bad = pod.clone();
    bad.metadata.name = Some("Not a name".to_owned());
    let Err(kube::Error::Api(status)) = pods.create(&PostParams::default(), &bad).await else {
        panic!("a bad name")
    };
    assert_eq!(status.code, 422);
    assert_eq!(status.details.unwrap().causes[0].field, "metadata.name");

    pods.delete("a", &DeleteParams::default()).await.unwrap();
    let gone = pods.get_opt("a").await.unwrap();
    assert!(gone.is_none(), "a pod on no node goes at once");

    let nodes: Api<Node> = Api::all(client);
    cluster
        .handle()
        .create_node("n", &["startup", "other"])
        .unwrap();
    let taints = json!({"spec": {"taints": [{"key": "other", "effect": "NoSchedule"}]}});
    let node = nodes
        .patch("n", &params, &Patch::Strategic(&taints))
        .await
        .unwrap();
    assert_eq!(node.spec.unwrap().taints.unwrap().len(), 1);
}

#[tokio::test]
async fn a_pod_on_a_node_is_given_its_grace() {
    let (cluster, client) = plain(ClusterOptions {
        termination_max: Duration::from_millis(100),
        ..ClusterOptions::default()
    })
    .await;
    cluster
        .handle()
        .create_pod(NewPod::new("default", "a").node("n"))
        .unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client);
    let params = WatchParams::default().fields("metadata.name=a");
    let mut events = pin!(pods.watch(&params, "0").await.unwrap());
    let mut verbs = Vec::new();
    pods.delete("a", &DeleteParams::default()).await.unwrap();
    while verbs.last() != Some(&"deleted") {
        match within("deletion", events.next()).await.unwrap().unwrap() {
            WatchEvent::Added(_) => verbs.push("added"),
            WatchEvent::Modified(pod) => {
                assert!(pod.metadata.deletion_timestamp.is_some());
                verbs.push("marked");
            }
            WatchEvent::Deleted(_) => verbs.push("deleted"),
            WatchEvent::Bookmark(_) => {}
            WatchEvent::Error(error) => panic!("{error}"),
        }
    }
    assert_eq!(verbs, ["added", "marked", "deleted"]);
}

/// A token for the pod `p` of the service account `sa`, by a `TokenRequest`.
async fn pod_token(client: &Client) -> String {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "ns");
    let request = serde_json::from_value::<TokenRequest>(json!({
        "spec": {
            "audiences": ["kiam-server"],
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"},
        },
    }))
    .unwrap();
    let params = PostParams::default();
    let issued = accounts
        .create_token_request("sa", &params, &request)
        .await
        .unwrap();
    issued.status.unwrap().token
}

#[tokio::test]
async fn tokens_are_issued_and_reviewed() {
    let (cluster, client) = plain(ClusterOptions::default()).await;
    let handle = cluster.handle();
    handle.create_namespace("ns", &[]).unwrap();
    handle.create_service_account("ns", "sa", &[]).unwrap();
    handle.create_node("n", &[]).unwrap();
    handle
        .create_pod(NewPod::new("ns", "p").service_account("sa").node("n"))
        .unwrap();
    let token = pod_token(&client).await;
    let reviews: Api<TokenReview> = Api::all(client);
    let review = async |token: &str, audience: &str| {
        let spec = TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![audience.to_owned()]),
        };
        let review = TokenReview {
            spec,
            ..TokenReview::default()
        };
        reviews
            .create(&PostParams::default(), &review)
            .await
            .unwrap()
            .status
            .unwrap()
    };
    handle.rotate_signing_key().unwrap();
    let status = review(&token, "kiam-server").await;
    assert_eq!(status.authenticated, Some(true), "{status:?}");
    assert_eq!(status.audiences, Some(vec!["kiam-server".to_owned()]));
    let user = status.user.unwrap();
    assert_eq!(
        user.username.as_deref(),
        Some("system:serviceaccount:ns:sa")
    );
    let extra = user.extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["p"]);
    assert_eq!(extra["authentication.kubernetes.io/node-name"], ["n"]);
    assert!(extra["authentication.kubernetes.io/credential-id"][0].starts_with("JTI="));

    for (token, audience) in [(token.as_str(), "other"), ("nonsense", "kiam-server")] {
        let status = review(token, audience).await;
        assert_eq!(status.authenticated, None, "{status:?}");
        assert!(status.error.is_some());
    }
    let expired = handle
        .issue_token("ns", "sa", None, "kiam-server", Duration::ZERO)
        .unwrap();
    assert_eq!(review(&expired, "kiam-server").await.authenticated, None);
    handle.delete(Kind::Pod, "ns", "p").unwrap();
    handle
        .create_pod(NewPod::new("ns", "p").service_account("sa").node("n"))
        .unwrap();
    let status = review(&token, "kiam-server").await;
    assert_eq!(status.authenticated, None, "the pod of that uid is gone");
}

#[tokio::test]
async fn events_are_recorded_and_seen_both_ways() {
    let (cluster, client) = plain(ClusterOptions::default()).await;
    let handle = cluster.handle();
    handle.create_pod(NewPod::new("default", "a")).unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let regarding = pods.get("a").await.unwrap().object_ref(&());
    let recorder = Recorder::new(client.clone(), Reporter::from("kiam-server"));
    let event = kube::runtime::events::Event {
        type_: EventType::Warning,
        reason: "KiamRoleForbidden".to_owned(),
        note: Some("not here".to_owned()),
        action: "Grant".to_owned(),
        secondary: None,
    };
    // The second is counted into a series of the first, by a patch.
    for _ in 0..2 {
        recorder.publish(&event, &regarding).await.unwrap();
    }
    let events = handle.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["message"], "not here");
    assert_eq!(events[0]["involvedObject"]["name"], "a");
    assert_eq!(events[0]["series"]["count"], 2);
    let new: Api<Event> = Api::default_namespaced(client);
    let fields = ListParams::default().fields("reason=KiamRoleForbidden,regarding.name=a");
    let listed = new.list(&fields).await.unwrap();
    assert_eq!(listed.items[0].note.as_deref(), Some("not here"));
}

#[tokio::test]
async fn https_asks_for_a_token_and_faults_are_seen() {
    let authority = Authority::new("test").unwrap();
    let cluster = Cluster::start(ClusterOptions {
        identity: Some(authority.server(&[]).unwrap()),
        bearer_token: Some("secret".to_owned()),
        ..ClusterOptions::default()
    })
    .await
    .unwrap();
    let trusted = Some(authority.certificate_pem().to_owned());
    let list = async |client: Client| {
        let pods = Api::<Pod>::all(client).list(&ListParams::default()).await;
        match pods {
            Ok(_) => 200,
            Err(kube::Error::Api(status)) => status.code,
            Err(_) => 0,
        }
    };
    let with = async |token: Option<&str>| {
        client(&cluster, trusted.clone(), token.map(str::to_owned)).await
    };
    let handle = cluster.handle();
    let audience = "https://kubernetes.default.svc";
    let life = Duration::from_mins(10);
    let account = handle
        .issue_token("default", "default", None, audience, life)
        .unwrap();
    assert_eq!(list(with(None).await).await, 401);
    assert_eq!(list(with(Some("wrong")).await).await, 401);
    assert_eq!(list(with(Some(&account)).await).await, 200);
    let client = with(Some("secret")).await;
    assert_eq!(list(client.clone()).await, 200);
    handle.faults().set_failures(Some(Failures {
        status: 500,
        share: 1.0,
    }));
    assert_eq!(list(client.clone()).await, 500);
    handle.faults().set_failures(None);
    handle.faults().set_unauthorized(true);
    assert_eq!(list(client.clone()).await, 401);
    handle.faults().clear();
    handle.faults().set_reach(Reach::Down);
    assert_eq!(list(client.clone()).await, 0);
    handle.faults().clear();
    assert_eq!(list(client.clone()).await, 200);
    let address = cluster.address();
    cluster.shutdown().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
