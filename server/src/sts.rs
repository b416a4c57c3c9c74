//! Where credentials come from.
//!
//! [`Issuer`] is the seam: AWS behind it in production ([`aws`]), a fake in tests. [`schedule`]
//! decides which call is made when (pure), [`fetchers`] makes them.

mod answered;
pub mod aws;
pub(crate) mod causes;
#[cfg(test)]
pub mod fake;
pub mod fetchers;
pub mod metrics;
mod refusal;
pub mod schedule;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use kiam_wire::UnixSeconds;
use zeroize::Zeroizing;

use crate::clock::Moment;
use crate::policy::RoleRequest;

/// What STS answered. The two secrets are wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// Not a secret.
    pub access_key_id: String,
    /// A secret.
    pub secret_access_key: Zeroizing<String>,
    /// A secret.
    pub session_token: Zeroizing<String>,
    /// As STS said, fractions dropped.
    pub expires_at: UnixSeconds,
    /// The life that was asked for in the end: less than the request's where role chaining caps it.
    pub duration: std::time::Duration,
    /// When the call began: from here the monotonic life is counted.
    pub asked_at: Moment,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("access_key_id", &self.access_key_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Why STS gave nothing, split by what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// Too many calls; says nothing about the role.
    #[error("STS is throttling this account: {0}")]
    Throttled(String),
    /// The role, or our right to assume it. Someone must change IAM.
    #[error("{0}")]
    Denied(String),
    /// The request itself. Someone must change an annotation or the role.
    #[error("{0}")]
    Invalid(String),
    /// The server's own credentials; says nothing about the role.
    #[error("the kiam server's own AWS credentials cannot be used: {0}")]
    OwnCredentials(String),
    /// No answer, or none that can be used; says nothing about the role.
    #[error("STS gave no usable answer: {0}")]
    Unreachable(String),
}

/// When to ask again after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// It may be over any moment.
    Soon,
    /// The rate has been lowered; wait for one's turn.
    InTurn,
    /// Only when someone has changed something.
    Rarely,
}

impl IssueError {
    /// Every word of [`IssueError::as_str`], for metrics that start at zero.
    pub const REASONS: [&str; 5] = [
        "throttled",
        "denied",
        "invalid",
        "own_credentials",
        "unreachable",
    ];

    /// When to ask again.
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Throttled(_) => Retry::InTurn,
            Self::Denied(_) | Self::Invalid(_) => Retry::Rarely,
            Self::OwnCredentials(_) | Self::Unreachable(_) => Retry::Soon,
        }
    }

    /// The word used in metric labels and logs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Throttled(_) => "throttled",
            Self::Denied(_) => "denied",
            Self::Invalid(_) => "invalid",
            Self::OwnCredentials(_) => "own_credentials",
            Self::Unreachable(_) => "unreachable",
        }
    }
}

/// Someone who can open role sessions.
pub trait Issuer: Send + Sync + 'static {
    /// One attempt, bounded in time.
    fn issue(
        &self,
        request: Arc<RoleRequest>,
    ) -> impl Future<Output = Result<Issued, IssueError>> + Send;
}
