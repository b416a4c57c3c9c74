//! The paths to the Kubernetes API, against a real one.
//!
//! Runs when `KIAM_TEST_KUBECONFIG` names the configuration of a cluster in which namespaces and
//! cluster roles may be made and deleted; says that it was skipped otherwise. No node need be there:
//! pods are created on a node that does not exist, and a node object is made for the patch.
//!
//! Only what a cluster's administrator does is done with that configuration. Whatever the server
//! does is done as a `ServiceAccount` that is bound to the `ClusterRole` of the chart, read from its
//! template, and to nothing else: what is not permitted there fails here.
//!
//! Where `KIAM_TEST_API_RESTART` holds a command that restarts the API server, it is run in a shell
//! while pods change, and what happened meanwhile must be known afterwards.
//!
//! docs/real-apiserver.md says how to build and run an API server for this with Go alone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets the unexpected stops where it stands"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule};
use kiam_server::clock::Clock;
use kiam_server::freshness::Freshness;
use kiam_server::metrics::Metrics;
use kiam_server::nodes::{Cluster, ClusterEvent, Kind, Touched};
use kiam_server::pods::{ApiError, Connection, EventNote, Following, KubeApi, Source, follow};
use kiam_sim::cluster::ClusterOptions;
use kiam_sim::kubeconfig::Kubeconfig;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc;

const NAMESPACE: &str = "kiam-real-apiserver-test";
const NODE: &str = "kiam-real-apiserver-test";
const TAINT: &str = "kiam.example/agent-not-ready";
const PATIENCE: Duration = Duration::from_mins(2);

fn made<T: DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// The cluster as the watches tell it.
struct Watched {
    events: mpsc::Receiver<(kiam_server::clock::Moment, ClusterEvent)>,
    cluster: Cluster,
}

impl Watched {
    async fn until(&mut self, what: &str, done: impl Fn(&Cluster) -> bool) {
        let told = async {
            while !done(&self.cluster) {
                let (_at, event) = self.events.recv().await.unwrap();
                self.cluster.on(event, &mut Touched::default());
            }
        };
        tokio::time::timeout(PATIENCE, told)
            .await
            .unwrap_or_else(|_| panic!("no end: {what}"));
    }
}

#[tokio::test]
async fn watches_reviews_events_and_patches_work() {
    let Some(kubeconfig) = std::env::var_os("KIAM_TEST_KUBECONFIG") else {
        eprintln!("skipped: KIAM_TEST_KUBECONFIG names no cluster");
        return;
    };
    Box::pin(against(PathBuf::from(kubeconfig))).await;
}

/// The simulated one must be held to the same: what the other tests rely on is what is real.
#[tokio::test]
async fn the_simulated_one_does_the_same() {
    let simulated = kiam_sim::cluster::Cluster::start(ClusterOptions::default()).await;
    let simulated = simulated.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let config = Kubeconfig::plain(simulated.url());
    config.write(&kubeconfig).unwrap();
    Box::pin(against(kubeconfig)).await;
}

async fn against(kubeconfig: PathBuf) {
    let options = kube::config::KubeConfigOptions::default();
    let read = kube::config::Kubeconfig::read_from(&kubeconfig).unwrap();
    let config = kube::Config::from_custom_kubeconfig(read.clone(), &options).await;
    let client = Client::try_from(config.unwrap()).unwrap();
    clean(&client).await;
    let directory = tempfile::tempdir().unwrap();
    let as_server = directory.path().join("kubeconfig");
    Box::pin(least_privileged(&client, read, &as_server)).await;
    let connection = Connection::new(Source::Kubeconfig(as_server));
    let outcome = Box::pin(tokio::spawn(checks(client.clone(), connection))).await;
    clean(&client).await;
    outcome.unwrap();
}

