//! A pod as its node is told of it.
//!
//! Kept for every pod of the cluster, so it holds what only it knows and shares the rest with what
//! the watch has said; the message for the agent is made from it when it is sent.

use std::net::IpAddr;
use std::sync::Arc;

use kiam_wire::{Pod, PodState, PodUid};

use crate::nodes::PodSeen;

/// A pod as its node is told of it.
#[derive(Debug)]
pub struct Shown {
    seen: Arc<PodSeen>,
    /// Which of the addresses it shows are its own; `None`, and nearly always so: all of them.
    owned: Option<Box<[IpAddr]>>,
    imds_v2_required: bool,
    state: PodState,
}

impl Shown {
    /// `seen` with those of its addresses that it owns, and what it may have.
    pub fn new(
        seen: Arc<PodSeen>,
        owned: Vec<IpAddr>,
        imds_v2_required: bool,
        state: PodState,
    ) -> Self {
        let all = *owned == *seen.ips;
        Self {
            seen,
            owned: (!all).then(|| owned.into()),
            imds_v2_required,
            state,
        }
    }

    /// The pod.
    pub fn uid(&self) -> &PodUid {
        &self.seen.uid
    }

    /// What it may have.
    pub const fn state(&self) -> &PodState {
        &self.state
    }

    /// The addresses it owns.
    pub fn ips(&self) -> &[IpAddr] {
        self.owned.as_deref().unwrap_or(&self.seen.ips)
    }

    /// Whether an agent that was told `other` has nothing to learn from this.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let (mine, others) = (&self.seen, &other.seen);
        let same_pod = mine.uid == others.uid
            && mine.namespace == others.namespace
            && mine.name == others.name
            && mine.service_account == others.service_account
            && mine.host_network == others.host_network;
        same_pod
            && self.imds_v2_required == other.imds_v2_required
            && self.state == other.state
            && self.ips() == other.ips()
    }

    /// The message for the agent.
    pub(super) fn to_wire(&self) -> Pod {
        let seen = &self.seen;
        Pod {
            uid: seen.uid.clone(),
            namespace: seen.namespace.to_string(),
            name: seen.name.to_string(),
            service_account: seen.service_account.to_string(),
            ips: self.ips().to_vec(),
            host_network: seen.host_network,
            imds_v2_required: self.imds_v2_required,
            state: self.state.clone(),
        }
    }
}
