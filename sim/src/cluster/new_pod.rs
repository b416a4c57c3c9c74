//! A pod as a test or a load test describes it, before it exists.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::json::put;

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// Not all containers run yet.
    #[default]
    Pending,
    /// At least one container runs.
    Running,
    /// All containers ended well.
    Succeeded,
    /// A container ended badly.
    Failed,
}

impl Phase {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// A pod that is about to be created: pending, on no node and without an address unless told
/// otherwise.
#[derive(Debug, Clone)]
pub struct NewPod {
    pub(super) namespace: String,
    name: String,
    annotations: Vec<(String, String)>,
    labels: Vec<(String, String)>,
    service_account: String,
    node: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) phase: Phase,
    host_network: bool,
}

impl NewPod {
    /// A pod of this name, which the namespace must not have yet.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            annotations: Vec::new(),
            labels: Vec::new(),
            service_account: "default".to_owned(),
            node: None,
            addresses: Vec::new(),
            phase: Phase::Pending,
            host_network: false,
        }
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.push((key.into(), value.into()));
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// Runs it as this service account instead of `default`.
    #[must_use]
    pub fn service_account(mut self, name: impl Into<String>) -> Self {
        self.service_account = name.into();
        self
    }

    /// Has it bound to a node from the start.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>) -> Self {
        self.node = Some(name.into());
        self
    }

    /// Adds an address; the first is `status.podIP`.
    #[must_use]
    pub fn ip(mut self, address: IpAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// Starts in this phase.
    #[must_use]
    pub const fn phase(mut self, phase: Phase) -> Self {
        self.phase = phase;
        self
    }

    /// Lets it share its node's network.
    #[must_use]
    pub const fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// The object to create. Phase and addresses are not in it: they are the kubelet's to report.
    pub(super) fn into_value(self) -> Value {
        let map = |pairs: Vec<(String, String)>| {
            pairs
                .into_iter()
                .map(|(key, value)| (key, value.into()))
                .collect::<Map<_, _>>()
        };
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": {
                "serviceAccountName": self.service_account,
                "containers": [{
                    "name": "main", "image": "sim.invalid/main:1",
                    "imagePullPolicy": "IfNotPresent", "resources": {},
                }],
            },
        });
        if !self.annotations.is_empty() {
            put(
                &mut pod,
                &["metadata", "annotations"],
                map(self.annotations),
            );
        }
        if !self.labels.is_empty() {
            put(&mut pod, &["metadata", "labels"], map(self.labels));
        }
        if let Some(node) = self.node {
            put(&mut pod, &["spec", "nodeName"], node);
        }
        if self.host_network {
            put(&mut pod, &["spec", "hostNetwork"], true);
        }
        pod
    }
}
