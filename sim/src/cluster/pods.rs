//! The in-process face for objects: what a scheduler, a kubelet, a user or a controller would do to
//! them, one method each.

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::ClusterHandle;
use super::admission::admit_new;
use super::json::{put, take, text, time};
use super::kind::Kind;
use super::new_pod::{NewPod, Phase};
use super::state::{self, State};
use super::status::ApiError;
use super::store::Store;
use super::write;
use crate::shared::lock;

fn put_addresses(pod: &mut Value, addresses: &[IpAddr]) {
    match addresses.first() {
        None => {
            take(pod, &["status", "podIP"]);
            take(pod, &["status", "podIPs"]);
        }
        Some(first) => {
            let all: Vec<Value> = addresses
                .iter()
                .map(|address| json!({"ip": address.to_string()}))
                .collect();
            put(pod, &["status", "podIP"], first.to_string());
            put(pod, &["status", "podIPs"], all);
        }
    }
}

fn put_phase(pod: &mut Value, phase: Phase, now: Timestamp) {
    put(pod, &["status", "phase"], phase.name());
    let running = phase == Phase::Running;
    if running && text(pod, "/status/startTime").is_empty() {
        put(pod, &["status", "startTime"], time(now));
    }
    let ready = json!([{
        "type": "Ready",
        "status": if running { "True" } else { "False" },
        "lastTransitionTime": time(now),
    }]);
    put(pod, &["status", "conditions"], ready);
    let state = match phase {
        Phase::Pending => json!({"waiting": {"reason": "ContainerCreating"}}),
        Phase::Running => json!({"running": {"startedAt": time(now)}}),
        Phase::Succeeded => json!({"terminated": {"exitCode": 0, "reason": "Completed"}}),
        Phase::Failed => json!({"terminated": {"exitCode": 1, "reason": "Error"}}),
    };
    let statuses = json!([{
        "name": "main", "image": "sim.invalid/main:1", "imageID": "", "ready": running,
        "restartCount": 0, "started": running, "state": state,
    }]);
    put(pod, &["status", "containerStatuses"], statuses);
}

fn insert_pod(state: &State, store: &mut Store, pod: NewPod) -> Result<(), ApiError> {
    let now = state.clock.now();
    let (namespace, addresses, phase) = (pod.namespace.clone(), pod.addresses.clone(), pod.phase);
    let mut value = pod.into_value();
    admit_new(Kind::Pod, &namespace, &mut value, "")?;
    if phase != Phase::Pending {
        put_phase(&mut value, phase, now);
    }
    put_addresses(&mut value, &addresses);
    state::insert(store, Kind::Pod, value, now).map(drop)
}

fn with_annotations(annotations: &[(&str, &str)]) -> Value {
    annotations
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
        .collect::<Map<_, _>>()
        .into()
}

impl ClusterHandle {
    /// Creates a namespace with its `default` service account.
    pub fn create_namespace(
        &self,
        name: &str,
        annotations: &[(&str, &str)],
    ) -> Result<(), ApiError> {
        let metadata = json!({"name": name, "annotations": with_annotations(annotations)});
        self.create(Kind::Namespace, "", json!({"metadata": metadata}))
    }

