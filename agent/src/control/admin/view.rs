//! What the node is served, as JSON for people. No secret has a field here.

use std::net::IpAddr;

use kiam_wire::{Pod, PodState};
use serde::Serialize;

use super::Admin;
use crate::clock::Now;
use crate::readiness::Reason;
use crate::snapshot::store::PodView;

/// The answer to `/snapshot`.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotView {
    node: String,
    version: &'static str,
    driver: &'static str,
    ready: bool,
    not_ready_because: Vec<&'static str>,
    /// `null` until a server or an earlier agent has said what to serve.
    revision: Option<String>,
    /// Since a server last sent an update; `null` when none has.
    age_seconds: Option<u64>,
    pods: Vec<PodRow>,
}

#[derive(Debug, Serialize)]
struct PodRow {
    uid: String,
    namespace: String,
    name: String,
    service_account: String,
    ips: Vec<IpAddr>,
    host_network: bool,
    imds_v2_required: bool,
    state: &'static str,
    refused_because: Option<String>,
    role: Option<String>,
    expires_at: Option<String>,
    expires_in_seconds: Option<u64>,
}

impl SnapshotView {
    /// What is served at `now`, in the order of namespaces and names.
    pub(super) fn of(admin: &Admin, now: Now) -> Self {
        let missing = admin.readiness.missing();
        let served = admin.served.lock();
        let mut pods: Vec<PodRow> = served
            .store()
            .pods()
            .map(|pod| PodRow::of(pod, now))
            .collect();
        pods.sort_by(|one, other| {
            (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name))
        });
        Self {
            node: admin.node_name.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            driver: admin.driver,
            ready: missing.is_empty(),
            not_ready_because: missing.into_iter().map(Reason::text).collect(),
            revision: served
                .store()
                .revision()
                .map(|revision| revision.to_string()),
            age_seconds: served.heard_at().map(|heard_at| {
                let age = now.monotonic.saturating_duration_since(heard_at.monotonic);
                age.as_secs()
            }),
            pods,
        }
    }
}

impl PodRow {
    fn of(view: PodView<'_>, now: Now) -> Self {
        let PodView {
            pod,
            role_arn,
            expires_at,
            has_ended: _,
        } = view;
        let Pod {
            uid,
            namespace,
            name,
            service_account,
            ips,
            host_network,
            imds_v2_required,
            state,
        } = pod;
        let (state, refused_because) = match state {
            PodState::Granted(_) => ("granted", None),
            PodState::Pending(_) => ("pending", None),
            PodState::Refused(refused) => ("refused", Some(refused.text().to_owned())),
            PodState::NoRole => ("no-role", None),
        };
        Self {
            uid: uid.to_string(),
            namespace: namespace.clone(),
            name: name.clone(),
            service_account: service_account.clone(),
            ips: ips.clone(),
            host_network: *host_network,
            imds_v2_required: *imds_v2_required,
            state,
            refused_because,
            role: role_arn.map(str::to_owned),
            expires_at: expires_at.map(|expires_at| expires_at.to_string()),
            expires_in_seconds: expires_at.map(|expires_at| expires_at.since(now.wall).as_secs()),
        }
    }
}
