//! Makes the calls.
use std::sync::Arc;

use kiam_wire::CredentialId;

use super::schedule::Urgency;
use super::{IssueError, Issued};
use crate::policy::RoleRequest;

/// What the fetchers are told.
#[derive(Debug, Clone)]
pub enum Order {
    /// Make this call; once more for a call that has not begun changes its urgency.
    Fetch(Arc<RoleRequest>, Urgency),
    /// Nobody needs it any more. A call that has begun is finished and answered.
    Cancel(CredentialId),
}

/// How a call ended.
#[derive(Debug)]
pub struct Answer {
    /// Of which request.
    pub id: CredentialId,
    /// What came of it.
    pub outcome: Result<Issued, IssueError>,
}