    /// Creates a node that is ready, with a taint for each of `taints` (key, effect `NoSchedule`).
    pub fn create_node(&self, name: &str, taints: &[&str]) -> Result<(), ApiError> {
        let taints: Vec<Value> = taints
            .iter()
            .map(|key| json!({"key": key, "effect": "NoSchedule"}))
            .collect();
        let mut node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "Hostname", "address": name}],
                "nodeInfo": {"kubeletVersion": "v1.33.0-sim"},
            },
        });
        if !taints.is_empty() {
            put(&mut node, &["spec", "taints"], taints);
        }
        self.create(Kind::Node, "", node)
    }

    /// Creates a service account.
    pub fn create_service_account(
        &self,
        namespace: &str,
        name: &str,
        annotations: &[(&str, &str)],
    ) -> Result<(), ApiError> {
        let metadata = json!({"name": name, "annotations": with_annotations(annotations)});
        self.create(
            Kind::ServiceAccount,
            namespace,
            json!({"metadata": metadata}),
        )
    }

    /// Creates any object, checked and completed as one that came over HTTP.
    pub fn create(&self, kind: Kind, namespace: &str, mut value: Value) -> Result<(), ApiError> {
        let mut store = lock(&self.0.store);
        admit_new(kind, namespace, &mut value, "")?;
        state::insert(&mut store, kind, value, self.0.clock.now()).map(drop)
    }

    /// Creates a pod.
    pub fn create_pod(&self, pod: NewPod) -> Result<(), ApiError> {
        insert_pod(&self.0, &mut lock(&self.0.store), pod)
    }

    /// Creates many pods, other requests finding a gap every few hundred. Stops at the first that is
    /// refused; those before it stay.
    pub fn create_pods(&self, pods: impl IntoIterator<Item = NewPod>) -> Result<(), ApiError> {
        let mut pods = pods.into_iter().peekable();
        while pods.peek().is_some() {
            let mut store = lock(&self.0.store);
            for pod in pods.by_ref().take(256) {
                insert_pod(&self.0, &mut store, pod)?;
            }
        }
        Ok(())
    }

    /// Changes an object in whatever way; the same again is no change.
    ///
    /// Name, namespace, uid and revision are kept whatever `change` does to them.
    pub fn update(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<(), ApiError> {
        let mut store = lock(&self.0.store);
        let before = store.get(kind, namespace, name)?;
        let kept = before.value();
        let mut value = kept.clone();
        change(&mut value);
        for field in [
            "namespace",
            "name",
            "uid",
            "resourceVersion",
            "creationTimestamp",
        ] {
            if let Some(kept) = kept.pointer(&format!("/metadata/{field}")) {
                put(&mut value, &["metadata", field], kept.clone());
            }
        }
        state::replace(&mut store, kind, &before, value);
        Ok(())
    }

    /// Puts a pod on a node. A pod is bound once.
    pub fn bind(&self, namespace: &str, name: &str, node: &str) -> Result<(), ApiError> {
        write::bind(&mut lock(&self.0.store), namespace, name, node)
    }

    /// Gives a pod its address.
    pub fn set_ip(&self, namespace: &str, name: &str, address: IpAddr) -> Result<(), ApiError> {
        self.set_ips(namespace, name, &[address])
    }

    /// Gives a pod its addresses, the first being `status.podIP`; none takes them away.
    pub fn set_ips(
        &self,
        namespace: &str,
        name: &str,
        addresses: &[IpAddr],
    ) -> Result<(), ApiError> {
        self.update(Kind::Pod, namespace, name, |pod| {
            put_addresses(pod, addresses);
        })
    }

    /// Moves a pod on, with the conditions and container states that go with it.
    pub fn set_phase(&self, namespace: &str, name: &str, phase: Phase) -> Result<(), ApiError> {
        let now = self.0.clock.now();
        self.update(Kind::Pod, namespace, name, |pod| put_phase(pod, phase, now))
    }

    /// Running with these addresses, in one change, as a kubelet reports it.
    pub fn run(&self, namespace: &str, name: &str, addresses: &[IpAddr]) -> Result<(), ApiError> {
        let now = self.0.clock.now();
        self.update(Kind::Pod, namespace, name, |pod| {
            put_phase(pod, Phase::Running, now);
            put_addresses(pod, addresses);
        })
    }

    /// Marks a pod as being deleted in `grace` from now. It stays until [`ClusterHandle::delete`].
    pub fn mark_deleting(
        &self,
        namespace: &str,
        name: &str,
        grace: Duration,
    ) -> Result<(), ApiError> {
        let grace_s = grace.as_secs();
        let after = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
        let at = self
            .0
            .clock
            .now()
            .saturating_add(after)
            .unwrap_or(Timestamp::MAX);
        // Not through `update`: a mark with no grace left would end the pod there.
        let mut store = lock(&self.0.store);
        let pod = store.get(Kind::Pod, namespace, name)?;
        let mut value = pod.value();
        put(&mut value, &["metadata", "deletionTimestamp"], time(at));
        put(
            &mut value,
            &["metadata", "deletionGracePeriodSeconds"],
            grace_s,
        );
        store.replace(Kind::Pod, &pod, value);
        Ok(())
    }

    /// Takes an object away at once; a namespace takes its content along.
    ///
    /// An object with finalizers is only marked.
    pub fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<(), ApiError> {
        let mut store = lock(&self.0.store);
        let object = store.get(kind, namespace, name)?;
        let none = Some(Duration::ZERO);
        drop(state::delete(
            &mut store,
            kind,
            &object,
            none,
            self.0.clock.now(),
        ));
        Ok(())
    }

    /// Sets an annotation, or takes it away.
    pub fn annotate(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<(), ApiError> {
        self.update(kind, namespace, name, |object| match value {
            Some(value) => put(object, &["metadata", "annotations", key], value),
            None => drop(take(object, &["metadata", "annotations", key])),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use crate::cluster::{Cluster, ClusterOptions, Kind, NewPod, Phase};

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

    #[tokio::test]
    async fn a_pod_lives_and_dies() {
        let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
        let handle = cluster.handle();
        handle.create_namespace("ns", &[("k", "v")]).unwrap();
        handle.create_node("n", &["kiam"]).unwrap();
        handle
            .create_pod(
                NewPod::new("ns", "a")
                    .annotation("role", "r")
                    .label("app", "x"),
            )
            .unwrap();
        assert_eq!(
            handle
                .create_pod(NewPod::new("ns", "a"))
                .unwrap_err()
                .reason(),
            "AlreadyExists"
        );
        assert_eq!(
            handle
                .create_pod(NewPod::new("no", "a"))
                .unwrap_err()
                .code(),
            404
        );
        handle.bind("ns", "a", "n").unwrap();
        assert_eq!(
            handle.bind("ns", "a", "other").unwrap_err().reason(),
            "Conflict"
        );
        handle.run("ns", "a", &[ADDRESS]).unwrap();
        let pod = handle.get(Kind::Pod, "ns", "a").unwrap();
        assert_eq!(pod["spec"]["nodeName"], "n");
        assert_eq!(pod["status"]["podIP"], "10.0.0.1");
        assert_eq!(pod["status"]["phase"], "Running");
        let revision = handle.revision();
        handle.set_ip("ns", "a", ADDRESS).unwrap();
        assert_eq!(handle.revision(), revision, "the same again is no change");
        handle.set_phase("ns", "a", Phase::Succeeded).unwrap();
        handle.annotate(Kind::Pod, "ns", "a", "role", None).unwrap();
        assert!(
            handle.get(Kind::Pod, "ns", "a").unwrap()["metadata"]["annotations"]["role"].is_null()
        );
        handle
            .mark_deleting("ns", "a", std::time::Duration::ZERO)
            .unwrap();
        assert_eq!(handle.count(Kind::Pod), 1);
        handle.delete(Kind::Pod, "ns", "a").unwrap();
        assert_eq!(handle.count(Kind::Pod), 0);
    }

    #[tokio::test]
    async fn a_namespace_takes_its_content_along() {
        let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
        let handle = cluster.handle();
        handle.create_namespace("ns", &[]).unwrap();
        handle
            .create_pods((0..1000).map(|number| NewPod::new("ns", format!("p{number}"))))
            .unwrap();
        assert_eq!(handle.count(Kind::Pod), 1000);
        handle.delete(Kind::Namespace, "", "ns").unwrap();
        assert_eq!(handle.count(Kind::Pod), 0);
        assert_eq!(
            handle.get(Kind::Namespace, "", "ns").unwrap_err().code(),
            404
        );
    }
}
