//! Decides what a pod may have: its annotations against its namespace's rule.
//!
//! Pure. A role is granted only when the namespace permits its resolved ARN; everything else is a
//! refusal that explains itself to the developer who will read it. The rule is about the role
//! alone: session name, tags, external id and session policies are the pod author's to choose,
//! because IAM judges each of them in the role's trust policy (`aws:RequestTag`, `sts:ExternalId`,
//! `sts:RoleSessionName`), and a session policy can only take away. The one exception are the tags
//! that say where a pod runs: a pod that could write those itself could pose as another.
//!
//! A static pod gets no role at all. Whoever has a node's identity can show one in any namespace and
//! with any annotation, and so would have every role that any namespace permits.

mod re2;
mod request;
mod rule;
mod source_identity;

use std::time::Duration;

use kiam_wire::{Refusal, Refused};

pub use re2::Untranslatable;
pub use request::{RoleRequest, Session};
pub use rule::{Matching, Rule, RuleError, Rules};
pub use source_identity::{SourceIdentity, TemplateError};

use crate::annotations::{
    self, Annotations, Origin, Problem, RoleAsk, SESSION_TAG_PREFIX, SESSION_TAGS_MAX, Tag,
    same_key,
};
use crate::arn::BaseArn;

/// What the operator decided for the whole cluster.
#[derive(Debug, Clone)]
pub struct Policy {
    /// What short role names are appended to.
    pub base: BaseArn,
    /// The session name of pods that name none, without its prefix (`--session`).
    pub session_name: String,
    /// The session's life where a pod asks for none (`--session-duration`): 15 minutes to 12 hours.
    pub session_duration: Duration,
    /// Whether a `ServiceAccount`'s annotations are its pods' defaults (`--service-account-roles`).
    pub service_account_roles: bool,
    /// Adds the tags of EKS Pod Identity to every session (`--session-tags`). It makes every pod's
    /// session its own: as many STS calls as pods.
    pub session_tags: Option<ClusterTags>,
    /// The source identity of every session, if any.
    pub source_identity: Option<SourceIdentity>,
}

/// The two of the six EKS Pod Identity tags that are the same for every pod; absent ones are left
/// out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterTags {
    /// `eks-cluster-arn`.
    pub arn: Option<String>,
    /// `eks-cluster-name`.
    pub name: Option<String>,
}

/// What the decision needs to know of a pod.
#[derive(Debug, Clone, Copy)]
pub struct PodFacts<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// The `ServiceAccount` it runs as; may be empty.
    pub service_account: &'a str,
    /// It is a static pod, so that all of this is of its kubelet's making.
    pub is_static: bool,
    /// Its annotations.
    pub annotations: &'a Annotations,
    /// Those of its `ServiceAccount`, where known.
    pub service_account_annotations: Option<&'a Annotations>,
    /// The namespace's `iam.amazonaws.com/permitted`.
    pub permitted: Option<&'a str>,
}

/// What a pod may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Credentials of this session.
    Grant(RoleRequest),
    /// Nothing, although it asked.
    Refuse(Refused),
    /// It asked for nothing.
    NoRole,
}

const STATIC_POD: &str = "static pods get no role: their kubelet writes what they ask for, and could \
                          ask for any; let a Deployment or DaemonSet run it";
const KUBERNETES_NAMESPACE: &str = "kubernetes-namespace";
const KUBERNETES_SERVICE_ACCOUNT: &str = "kubernetes-service-account";
const KUBERNETES_POD_NAME: &str = "kubernetes-pod-name";
const KUBERNETES_POD_UID: &str = "kubernetes-pod-uid";
const EKS_CLUSTER_ARN: &str = "eks-cluster-arn";
const EKS_CLUSTER_NAME: &str = "eks-cluster-name";

/// Never a pod author's to set, with or without `--session-tags`: a role shared with EKS Pod
/// Identity may rely on them.
const RESERVED_TAGS: [&str; 6] = [
    EKS_CLUSTER_ARN,
    EKS_CLUSTER_NAME,
    KUBERNETES_NAMESPACE,
    KUBERNETES_SERVICE_ACCOUNT,
    KUBERNETES_POD_NAME,
    KUBERNETES_POD_UID,
];

impl Policy {
    /// Decides for one pod. `rules` remembers compiled expressions between calls.
    pub fn decide(&self, pod: PodFacts<'_>, rules: &mut Rules) -> Decision {
        match self.judge(pod, rules) {
            Ok(Some(request)) => Decision::Grant(request),
            Ok(None) => Decision::NoRole,
            Err(refused) => Decision::Refuse(refused),
        }
    }

