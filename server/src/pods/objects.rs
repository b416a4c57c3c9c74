//! Kubernetes objects with only the fields that count.
//!
//! Parsing skips everything else without keeping it: managed fields, containers, volumes and
//! conditions are most of a pod. Of the annotations only ours survive. Names that thousands of pods
//! share (namespaces, `ServiceAccount`s, nodes) and the annotations that a workload's pods share become
//! one allocation each.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kiam_wire::{PodUid, UnixSeconds};
use kube::Resource;
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::annotations::Annotations;
use crate::nodes::{AccountKey, ClusterEvent, Kind, PodSeen};

/// An object of a watched kind, and what it means to us.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + fmt::Debug + Send + Sync + 'static
{
    /// Which kind it is.
    const KIND: Kind;
    /// Only objects that match are listed and watched.
    const FIELDS: Option<&'static str>;

    /// What the object's existence says; `None` when it cannot be used.
    fn seen(&self, names: &mut Names) -> Option<ClusterEvent>;

    /// What its end says.
    fn gone(&self, names: &mut Names) -> Option<ClusterEvent>;
}

/// A pod.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub(super) struct Pod {
    #[serde(default, deserialize_with = "trimmed")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
    host_network: bool,
    service_account_name: Option<String>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default)]
struct PodIp {
    ip: Option<String>,
}

/// A namespace.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub(super) struct Namespace {
    #[serde(default, deserialize_with = "trimmed")]
    metadata: ObjectMeta,
}

/// A `ServiceAccount`.
#[derive(Debug, Clone, Default, serde::Deserialize)]
pub(super) struct ServiceAccount {
    #[serde(default, deserialize_with = "trimmed")]
    metadata: ObjectMeta,
}

