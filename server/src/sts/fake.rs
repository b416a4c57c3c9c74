//! An STS of our own making: with a latency, refusals, outages, and a record of its calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiam_wire::CredentialId;
use zeroize::Zeroizing;

use super::{IssueError, Issued, Issuer};
use crate::clock::Clock;
use crate::policy::{RoleRequest, Session};

/// Grants every role, unless told otherwise.
#[derive(Debug)]
pub struct Sts {
    clock: Clock,
    latency: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<String>,
    outstanding: HashMap<CredentialId, usize>,
    most_outstanding: usize,
    refused: HashMap<String, IssueError>,
}

impl Sts {
    /// Answers at once.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            latency: Duration::ZERO,
            state: Mutex::default(),
        }
    }

    /// Answers after this long, on tokio's clock.
    #[must_use]
    pub fn with_latency(self, latency: Duration) -> Self {
        Self { latency, ..self }
    }

    /// From now on every call for this role ARN ends so.
    pub fn refuse(&self, role: &str, error: IssueError) {
        self.state().refused.insert(role.to_owned(), error);
    }

    /// From now on every call for this role ARN is granted.
    pub fn allow(&self, role: &str) {
        self.state().refused.remove(role);
    }

    /// The role ARNs of all calls so far, in the order in which they began.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// How many calls there were at one time at most.
    pub fn most_outstanding(&self) -> usize {
        self.state().most_outstanding
    }

    /// Whether there never were two calls for one credential id at the same time.
    fn begin(&self, request: &RoleRequest) {
        let mut state = self.state();
        state.calls.push(request.role().as_str().to_owned());
        *state.outstanding.entry(request.id()).or_default() += 1;
        let outstanding = state.outstanding.values().sum();
        state.most_outstanding = state.most_outstanding.max(outstanding);
        assert!(
            state.outstanding.values().all(|count| *count == 1),
            "two calls at once for {}",
            request.role()
        );
    }

    fn end(&self, request: &RoleRequest) -> Result<(), IssueError> {
        let mut state = self.state();
        state.outstanding.remove(&request.id());
        let refused = state.refused.get(request.role().as_str());
        refused.cloned().map_or(Ok(()), Err)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issuer for Sts {
    async fn issue(&self, request: Arc<RoleRequest>) -> Result<Issued, IssueError> {
        let asked = self.clock.now();
        self.begin(&request);
        tokio::time::sleep(self.latency).await;
        self.end(&request)?;
        let Session { duration, .. } = request.session();
        Ok(Issued {
            access_key_id: "ASIAFAKE0000000000".to_owned(),
            secret_access_key: Zeroizing::new("secret".to_owned()),
            session_token: Zeroizing::new("token".to_owned()),
            expires_at: asked.wall.after(*duration),
            duration: *duration,
            asked_at: asked.monotonic,
        })
    }
}