    fn judge(&self, pod: PodFacts<'_>, rules: &mut Rules) -> Result<Option<RoleRequest>, Refused> {
        let service_account = pod
            .service_account_annotations
            .filter(|_| self.service_account_roles);
        let invalid = |error: annotations::AnnotationError| {
            Refused::new(Refusal::AnnotationInvalid, &error.to_string())
        };
        let Some(ask) = annotations::read(pod.annotations, service_account).map_err(invalid)?
        else {
            return Ok(None);
        };
        if pod.is_static {
            return Err(Refused::new(Refusal::StaticPod, STATIC_POD));
        }
        let role = self.base.resolve(&ask.role).map_err(|error| {
            invalid(annotations::at(
                annotations::ROLE,
                ask.origin,
                Problem::Role(error),
            ))
        })?;
        rules.permits(pod.namespace, pod.permitted, &role)?;
        let tags = self.tags(&ask, pod).map_err(invalid)?;
        let transitive_keys = match self.session_tags {
            Some(_) => tags
                .iter()
                .filter(|tag| RESERVED_TAGS.contains(&tag.key.as_str()))
                .map(|tag| tag.key.clone())
                .collect(),
            None => Vec::new(),
        };
        let wanted = ask.session_name.as_deref().unwrap_or(&self.session_name);
        Ok(Some(RoleRequest::new(Session {
            role,
            name: session_name(wanted),
            external_id: ask.external_id,
            tags,
            transitive_keys,
            policy_arns: ask.policy_arns,
            source_identity: self
                .source_identity
                .as_ref()
                .map(|template| template.render(pod)),
            duration: ask.duration.unwrap_or(self.session_duration),
        })))
    }

    /// The pod's own tags and, with `--session-tags`, those that say where it runs.
    fn tags(
        &self,
        ask: &RoleAsk,
        pod: PodFacts<'_>,
    ) -> Result<Vec<Tag>, annotations::AnnotationError> {
        let mut tags = ask.tags.clone();
        let origin = |key: &str| {
            let annotation = format!("{SESSION_TAG_PREFIX}{key}");
            let on = match pod.annotations.get(&annotation) {
                Some(_) => Origin::Pod,
                None => Origin::ServiceAccount,
            };
            (annotation, on)
        };
        let forged = tags.iter().find(|tag| {
            RESERVED_TAGS
                .iter()
                .any(|reserved| same_key(reserved, &tag.key))
        });
        if let Some(forged) = forged {
            let (annotation, on) = origin(&forged.key);
            return Err(annotations::at(&annotation, on, Problem::TagReserved));
        }
        if let Some(cluster) = &self.session_tags {
            tags.extend(where_it_runs(cluster, pod));
            if tags.len() > SESSION_TAGS_MAX {
                let key = ask.tags.last().map_or("", |tag| tag.key.as_str());
                let (annotation, on) = origin(key);
                return Err(annotations::at(&annotation, on, Problem::TooManyTags));
            }
            tags.sort();
        }
        Ok(tags)
    }
}

/// The tags of EKS Pod Identity, as far as they are known.
fn where_it_runs(cluster: &ClusterTags, pod: PodFacts<'_>) -> Vec<Tag> {
    [
        (EKS_CLUSTER_ARN, cluster.arn.as_deref()),
        (EKS_CLUSTER_NAME, cluster.name.as_deref()),
        (KUBERNETES_NAMESPACE, Some(pod.namespace)),
        (
            KUBERNETES_SERVICE_ACCOUNT,
            Some(pod.service_account).filter(|name| !name.is_empty()),
        ),
        (KUBERNETES_POD_NAME, Some(pod.name)),
        (KUBERNETES_POD_UID, Some(pod.uid)),
    ]
    .into_iter()
    .filter_map(|(key, value)| {
        Some(Tag {
            key: key.to_owned(),
            value: value?.to_owned(),
        })
    })
    .collect()
}

const SESSION_NAME_PREFIX: &str = "kiam-";
const SESSION_NAME_BYTES_MAX: usize = 64;
/// kiam cuts what is too long to one less than STS allows; names in `CloudTrail` stay as they were.
const SESSION_NAME_BYTES_CUT: usize = 63;

/// `kiam-` and what was asked for; every character that STS refuses becomes a dash.
fn session_name(wanted: &str) -> String {
    let full = format!("{SESSION_NAME_PREFIX}{wanted}");
    let kept = if full.len() > SESSION_NAME_BYTES_MAX {
        full.as_bytes()
            .get(..SESSION_NAME_BYTES_CUT)
            .unwrap_or_default()
    } else {
        full.as_bytes()
    };
    sanitised(&String::from_utf8_lossy(kept))
}

/// Every character outside `[A-Za-z0-9_+=,.@-]` becomes a dash.
fn sanitised(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "_+=,.@-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
