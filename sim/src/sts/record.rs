//! What the service was asked, and what it said: one entry per `AssumeRole`, up to a bound, and
//! counts by role that go on.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How an `AssumeRole` ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Credentials were issued.
    Issued,
    /// It was refused with this error code, for instance `AccessDenied`.
    Refused(String),
}

/// One `AssumeRole`, as it was asked: the values are the caller's, checked or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Time since the service started.
    pub after: Duration,
    /// `RoleArn`.
    pub role_arn: String,
    /// `RoleSessionName`.
    pub session_name: String,
    /// `ExternalId`.
    pub external_id: Option<String>,
    /// `SourceIdentity`.
    pub source_identity: Option<String>,
    /// `DurationSeconds`, if it was given.
    pub duration: Option<Duration>,
    /// Session tags, in the order given.
    pub tags: Vec<(String, String)>,
    /// `TransitiveTagKeys`.
    pub transitive_tag_keys: Vec<String>,
    /// The inline session policy.
    pub policy: Option<String>,
    /// Managed session policies.
    pub policy_arns: Vec<String>,
    /// How it ended.
    pub outcome: Outcome,
}

#[derive(Debug)]
pub(super) struct Record {
    calls: VecDeque<Call>,
    calls_max: usize,
    by_role: BTreeMap<String, u64>,
    total: u64,
}

impl Record {
    pub(super) const fn new(calls_max: usize) -> Self {
        Self {
            calls: VecDeque::new(),
            calls_max,
            by_role: BTreeMap::new(),
            total: 0,
        }
    }

    pub(super) fn add(&mut self, call: Call) {
        self.total += 1;
        *self.by_role.entry(call.role_arn.clone()).or_default() += 1;
        if self.calls.len() >= self.calls_max {
            self.calls.pop_front();
        }
        if self.calls_max > 0 {
            self.calls.push_back(call);
        }
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.iter().cloned().collect()
    }

    pub(super) fn count(&self, role_arn: &str) -> u64 {
        self.by_role.get(role_arn).copied().unwrap_or_default()
    }

    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.by_role.clone()
    }

    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.calls_max);
    }
}