macro_rules! core_v1 {
    ($type:ty, $kind:literal, $plural:literal, $scope:ty) => {
        impl Resource for $type {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group((): &()) -> Cow<'_, str> {
                "".into()
            }
            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

core_v1!(Pod, "Pod", "pods", NamespaceResourceScope);
core_v1!(Namespace, "Namespace", "namespaces", ClusterResourceScope);
core_v1!(
    ServiceAccount,
    "ServiceAccount",
    "serviceaccounts",
    NamespaceResourceScope
);

impl Watched for Pod {
    const KIND: Kind = Kind::Pods;
    // Pods that have run to their end may stay for weeks; leaving the selection is a deletion.
    const FIELDS: Option<&'static str> = Some("status.phase!=Succeeded,status.phase!=Failed");

    fn seen(&self, names: &mut Names) -> Option<ClusterEvent> {
        let phase = self.status.phase.as_deref().unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            return self.gone(names);
        }
        let created_at = self.metadata.creation_timestamp.as_ref();
        Some(ClusterEvent::Pod(PodSeen {
            uid: self.uid()?,
            namespace: names.shared(self.metadata.namespace.as_deref()?),
            name: self.metadata.name.as_deref()?.into(),
            service_account: names.shared(self.spec.service_account_name.as_deref().unwrap_or("")),
            node: self
                .spec
                .node_name
                .as_deref()
                .filter(|node| !node.is_empty())
                .map(|node| names.shared(node)),
            ips: self.ips(),
            host_network: self.spec.host_network,
            is_static: self.is_static(),
            terminating: self.metadata.deletion_timestamp.is_some(),
            created_at: UnixSeconds::new(created_at.map_or(0, |time| time.0.as_second())),
            annotations: names.annotations(&self.metadata),
        }))
    }

    fn gone(&self, _names: &mut Names) -> Option<ClusterEvent> {
        self.uid().map(ClusterEvent::PodGone)
    }
}

impl Pod {
    fn uid(&self) -> Option<PodUid> {
        PodUid::try_new(self.metadata.uid.as_deref()?).ok()
    }

    /// Kubelets mark so what they show of the pods that files of their node describe; the API server
    /// lets a kubelet create no other pods, and nobody add or remove the mark later.
    fn is_static(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.is_some_and(|annotations| annotations.contains_key(MIRROR))
    }

    /// The pod's own addresses: none for a hostNetwork pod, whose addresses are the node's.
    fn ips(&self) -> Box<[IpAddr]> {
        if self.spec.host_network {
            return Box::default();
        }
        let many = self.status.pod_ips.iter().flatten();
        let all = many
            .filter_map(|ip| ip.ip.as_deref())
            .chain(self.status.pod_ip.as_deref());
        let mut ips: Vec<IpAddr> = Vec::with_capacity(1);
        for ip in all.filter_map(|ip| ip.parse::<IpAddr>().ok()) {
            let ip = ip.to_canonical();
            let usable = !ip.is_unspecified() && !ip.is_multicast();
            if usable && !ips.contains(&ip) && ips.len() < kiam_wire::limits::IPS_PER_POD_MAX {
                ips.push(ip);
            }
        }
        ips.into_boxed_slice()
    }
}

impl Watched for Namespace {
    const KIND: Kind = Kind::Namespaces;
    const FIELDS: Option<&'static str> = None;

    fn seen(&self, names: &mut Names) -> Option<ClusterEvent> {
        Some(ClusterEvent::Namespace {
            name: names.shared(self.metadata.name.as_deref()?),
            annotations: names.annotations(&self.metadata),
        })
    }

    fn gone(&self, names: &mut Names) -> Option<ClusterEvent> {
        let name = names.shared(self.metadata.name.as_deref()?);
        Some(ClusterEvent::NamespaceGone(name))
    }
}

impl ServiceAccount {
    fn key(&self, names: &mut Names) -> Option<AccountKey> {
        Some(AccountKey {
            namespace: names.shared(self.metadata.namespace.as_deref()?),
            name: names.shared(self.metadata.name.as_deref()?),
        })
    }
}

impl Watched for ServiceAccount {
    const KIND: Kind = Kind::ServiceAccounts;
    const FIELDS: Option<&'static str> = None;

    fn seen(&self, names: &mut Names) -> Option<ClusterEvent> {
        Some(ClusterEvent::ServiceAccount {
            key: self.key(names)?,
            annotations: names.annotations(&self.metadata),
        })
    }

    fn gone(&self, names: &mut Names) -> Option<ClusterEvent> {
        self.key(names).map(ClusterEvent::ServiceAccountGone)
    }
}

/// Names and annotations seen before, so that each is kept once however many objects carry it.
#[derive(Debug, Default)]
pub(super) struct Names {
    seen: HashSet<Arc<str>>,
    annotations: HashSet<Annotations>,
    /// Forgetting what nobody uses any more is due at these sizes.
    sweep_at: usize,
    sweep_annotations_at: usize,
}

const SWEEP_AT_MIN: usize = 1024;

impl Names {
    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(seen) = self.seen.get(name) {
            return Arc::clone(seen);
        }
        if self.seen.len() >= self.sweep_at.max(SWEEP_AT_MIN) {
            self.seen.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = self.seen.len() * 2;
        }
        let name: Arc<str> = name.into();
        self.seen.insert(Arc::clone(&name));
        name
    }

    fn annotations(&mut self, metadata: &ObjectMeta) -> Annotations {
        let all = metadata.annotations.iter().flatten();
        let read: Annotations = all
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        if read.is_empty() {
            return read;
        }
        if let Some(seen) = self.annotations.get(&read) {
            return seen.clone();
        }
        if self.annotations.len() >= self.sweep_annotations_at.max(SWEEP_AT_MIN) {
            self.annotations.retain(|seen| seen.shared_by() > 1);
            self.sweep_annotations_at = self.annotations.len() * 2;
        }
        self.annotations.insert(read.clone());
        read
    }
}

/// Keeps of the metadata what is named here and of the annotations ours and the mark of static pods.
fn trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        creation_timestamp: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
        deletion_timestamp: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
        #[serde(default)]
        annotations: Option<Ours>,
    }
    let kept = Metadata::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: kept.name,
        namespace: kept.namespace,
        uid: kept.uid,
        resource_version: kept.resource_version,
        creation_timestamp: kept.creation_timestamp,
        deletion_timestamp: kept.deletion_timestamp,
        annotations: kept.annotations.map(|Ours(annotations)| annotations),
        ..ObjectMeta::default()
    })
}

/// Annotations whose key begins like ours, and the mark of static pods.
struct Ours(BTreeMap<String, String>);

const OUR_PREFIX: &str = "iam.amazonaws.com/";
/// On what a kubelet shows of a static pod. Its value means nothing here.
const MIRROR: &str = "kubernetes.io/config.mirror";

