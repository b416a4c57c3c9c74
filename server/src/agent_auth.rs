//! Finds out which node an agent is on.
//!
//! What an agent says of itself counts for nothing: a node is what a certificate signed by the
//! operator's authority names, or what the API server says of the agent's own token. So a stolen
//! identity yields the pods of one node. `shared-certificate`, kiam's model, is the exception and
//! says so: there any holder of a certificate may name any node.

mod certificate;
mod token;
mod turns;

use std::fmt;

use kiam_wire::{PodUid, UnixSeconds};
use tonic::{Extensions, Status, metadata::MetadataMap};

pub use token::{Account, Placement, TokenReviewer, Tokens};

use crate::clock::Clock;
use crate::metrics::AuthOutcome;
use crate::tls::Visit;

/// How agents prove which node they are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// By their projected `ServiceAccount` token, which the API server reviews.
    Token,
    /// By a certificate of their own that names the node.
    Certificate,
    /// By any certificate of the authority; the node is whichever they claim. Weaker: one stolen
    /// certificate yields every pod's credentials.
    SharedCertificate,
}

/// Who an agent was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    nodes: Who,
    valid_until: Option<UnixSeconds>,
    pod: Option<PodUid>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Nodes(Vec<String>),
    Anyone,
}

impl Identity {
    fn of_nodes(nodes: Vec<String>, valid_until: Option<UnixSeconds>) -> Self {
        Self {
            nodes: Who::Nodes(nodes),
            valid_until,
            pod: None,
        }
    }

    /// What it showed is good for no longer than this pod is there.
    fn bound_to(self, pod: Option<PodUid>) -> Self {
        Self { pod, ..self }
    }

    const fn anyone(valid_until: Option<UnixSeconds>) -> Self {
        Self {
            nodes: Who::Anyone,
            valid_until,
            pod: None,
        }
    }

    /// Whether this may be the agent of `node`.
    pub fn may_be(&self, node: &str) -> bool {
        match &self.nodes {
            Who::Nodes(nodes) => nodes.iter().any(|one| one == node),
            Who::Anyone => true,
        }
    }

    /// The pod with which what it showed ends.
    pub const fn pod(&self) -> Option<&PodUid> {
        self.pod.as_ref()
    }

    /// When what it showed runs out.
    pub const fn valid_until(&self) -> Option<UnixSeconds> {
        self.valid_until
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.nodes {
            Who::Nodes(nodes) => write!(f, "of node {}", nodes.join(", ")),
            Who::Anyone => f.write_str("of any node"),
        }
    }
}

/// Why an agent was turned away. Says nothing that helps to guess.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It showed nothing.
    #[error("{0}")]
    Missing(&'static str),
    /// What it showed is not valid, or not for us.
    #[error("{0}")]
    Invalid(String),
    /// It is some other workload.
    #[error("{0} is not the agents' ServiceAccount; see --agent-service-account")]
    NotAnAgent(String),
    /// The API server could not be asked.
    #[error("the token cannot be reviewed at the moment: {0}")]
    Unavailable(String),
}

impl Refusal {
    /// The word for it in metrics.
    pub const fn outcome(&self) -> AuthOutcome {
        match self {
            Self::Missing(_) => AuthOutcome::Missing,
            Self::Invalid(_) => AuthOutcome::Invalid,
            Self::NotAnAgent(_) => AuthOutcome::NotAnAgent,
            Self::Unavailable(_) => AuthOutcome::Unavailable,
        }
    }
}

impl From<&Refusal> for Status {
    fn from(refusal: &Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Missing(_) | Refusal::Invalid(_) => Self::unauthenticated(text),
            Refusal::NotAnAgent(_) => Self::permission_denied(text),
            Refusal::Unavailable(_) => Self::unavailable(text),
        }
    }
}

/// Lets agents in.
#[derive(Debug)]
pub enum Gate {
    /// By token.
    Token(Box<Tokens>),
    /// By certificate.
    Certificate(Clock),
    /// By any certificate.
    SharedCertificate(Clock),
}

impl Gate {
    /// Finds out who calls.
    pub async fn identify(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Identity, Refusal> {
        match self {
            Self::Token(tokens) => {
                let from = extensions.get::<Visit>().and_then(Visit::address);
                tokens.identify(bearer(metadata)?, from).await
            }
            Self::Certificate(clock) => certificate::of_node(&leaf(extensions)?, clock.now().wall),
            Self::SharedCertificate(clock) => {
                certificate::shared(&leaf(extensions)?, clock.now().wall)
            }
        }
    }
}

/// The client's certificate; the handshake has verified it against the authority.
fn leaf(extensions: &Extensions) -> Result<Vec<u8>, Refusal> {
    let leaf = extensions.get::<Visit>().and_then(Visit::certificate);
    leaf.ok_or(Refusal::Missing("no client certificate was shown"))
}

/// Whether the caller showed a certificate that the handshake accepted.
pub fn has_certificate(extensions: &Extensions) -> bool {
    leaf(extensions).is_ok()
}

fn bearer(metadata: &MetadataMap) -> Result<&str, Refusal> {
    let header = metadata
        .get("authorization")
        .ok_or(Refusal::Missing("no token was shown"))?;
    header
        .to_str()
        .ok()
        .and_then(|header| header.strip_prefix("Bearer "))
        .map(str::trim)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| Refusal::Invalid("the authorization is not a bearer token".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_of_its_nodes_and_no_other() {
        let one = Identity::of_nodes(vec!["a".into()], None);
        assert!(one.may_be("a"));
        assert!(!one.may_be("b") && !one.may_be("") && !one.may_be("A"));
        assert!(Identity::anyone(None).may_be("b"));
        assert_eq!(one.to_string(), "of node a");
    }

    #[test]
    fn only_a_bearer_token_is_one() {
        let mut metadata = MetadataMap::new();
        assert!(matches!(bearer(&metadata), Err(Refusal::Missing(_))));
        metadata.insert("authorization", "Basic x".parse().unwrap());
        assert!(matches!(bearer(&metadata), Err(Refusal::Invalid(_))));
        metadata.insert("authorization", "Bearer  ".parse().unwrap());
        assert!(matches!(bearer(&metadata), Err(Refusal::Invalid(_))));
        metadata.insert("authorization", "Bearer abc".parse().unwrap());
        assert_eq!(bearer(&metadata), Ok("abc"));
    }
}
