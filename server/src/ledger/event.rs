//! What the ledger is told, and what it wants.

use std::sync::Arc;

use kiam_wire::{CredentialId, Credentials, PodUid, Refused, UnixSeconds};

use crate::policy::RoleRequest;
use crate::sts::schedule::Urgency;
use crate::sts::{IssueError, Issued};

/// What the ledger is told.
#[derive(Debug)]
pub enum Event {
    /// The pod may have this. Repeated or changed for a known pod: the last one counts.
    Granted {
        /// The pod.
        pod: PodUid,
        /// What it may have.
        request: Arc<RoleRequest>,
    },
    /// The pod may have nothing (any more), or is gone.
    Gone {
        /// The pod.
        pod: PodUid,
    },
    /// The pod's agent holds a request of it.
    Waiting {
        /// The pod.
        pod: PodUid,
    },
    /// The pod's agent still serves it these from before this server started.
    Held {
        /// The pod.
        pod: PodUid,
        /// What its agent holds.
        id: CredentialId,
        /// Until when.
        expires_at: UnixSeconds,
    },
    /// STS answered, or did not.
    Answered {
        /// Which request.
        id: CredentialId,
        /// What came of it.
        outcome: Result<Issued, IssueError>,
    },
    /// Time has passed: due at [`Ledger::wakes_at`](super::Ledger::wakes_at).
    Tick,
}

/// What the ledger wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A call to STS.
    Fetch {
        /// The call.
        request: Arc<RoleRequest>,
        /// Its place in the queue.
        urgency: Urgency,
    },
    /// The call asked for has another place in the queue, if it has not begun. Its answer may be on the way
    /// already: then it is not made again.
    Hurry(CredentialId, Urgency),
    /// Nobody needs the answer any more.
    Cancel(CredentialId),
    /// New credentials: every pod granted their id is served them from now on.
    Publish(Arc<Credentials>),
    /// The credentials of this id must not be served any more; its pods are pending.
    Withdraw(CredentialId),
    /// STS refuses this id: its pods are refused until credentials are published, but for those
    /// whose agent still serves them something.
    Refuse(CredentialId, Refused),
    /// What this pod is to be told has changed, and nothing else of its id.
    Retell(PodUid),
}

/// What a pod is to be told of the credentials it is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// On the way.
    Pending,
    /// Here.
    Ready(Arc<Credentials>),
    /// STS refuses.
    Refused(Refused),
}
