//! What others may ask the owner: each question carries its own way back.

use std::net::IpAddr;
use std::sync::Arc;

use kiam_wire::{Credentials, PodState, PodUid};
use tokio::sync::oneshot;

use super::Owner;
use crate::annotations::{self, ImdsV2};
use crate::nodes::PodSeen;
use crate::why::{Facts, Known};

/// A question, and where the answer goes. A reply nobody waits for any more is dropped.
#[derive(Debug)]
pub enum Question {
    /// Why a pod gets what it gets.
    Why {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The way back.
        reply: oneshot::Sender<Box<Facts>>,
    },
    /// The node that a pod is bound to.
    NodeOf {
        /// The pod.
        pod: PodUid,
        /// The way back.
        reply: oneshot::Sender<Option<String>>,
    },
    /// What kiam would answer for an address.
    Legacy {
        /// The address.
        ip: IpAddr,
        /// The role asked for, if it is credentials that are asked for.
        role: Option<String>,
        /// The way back.
        reply: oneshot::Sender<Legacy>,
    },
}

/// What kiam would answer for an address.
#[derive(Debug, Clone)]
pub enum Legacy {
    /// No pod has this address (yet).
    Unknown,
    /// The pod's annotation, as written; empty without one.
    Role(String),
    /// The pod asked for no role.
    NoRole,
    /// Another role than the pod's, or one that is not permitted.
    Forbidden,
    /// On the way. The last error of STS, if there was one.
    Pending(Option<Arc<str>>),
    /// Here.
    Ready(Arc<Credentials>),
}

impl Owner {
    pub(super) fn answer(&self, question: Question) {
        match question {
            Question::Why {
                namespace,
                name,
                reply,
            } => {
                let facts = self.facts(namespace, name);
                let _still_wanted = reply.send(Box::new(facts)).is_ok();
            }
            Question::NodeOf { pod, reply } => {
                let node = self.cluster.get(&pod).and_then(|pod| pod.node.as_deref());
                let _still_wanted = reply.send(node.map(str::to_owned)).is_ok();
            }
            Question::Legacy { ip, role, reply } => {
                let answer = self.legacy(ip.to_canonical(), role.as_deref());
                let _still_wanted = reply.send(answer).is_ok();
            }
        }
    }

    fn facts(&self, namespace: String, name: String) -> Facts {
        let pod = self.cluster.find(&namespace, &name);
        Facts {
            known: pod.map(|pod| self.known(pod)),
            synced: self.cluster.synced(),
            pod: (namespace, name),
        }
    }

    fn known(&self, pod: &PodSeen) -> Known {
        let accounts = self.policy.service_account_roles;
        let around = self.cluster.surroundings(pod, accounts);
        let namespace = self.cluster.namespace(&pod.namespace);
        let permitted = namespace.and_then(|namespace| namespace.get(annotations::PERMITTED));
        let odd_imds_v2 = namespace.and_then(|namespace| ImdsV2::of(namespace).odd());
        let state = pod.node.as_deref().and_then(|node| {
            self.nodes.look(node, |table| {
                table.pod(&pod.uid).map(|told| told.state().clone())
            })?
        });
        let request = self.verdict(&pod.uid).and_then(|decided| decided.request());
        let id = self.granted(&pod.uid);
        let session = |id| self.sessions.get(&id);
        Known {
            uid: pod.uid.to_string(),
            node: pod.node.as_deref().map(str::to_owned),
            ips: self
                .cluster
                .owned_ips(pod)
                .iter()
                .map(ToString::to_string)
                .collect(),
            contested: self.contests(pod),
            host_network: pod.host_network,
            service_account: pod.service_account.to_string(),
            asks: asks(pod, around.and_then(|around| around.service_account)),
            permitted: permitted.map(str::to_owned),
            odd_imds_v2: odd_imds_v2.map(str::to_owned),
            session: request.map(|request| {
                let role = request.role().as_str().to_owned();
                (role, request.session().name.clone())
            }),
            state,
            last_answer: id.and_then(|id| self.last_answers.get(&id).cloned()),
            expires_at: id.and_then(session).map(|one| one.expires_at()),
            streams: pod
                .node
                .as_deref()
                .map(|node| self.nodes.streams(node))
                .unwrap_or_default(),
            now: self.clock.now().wall,
        }
    }