async fn clean(client: &Client) {
    let now = DeleteParams::default().grace_period(0);
    drop(Api::<Node>::all(client.clone()).delete(NODE, &now).await);
    let roles = Api::<ClusterRole>::all(client.clone());
    drop(roles.delete(NAMESPACE, &now).await);
    let bindings = Api::<ClusterRoleBinding>::all(client.clone());
    drop(bindings.delete(NAMESPACE, &now).await);
    // No kubelet will say that they have stopped.
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    drop(pods.delete_collection(&now, &ListParams::default()).await);
    let namespaces = Api::<Namespace>::all(client.clone());
    drop(namespaces.delete(NAMESPACE, &now).await);
    let gone = async {
        while namespaces.get_opt(NAMESPACE).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

/// The rules of the chart's `ClusterRole`, with everything that may be switched on.
fn rules_of_the_chart() -> Vec<PolicyRule> {
    let template = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/helm/kiam/templates/server/rbac.yaml");
    let template = std::fs::read_to_string(template).unwrap();
    let (_before, rules) = template.split_once("\nrules:\n").unwrap();
    let (rules, _after) = rules.split_once("\n---\n").unwrap();
    let mut read: Vec<PolicyRule> = Vec::new();
    for line in rules.lines() {
        let line = line
            .replace("{{ if .Values.server.serviceAccountRoles }}", "")
            .replace("{{ end }}", "");
        let line = line.trim().trim_start_matches("- ");
        let Some((field, list)) = line.split_once(": [") else {
            let may_be_skipped = line.starts_with('#') || line.starts_with("{{-");
            assert!(may_be_skipped, "not understood: {line}");
            continue;
        };
        let list: Vec<String> = list
            .trim_end_matches(']')
            .split(',')
            .map(|item| item.trim().trim_matches('"').to_owned())
            .collect();
        if field == "apiGroups" {
            read.push(PolicyRule::default());
        }
        let rule = read.last_mut().unwrap();
        match field {
            "apiGroups" => rule.api_groups = Some(list),
            "resources" => rule.resources = Some(list),
            "verbs" => rule.verbs = list,
            _ => panic!("not understood: {line}"),
        }
    }
    assert_eq!(read.len(), 4, "{read:?}");
    read
}

/// A kubeconfig that may do what the chart lets the server do.
async fn least_privileged(client: &Client, mut config: kube::config::Kubeconfig, path: &Path) {
    let create = PostParams::default();
    let permitted = json!({"iam.amazonaws.com/permitted": ".*"});
    let namespace = made(json!({"metadata": {"name": NAMESPACE, "annotations": permitted}}));
    Api::<Namespace>::all(client.clone())
        .create(&create, &namespace)
        .await
        .unwrap();
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), NAMESPACE);
    let account = made(json!({"metadata": {"name": "server"}}));
    accounts.create(&create, &account).await.unwrap();
    let request = made(json!({"spec": {"audiences": []}}));
    let issued = accounts
        .create_token_request("server", &create, &request)
        .await
        .unwrap();
    let token = issued.status.unwrap().token;
    let mut role: ClusterRole = made(json!({"metadata": {"name": NAMESPACE}}));
    role.rules = Some(rules_of_the_chart());
    let roles = Api::<ClusterRole>::all(client.clone());
    let binding = made(json!({
        "metadata": {"name": NAMESPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAMESPACE},
        "subjects": [{"kind": "ServiceAccount", "name": "server", "namespace": NAMESPACE}],
    }));
    let bindings = Api::<ClusterRoleBinding>::all(client.clone());
    // The simulated cluster lets everyone do everything and does not know roles.
    let is_simulated = roles.list(&ListParams::default()).await.is_err();
    if !is_simulated {
        roles.create(&create, &role).await.unwrap();
        bindings.create(&create, &binding).await.unwrap();
    }
    for user in &mut config.auth_infos {
        user.auth_info = Some(made(json!({"token": token})));
    }
    std::fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

async fn checks(client: Client, connection: Connection) {
    let (events, heard) = mpsc::channel(64);
    let _watches = follow(&Following {
        connection: connection.clone(),
        kinds: Kind::ALL.to_vec(),
        events,
        clock: Clock::system(),
        freshness: Freshness::default(),
        metrics: Metrics::new().watch,
    });
    let mut watched = Watched {
        events: heard,
        cluster: Cluster::new(&Kind::ALL),
    };
    watched.until("the lists", Cluster::synced).await;
    let api = KubeApi::new(connection);
    let pod_uid = Box::pin(watch(&client, &mut watched)).await;
    Box::pin(outlast(&client, &mut watched)).await;
    Box::pin(review(&client, &api)).await;
    note(&api, &pod_uid).await;
    Box::pin(untaint(&client, &api)).await;
    let keys = api.text("/openid/v1/jwks").await.unwrap();
    assert!(keys.contains("\"keys\""), "{keys}");
}

fn pod(name: &str) -> Pod {
    made(json!({
        "metadata": {"name": name, "annotations": {"iam.amazonaws.com/role": "reader"}},
        "spec": {
            "nodeName": NODE,
            "serviceAccountName": "agent",
            "containers": [{"name": "main", "image": "sim.invalid/main:1"}],
        },
    }))
}

/// The API server goes and comes back, if someone said how; pods change before and after.
async fn outlast(client: &Client, watched: &mut Watched) {
    let Some(restart) = std::env::var_os("KIAM_TEST_API_RESTART") else {
        return;
    };
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let create = PostParams::default();
    pods.create(&create, &pod("before")).await.unwrap();
    let mut command = tokio::process::Command::new("sh");
    let ended = command.arg("-c").arg(restart).kill_on_drop(true).status();
    let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert!(ended.unwrap().success());
    // The first who asks may meet a connection that has died.
    let now = DeleteParams::default().grace_period(0);
    let deleted = async {
        while pods.delete("before", &now).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, deleted).await.unwrap();
    pods.create(&create, &pod("after")).await.unwrap();
    watched
        .until("what happened meanwhile", |cluster| {
            let seen = |name| cluster.find(NAMESPACE, name).is_some();
            seen("stays") && seen("after") && !seen("before")
        })
        .await;
}

/// An account and pods appear; annotations change; the pod goes.
async fn watch(client: &Client, watched: &mut Watched) -> String {
    let create = PostParams::default();
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), NAMESPACE);
    let account = made(json!({"metadata": {"name": "agent"}}));
    accounts.create(&create, &account).await.unwrap();
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    for name in ["stays", "goes"] {
        pods.create(&create, &pod(name)).await.unwrap();
    }
    watched
        .until("the pods", |cluster| {
            let seen = |name| {
                cluster
                    .find(NAMESPACE, name)
                    .is_some_and(|pod| pod.node.is_some())
            };
            seen("stays") && seen("goes") && cluster.namespace(&NAMESPACE.into()).is_some()
        })
        .await;
    let merge = PatchParams::default();
    let writer = json!({"metadata": {"annotations": {"iam.amazonaws.com/role": "writer"}}});
    pods.patch("stays", &merge, &Patch::Merge(&writer))
        .await
        .unwrap();
    let status = json!({"status": {"podIP": "192.0.2.7", "podIPs": [{"ip": "192.0.2.7"}]}});
    pods.patch_status("stays", &merge, &Patch::Merge(&status))
        .await
        .unwrap();
    pods.delete("goes", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    watched
        .until("the changes", |cluster| {
            let stays = cluster.find(NAMESPACE, "stays");
            let changed = stays.is_some_and(|pod| {
                pod.annotations.get("iam.amazonaws.com/role") == Some("writer")
                    && pod.ips.len() == 1
            });
            changed && cluster.find(NAMESPACE, "goes").is_none()
        })
        .await;
    watched
        .cluster
        .find(NAMESPACE, "stays")
        .unwrap()
        .uid
        .to_string()
}

