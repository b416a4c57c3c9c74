//! What was decided about a pod.

use std::sync::Arc;

use kiam_wire::{CredentialId, PodUid, Refused};
use tracing::{debug, info};

use super::Owner;
use super::answers::asks;
use crate::annotations::{self, ImdsV2};
use crate::clock::Now;
use crate::events::{Note, Reason};
use crate::ledger::Event;
use crate::metrics::PodWord;
use crate::nodes::{PodSeen, Surroundings};
use crate::policy::{Decision, PodFacts, RoleRequest};

/// What was decided about a pod that is on a node.
#[derive(Debug)]
pub(super) struct Decided {
    node: Arc<str>,
    pub(super) verdict: Verdict,
    /// What its node is told; `None` before the first time.
    pub(super) word: Option<PodWord>,
    pub(super) imds_v2_required: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Grant(Arc<RoleRequest>),
    /// Boxed: few pods are refused, and every pod pays for the largest variant.
    Refuse(Box<Refused>),
    NoRole,
}

impl Decided {
    pub(super) const fn node(&self) -> &Arc<str> {
        &self.node
    }

    pub(super) fn request(&self) -> Option<&Arc<RoleRequest>> {
        match &self.verdict {
            Verdict::Grant(request) => Some(request),
            Verdict::Refuse(_) | Verdict::NoRole => None,
        }
    }
}

impl Owner {
    /// Decides about a pod as it is now, and tells the ledger and its node.
    pub(super) fn decide(&mut self, uid: &PodUid, now: Now) {
        let Some(pod) = self.cluster.get(uid) else {
            return;
        };
        let accounts = self.policy.service_account_roles;
        let around = self.cluster.surroundings(pod, accounts);
        let (Some(node), Some(around)) = (&pod.node, around) else {
            // Not bound yet, or held back. Its next event, or its namespace's, comes back here.
            return self.forget(uid, now);
        };
        let node = Arc::clone(node);
        let facts = facts(pod, around);
        let decision = self.policy.decide(facts, &mut self.rules);
        let imds_v2_required = ImdsV2::of(around.namespace).is_required();
        let verdict = match decision {
            Decision::Grant(request) => Verdict::Grant(self.shared(request)),
            Decision::Refuse(refused) => Verdict::Refuse(Box::new(refused)),
            Decision::NoRole => Verdict::NoRole,
        };
        let before = self.decided.get(uid);
        let word = before.and_then(|before| before.word);
        let moved = before.is_some_and(|before| before.node != node);
        let changed = before.is_none_or(|before| before.verdict != verdict);
        if moved {
            self.forget(uid, now);
        }
        let decided = Decided {
            node,
            verdict: verdict.clone(),
            word: if moved { None } else { word },
            imds_v2_required,
        };
        self.decided.insert(uid.clone(), decided);
        if changed || moved {
            self.report(uid, &verdict);
            self.took_effect(uid, &verdict, now);
        }
        self.publish(uid);
    }

    /// Equal requests are kept once: a cluster has thousands of pods for each role.
    fn shared(&self, request: RoleRequest) -> Arc<RoleRequest> {
        let id = request.id();
        let mut pods = self.ledger.pods(&id);
        let same = pods.find_map(|uid| self.decided.get(uid)?.request());
        same.map_or_else(|| Arc::new(request), Arc::clone)
    }

    fn took_effect(&mut self, uid: &PodUid, verdict: &Verdict, now: Now) {
        match verdict {
            Verdict::Grant(request) => {
                self.metrics.decisions.decided("granted");
                let there = self.sessions.contains_key(&request.id());
                self.metrics.sts.wanted(there);
                let event = Event::Granted {
                    pod: uid.clone(),
                    request: Arc::clone(request),
                };
                self.tell_ledger(event, now);
            }
            Verdict::Refuse(refused) => {
                self.metrics.decisions.decided(refused.reason().as_str());
                self.tell_ledger(Event::Gone { pod: uid.clone() }, now);
                self.note_refusal(uid, refused);
            }
            Verdict::NoRole => {
                self.metrics.decisions.decided("no_role");
                self.tell_ledger(Event::Gone { pod: uid.clone() }, now);
            }
        }
    }