    /// The pod's addresses that others of its node show as well while nobody stops, each with those
    /// others.
    fn contests(&self, pod: &PodSeen) -> Vec<(IpAddr, Vec<String>)> {
        let others = |ip: &IpAddr| {
            let claimants = self.cluster.claimants(*ip);
            claimants
                .filter(|other| other.uid != pod.uid && other.node == pod.node)
                .filter(|other| !other.terminating)
                .map(|other| format!("{}/{}", other.namespace, other.name))
                .collect()
        };
        let contested = pod.ips.iter().filter(|ip| self.cluster.is_contested(**ip));
        contested
            .map(|ip| (*ip, others(ip)))
            .filter(|(_ip, others): &(IpAddr, Vec<String>)| !others.is_empty())
            .collect()
    }

    fn legacy(&self, ip: IpAddr, role: Option<&str>) -> Legacy {
        let Some(pod) = self.cluster.owner(ip) else {
            return Legacy::Unknown;
        };
        let accounts = self.policy.service_account_roles;
        // Its namespace or ServiceAccount has not been seen yet: what it asks for is not known.
        let Some(around) = self.cluster.surroundings(pod, accounts) else {
            return Legacy::Unknown;
        };
        let asks = asks(pod, around.service_account);
        let annotated = asks.map(|(annotated, _on)| annotated).unwrap_or_default();
        let Some(role) = role else {
            return Legacy::Role(annotated);
        };
        if annotated.is_empty() {
            return Legacy::NoRole;
        }
        let base = &self.policy.base;
        let same = match (base.resolve(role), base.resolve(&annotated)) {
            (Ok(asked), Ok(annotated)) => asked == annotated,
            (Ok(_) | Err(_), Err(_)) | (Err(_), Ok(_)) => false,
        };
        if !same {
            return Legacy::Forbidden;
        }
        let state = pod.node.as_deref().and_then(|node| {
            self.nodes.look(node, |table| {
                let state = table.pod(&pod.uid)?.state().clone();
                let id = state.credential_id();
                Some((state, id.and_then(|id| table.credentials(&id).cloned())))
            })?
        });
        match state {
            None => Legacy::Pending(None),
            Some((PodState::Granted(_), Some(credentials))) => Legacy::Ready(credentials),
            Some((PodState::Granted(id) | PodState::Pending(id), _)) => {
                let last = self.last_answers.get(&id);
                Legacy::Pending(last.and_then(|last| last.error.clone()))
            }
            Some((PodState::Refused(_), _)) => Legacy::Forbidden,
            Some((PodState::NoRole, _)) => Legacy::NoRole,
        }
    }
}

/// The role that is asked for, as written, and the object that asks.
pub(super) fn asks(
    pod: &PodSeen,
    service_account: Option<&annotations::Annotations>,
) -> Option<(String, &'static str)> {
    let on_pod = pod
        .annotations
        .get(annotations::ROLE)
        .map(|role| (role, "pod"));
    let found = on_pod.or_else(|| {
        let role = service_account?.get(annotations::ROLE)?;
        Some((role, "ServiceAccount"))
    });
    found
        .filter(|(role, _on)| !role.is_empty())
        .map(|(role, on)| (role.to_owned(), on))
}

#[cfg(test)]
mod tests {
    use super::super::testing::owner;
    use super::*;
    use crate::annotations::Annotations;
    use crate::clock::Moment;
    use crate::nodes::{AccountKey, ClusterEvent, Touched};
    use kiam_wire::UnixSeconds;

    fn batch(owner: &mut Owner, events: Vec<ClusterEvent>) {
        let mut touched = Touched::default();
        for event in events {
            owner.hear((Moment::ORIGIN, event), &mut touched);
        }
        owner.settle(touched);
    }

    #[tokio::test]
    async fn a_pod_whose_account_has_not_been_seen_is_waited_for() {
        let mut owner = owner();
        owner.policy.service_account_roles = true;
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let pod = PodSeen {
            uid: PodUid::try_new("web").unwrap(),
            namespace: "team".into(),
            name: "web".into(),
            service_account: "worker".into(),
            node: Some("a".into()),
            ips: [ip].into(),
            host_network: false,
            is_static: false,
            terminating: false,
            created_at: UnixSeconds::new(1),
            annotations: Annotations::default(),
        };
        let namespace = ClusterEvent::Namespace {
            name: "team".into(),
            annotations: Annotations::default(),
        };
        batch(&mut owner, vec![namespace, ClusterEvent::Pod(pod)]);
        let role = |owner: &Owner| owner.legacy(ip, None);
        assert!(matches!(role(&owner), Legacy::Unknown));
        let account = ClusterEvent::ServiceAccount {
            key: AccountKey {
                namespace: "team".into(),
                name: "worker".into(),
            },
            annotations: [(annotations::ROLE, "reader")].into_iter().collect(),
        };
        batch(&mut owner, vec![account]);
        let answer = role(&owner);
        assert!(
            matches!(&answer, Legacy::Role(role) if role == "reader"),
            "{answer:?}"
        );
    }
}