async fn review(client: &Client, api: &KubeApi) {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), NAMESPACE);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec!["kiam-server".to_owned()],
            ..made(json!({"audiences": [], "boundObjectRef":
                {"apiVersion": "v1", "kind": "Pod", "name": "stays"}}))
        },
        ..TokenRequest::default()
    };
    let create = PostParams::default();
    let issued = accounts
        .create_token_request("agent", &create, &request)
        .await
        .unwrap();
    let token = issued.status.unwrap().token;
    let reviewed = api
        .token_review(&token, "kiam-server")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        reviewed.username,
        format!("system:serviceaccount:{NAMESPACE}:agent")
    );
    assert_eq!(reviewed.audiences, ["kiam-server"]);
    assert!(reviewed.pod_uid.is_some());
    assert_eq!(api.token_review(&token, "elsewhere").await.unwrap(), None);
    assert_eq!(
        api.token_review("x.y.z", "kiam-server").await.unwrap(),
        None
    );
}

async fn note(api: &KubeApi, pod_uid: &str) {
    let mut note = EventNote {
        event_name: "stays.0123456789abcdef".to_owned(),
        namespace: NAMESPACE.to_owned(),
        pod_name: "stays".to_owned(),
        pod_uid: pod_uid.to_owned(),
        reason: "KiamRoleForbidden",
        message: "a test".to_owned(),
        first_at: "2026-01-02T03:04:05Z".to_owned(),
        last_at: "2026-01-02T03:04:05Z".to_owned(),
        count: 1,
    };
    api.create_event(&note).await.unwrap();
    assert!(matches!(
        api.create_event(&note).await,
        Err(ApiError::Exists)
    ));
    note.count = 2;
    api.repeat_event(&note).await.unwrap();
}

async fn untaint(client: &Client, api: &KubeApi) {
    let taints = json!([{"key": "other", "effect": "NoSchedule"},
                        {"key": TAINT, "value": "v", "effect": "NoSchedule"}]);
    let node = made(json!({"metadata": {"name": NODE}, "spec": {"taints": taints}}));
    let nodes = Api::<Node>::all(client.clone());
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let taints = api.taints(NODE).await.unwrap();
    let at = taints.iter().position(|taint| taint.key == TAINT).unwrap();
    let wrong = usize::from(at == 0);
    let ours = taints.get(at).unwrap();
    let refused = api.remove_taint(NODE, wrong, ours).await;
    assert!(matches!(refused, Err(ApiError::Conflict)), "{refused:?}");
    api.remove_taint(NODE, at, ours).await.unwrap();
    let left = api.taints(NODE).await.unwrap();
    assert!(left.iter().all(|taint| taint.key != TAINT), "{left:?}");
}