    /// In a dry run the log is the result, and this its summary.
    pub(super) fn sum_up(&self) {
        if self.orders.is_some() {
            return;
        }
        let (mut granted, mut refused, mut no_role) = (0_usize, 0_usize, 0_usize);
        for decided in self.decided.values() {
            match &decided.verdict {
                Verdict::Grant(_) => granted += 1,
                Verdict::Refuse(_) => refused += 1,
                Verdict::NoRole => no_role += 1,
            }
        }
        info!(
            granted,
            refused, no_role, "dry run: this is what would be decided; changes follow"
        );
    }

    /// In a dry run the log is the result.
    fn report(&self, uid: &PodUid, verdict: &Verdict) {
        if self.orders.is_some() {
            return;
        }
        let Some(pod) = self.cluster.get(uid) else {
            return;
        };
        let (namespace, name) = (&*pod.namespace, &*pod.name);
        match verdict {
            Verdict::Grant(request) => {
                let role = request.role().as_str();
                info!(
                    pod.namespace = namespace,
                    pod.name = name,
                    role,
                    "would grant"
                );
            }
            Verdict::Refuse(refused) => {
                let why = refused.text();
                info!(
                    pod.namespace = namespace,
                    pod.name = name,
                    why,
                    "would refuse"
                );
            }
            Verdict::NoRole => debug!(pod.namespace = namespace, pod.name = name, "no role"),
        }
    }

    fn note_refusal(&self, uid: &PodUid, refused: &Refused) {
        if self.orders.is_none() {
            return;
        }
        let Some(pod) = self.cluster.get(uid) else {
            return;
        };
        let accounts = self.policy.service_account_roles;
        let around = self.cluster.surroundings(pod, accounts);
        let asked = asks(pod, around.and_then(|around| around.service_account));
        let asked = asked.map(|(role, _on)| role).unwrap_or_default();
        info!(
            pod.namespace = &*pod.namespace,
            pod.name = &*pod.name,
            pod.iam.role = asked,
            policy.explanation = refused.text(),
            reason = refused.reason().as_str(),
            "forbidden by policy"
        );
        self.notes.note(Note {
            namespace: pod.namespace.to_string(),
            pod_name: pod.name.to_string(),
            pod_uid: uid.clone(),
            reason: Reason::RoleForbidden,
            message: format!("failed assuming role {asked:?}: {}", refused.text()),
        });
    }

    /// Takes a pod away from its node and from the ledger.
    pub(super) fn forget(&mut self, uid: &PodUid, now: Now) {
        let Some(decided) = self.decided.remove(uid) else {
            return;
        };
        self.metrics.decisions.moved(decided.word, None);
        let node = Arc::clone(&decided.node);
        self.untold.entry(node).or_default().remove(uid.clone());
        if decided.request().is_some() {
            self.tell_ledger(Event::Gone { pod: uid.clone() }, now);
        }
    }

    /// What was decided about a pod, for those who ask.
    pub(super) fn verdict(&self, uid: &PodUid) -> Option<&Decided> {
        self.decided.get(uid)
    }

    /// The id of the credentials a pod may have.
    pub(super) fn granted(&self, uid: &PodUid) -> Option<CredentialId> {
        self.decided.get(uid)?.request().map(|request| request.id())
    }
}

fn facts<'a>(pod: &'a PodSeen, around: Surroundings<'a>) -> PodFacts<'a> {
    PodFacts {
        namespace: &pod.namespace,
        name: &pod.name,
        uid: pod.uid.as_str(),
        service_account: &pod.service_account,
        is_static: pod.is_static,
        annotations: &pod.annotations,
        service_account_annotations: around.service_account,
        permitted: around.namespace.get(annotations::PERMITTED),
    }
}
