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

    /// How many calls asked again for what had been issued less than `share` of its life before.
    pub(super) fn early(&self, share: f64) -> u64 {
        let mut issued = BTreeMap::new();
        let mut early = 0;
        for call in &self.calls {
            let asked_for = (
                &call.role_arn,
                &call.session_name,
                &call.external_id,
                &call.tags,
            );
            if let Some(due) = issued.get(&asked_for)
                && call.after < *due
            {
                early += 1;
            }
            if let (Outcome::Issued, Some(life)) = (&call.outcome, call.duration) {
                issued.insert(asked_for, call.after + life.mul_f64(share));
            }
        }
        early
    }

    pub(super) const fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(after_s: u64, role: &str, outcome: Outcome) -> Call {
        Call {
            after: Duration::from_secs(after_s),
            role_arn: role.to_owned(),
            session_name: String::new(),
            external_id: None,
            source_identity: None,
            duration: Some(Duration::from_secs(100)),
            tags: vec![],
            transitive_tag_keys: vec![],
            policy: None,
            policy_arns: vec![],
            outcome,
        }
    }

    #[test]
    fn asking_again_too_soon_is_counted() {
        let mut record = Record::new(10);
        let mut early_after = |after_s, role, outcome| {
            record.add(call(after_s, role, outcome));
            record.early(0.4)
        };
        let refused = || Outcome::Refused("Throttling".to_owned());
        assert_eq!(early_after(0, "a", Outcome::Issued), 0);
        assert_eq!(early_after(1, "b", refused()), 0);
        assert_eq!(early_after(2, "b", Outcome::Issued), 0);
        assert_eq!(early_after(39, "a", Outcome::Issued), 1);
        assert_eq!(early_after(79, "a", Outcome::Issued), 1);
        assert_eq!(early_after(80, "a", refused()), 2);
    }
}
