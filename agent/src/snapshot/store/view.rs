//! The store as others see it: the next agent, the server, and people.

use std::sync::Arc;

use kiam_wire::report::HeldCredential;
use kiam_wire::{Full, Pod, UnixSeconds};

use super::{Store, UNSAID};

/// One pod, for the admin page. Holds no secret.
#[derive(Debug, Clone, Copy)]
pub struct PodView<'a> {
    /// The pod and its state.
    pub pod: &'a Pod,
    /// The ARN of the role whose credentials are held for it.
    pub role_arn: Option<&'a str>,
    /// When they expire.
    pub expires_at: Option<UnixSeconds>,
    /// There were credentials for it, which have ended.
    pub has_ended: bool,
}

impl Store {
    /// Everything, for the agent that takes over. `None` until a first Full has arrived. Pods keep
    /// the addresses that are fenced, as they may be reachable there again: whoever takes this
    /// over takes [`Store::fenced`] with it.
    pub fn export(&self) -> Option<Full> {
        let revision = self.revision?;
        Some(Full {
            revision: if self.is_incomplete { UNSAID } else { revision },
            pods: self.pods.values().map(|pod| self.with_own(pod)).collect(),
            credentials: self
                .sessions
                .values()
                .filter_map(|session| session.held.as_ref())
                .map(|held| Arc::clone(&held.credentials))
                .collect(),
            keys: self.keys.as_ref().map(|(keys, _)| Arc::clone(keys)),
        })
    }

    /// A pod with the addresses it has: of two pods that claim one, whoever reads the export cannot
    /// tell which was named last.
    fn with_own(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        pod.ips.retain(|ip| self.owner(*ip) == Some(&pod.uid));
        pod
    }

    /// What could be served without the server, for Hello.
    pub fn held(&self) -> Vec<HeldCredential> {
        self.sessions
            .values()
            .filter_map(|session| session.held.as_ref())
            .map(|held| HeldCredential {
                id: held.credentials.id(),
                expires_at: held.credentials.expires_at(),
            })
            .collect()
    }

    /// How many pods are known.
    pub fn pods_len(&self) -> usize {
        self.pods.len()
    }

    /// Every pod, in no order.
    pub fn pods(&self) -> impl Iterator<Item = PodView<'_>> {
        self.pods.values().map(|pod| {
            let session = pod
                .state
                .credential_id()
                .and_then(|id| self.sessions.get(&id));
            let held = session.and_then(|session| session.held.as_ref());
            PodView {
                pod,
                has_ended: session.is_some_and(|session| session.ended),
                role_arn: held.map(|held| held.credentials.role_arn()),
                expires_at: held.map(|held| held.credentials.expires_at()),
            }
        })
    }
}