impl<'de> Deserialize<'de> for Ours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keep;
        impl<'de> Visitor<'de> for Keep {
            type Value = Ours;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ours, A::Error> {
                let mut ours = BTreeMap::new();
                while let Some(key) = map.next_key::<Cow<'_, str>>()? {
                    if key.starts_with(OUR_PREFIX) {
                        ours.insert(key.into_owned(), map.next_value()?);
                    } else if key == MIRROR {
                        map.next_value::<IgnoredAny>()?;
                        ours.insert(key.into_owned(), String::new());
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Ours(ours))
            }
        }
        deserializer.deserialize_map(Keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn seen(pod: serde_json::Value) -> ClusterEvent {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        pod.seen(&mut Names::default()).unwrap()
    }

    fn full() -> serde_json::Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web-0", "namespace": "default", "uid": "u-1", "resourceVersion": "7",
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "labels": {"app": "web"},
                "managedFields": [{"manager": "x"}],
                "annotations": {
                    "iam.amazonaws.com/role": "reader",
                    "kubectl.kubernetes.io/last-applied-configuration": "{}"
                }
            },
            "spec": {"nodeName": "node-a", "serviceAccountName": "web", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.7",
                       "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]}
        })
    }

    #[test]
    fn a_pod_is_read_and_the_rest_is_dropped() {
        let parsed: Pod = serde_json::from_value(full()).unwrap();
        assert!(parsed.metadata.managed_fields.is_none() && parsed.metadata.labels.is_none());
        assert_eq!(parsed.metadata.annotations.as_ref().unwrap().len(), 1);
        let ClusterEvent::Pod(pod) = seen(full()) else {
            panic!("not a pod")
        };
        assert_eq!((&*pod.name, &*pod.namespace), ("web-0", "default"));
        assert_eq!(
            (&*pod.service_account, pod.node.as_deref()),
            ("web", Some("node-a"))
        );
        let ips: Vec<IpAddr> = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        assert_eq!(*pod.ips, *ips);
        assert_eq!(pod.created_at.to_string(), "2026-01-02T03:04:05Z");
        assert!(!pod.host_network && !pod.terminating);
    }

    #[test]
    fn host_network_pods_have_no_address_of_their_own() {
        let mut pod = full();
        pod["spec"]["hostNetwork"] = json!(true);
        let ClusterEvent::Pod(pod) = seen(pod) else {
            panic!("not a pod")
        };
        assert!(pod.host_network && pod.ips.is_empty());
    }

    #[test]
    fn a_static_pod_is_known_by_its_mark() {
        let ClusterEvent::Pod(usual) = seen(full()) else {
            panic!("not a pod")
        };
        assert!(!usual.is_static);
        for value in ["0a1b", ""] {
            let mut pod = full();
            pod["metadata"]["annotations"][MIRROR] = json!(value);
            let ClusterEvent::Pod(pod) = seen(pod) else {
                panic!("not a pod")
            };
            assert!(pod.is_static);
            assert_eq!(pod.annotations, usual.annotations);
        }
    }

    #[test]
    fn pods_that_ran_to_their_end_are_gone() {
        for phase in ["Succeeded", "Failed"] {
            let mut pod = full();
            pod["status"]["phase"] = json!(phase);
            assert_eq!(
                seen(pod),
                ClusterEvent::PodGone(PodUid::try_new("u-1").unwrap())
            );
        }
    }

    #[test]
    fn nonsense_in_a_status_costs_only_itself() {
        let mut pod = full();
        pod["status"]["podIPs"] =
            json!([{"ip": "nonsense"}, {"ip": "0.0.0.0"}, {}, {"ip": "::ffff:10.0.0.7"}]);
        let ClusterEvent::Pod(pod) = seen(pod) else {
            panic!("not a pod")
        };
        assert_eq!(*pod.ips, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn annotations_are_kept_once_and_forgotten_with_their_last_user() {
        let mut names = Names::default();
        let mut read = |role: &str| {
            let metadata = ObjectMeta {
                annotations: Some([("iam.amazonaws.com/role".to_owned(), role.to_owned())].into()),
                ..ObjectMeta::default()
            };
            names.annotations(&metadata)
        };
        let first = read("reader");
        let _second = read("reader");
        assert_eq!(first.shared_by(), 3, "two users and the set");
        assert_eq!(first.get("iam.amazonaws.com/role"), Some("reader"));
        for n in 0..SWEEP_AT_MIN {
            read(&n.to_string());
        }
        assert!(names.annotations.len() < SWEEP_AT_MIN);
        assert!(names.annotations.contains(&first));
    }

    #[test]
    fn a_name_is_kept_once_and_forgotten_with_its_last_user() {
        let mut names = Names::default();
        let first = names.shared("default");
        assert!(Arc::ptr_eq(&first, &names.shared("default")));
        for n in 0..SWEEP_AT_MIN {
            names.shared(&format!("n{n}"));
        }
        assert!(names.seen.len() < SWEEP_AT_MIN);
        assert!(Arc::ptr_eq(&first, &names.shared("default")));
    }
}
