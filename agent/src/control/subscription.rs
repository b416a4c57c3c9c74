//! Where this agent stands with the server, as a state machine that decides and touches nothing.
//!
//! `Connecting → Syncing → Following`, and back to `Connecting` whatever happens. The snapshot being
//! served is nobody's state here: it is never cleared on the way back.

use std::time::Duration;

use kiam_wire::{Revision, Update};

/// A stream that lived this long had a working server at its other end: what ends it is not held
/// against the next attempt.
const STABLE: Duration = Duration::from_secs(5);

/// Where the agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscription {
    /// No stream. `failures` were seen since one last worked.
    Connecting {
        /// Attempts that failed in a row.
        failures: u32,
        /// Whether to ask for everything, because what the server said last did not fit.
        afresh: bool,
    },
    /// A stream is open and Hello was said; nothing has come yet.
    Syncing {
        /// As before.
        failures: u32,
        /// The revision Hello named: the only one a first Delta may start from.
        named: Option<Revision>,
    },
    /// Updates are applied as they come.
    Following {
        /// As before, until the stream has proven stable.
        failures: u32,
        /// What the agent holds.
        revision: Revision,
    },
}

/// What to do with an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Apply it.
    Apply,
    /// It does not start where this agent is: close the stream and ask for everything.
    Gap,
}

/// How a stream, or the attempt to open one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The server closed it, as it does to spread agents over replicas.
    Closed,
    /// It broke, or could not be opened.
    Failed,
    /// The server said what does not fit what this agent holds, or what cannot be read.
    OutOfStep,
}

impl Subscription {
    /// Before the first attempt.
    pub const fn new() -> Self {
        Self::Connecting {
            failures: 0,
            afresh: false,
        }
    }

    /// What Hello names, given what the agent holds.
    pub const fn names(self, holds: Option<Revision>) -> Option<Revision> {
        match self {
            Self::Connecting { afresh: true, .. } => None,
            Self::Connecting { .. } | Self::Syncing { .. } | Self::Following { .. } => holds,
        }
    }

    /// A stream was opened, and Hello named `named`.
    pub const fn opened(&mut self, named: Option<Revision>) {
        *self = Self::Syncing {
            failures: self.failures(),
            named,
        };
    }

    /// The server said something. [`Subscription::applied`] follows once it was done.
    pub fn heard(self, update: &Update) -> Verdict {
        let held = match self {
            Self::Connecting { .. } => None,
            Self::Syncing { named, .. } => named,
            Self::Following { revision, .. } => Some(revision),
        };
        match update {
            Update::Full(_) => Verdict::Apply,
            Update::Delta(delta) if Some(delta.from) == held => Verdict::Apply,
            Update::Delta(_) => Verdict::Gap,
        }
    }

    /// An update was applied and led to `revision`.
    pub const fn applied(&mut self, revision: Revision) {
        *self = Self::Following {
            failures: self.failures(),
            revision,
        };
    }

    /// The stream, or the attempt to open one, ended `lived` after it was opened. Returns how many
    /// earlier failures to hold against the next attempt.
    pub fn ended(&mut self, end: End, lived: Duration) -> u32 {
        let afresh = match (end, *self) {
            (End::OutOfStep, _) => true,
            // What did not fit once is asked for until it has come.
            (_, Self::Connecting { afresh, .. }) => afresh,
            (_, Self::Syncing { named, .. }) => named.is_none(),
            (_, Self::Following { .. }) => false,
        };
        let worked = matches!(self, Self::Following { .. });
        if worked && (end == End::Closed || lived >= STABLE) {
            *self = Self::Connecting {
                failures: 0,
                afresh,
            };
            return 0;
        }
        let failures_before = self.failures();
        *self = Self::Connecting {
            failures: failures_before.saturating_add(1),
            afresh,
        };
        failures_before
    }

    const fn failures(self) -> u32 {
        match self {
            Self::Connecting { failures, .. }
            | Self::Syncing { failures, .. }
            | Self::Following { failures, .. } => failures,
        }
    }
}

impl Default for Subscription {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiam_wire::{Delta, Full};

    const QUICK: Duration = Duration::from_millis(1);
    const ONE: Revision = revision(1);
    const TWO: Revision = revision(2);

    const fn revision(number: u64) -> Revision {
        Revision { epoch: 7, number }
    }

    fn full(revision: Revision) -> Update {
        Update::Full(Full {
            revision,
            pods: vec![],
            credentials: vec![],
            keys: None,
        })
    }

    fn delta(from: Revision, to: Revision) -> Update {
        Update::Delta(Delta {
            from,
            to,
            pods: vec![],
            removed_pods: vec![],
            credentials: vec![],
            keys: None,
        })
    }

    fn following(revision: Revision) -> Subscription {
        Subscription::Following {
            failures: 0,
            revision,
        }
    }

    #[test]
    fn a_full_is_always_taken() {
        for at in [
            Subscription::new(),
            Subscription::Syncing {
                failures: 3,
                named: None,
            },
            following(TWO),
        ] {
            assert_eq!(at.heard(&full(ONE)), Verdict::Apply);
        }
    }

    #[test]
    fn a_delta_must_start_at_what_is_held() {
        let check = |at: Subscription, from, expected| {
            assert_eq!(at.heard(&delta(from, TWO)), expected, "{at:?}");
        };
        let syncing = |named| Subscription::Syncing { failures: 0, named };
        check(syncing(Some(ONE)), ONE, Verdict::Apply);
        check(syncing(Some(ONE)), TWO, Verdict::Gap);
        check(syncing(None), ONE, Verdict::Gap);
        check(following(ONE), ONE, Verdict::Apply);
        check(following(TWO), ONE, Verdict::Gap);
    }

    #[test]
    fn after_a_gap_nothing_is_named_until_something_was_applied() {
        let mut subscription = following(ONE);
        subscription.ended(End::OutOfStep, QUICK);
        assert_eq!(subscription.names(Some(ONE)), None);
        // The attempt fails, and so does the next one after it was opened.
        subscription.ended(End::Failed, QUICK);
        assert_eq!(subscription.names(Some(ONE)), None);
        subscription.opened(None);
        subscription.ended(End::Closed, QUICK);
        assert_eq!(subscription.names(Some(ONE)), None);
        subscription.opened(None);
        subscription.applied(TWO);
        subscription.ended(End::Closed, QUICK);
        assert_eq!(subscription.names(Some(TWO)), Some(TWO));
    }

    #[test]
    fn a_server_that_closes_a_working_stream_did_not_fail() {
        let mut subscription = following(ONE);
        assert_eq!(subscription.ended(End::Closed, QUICK), 0);
        assert_eq!(subscription, Subscription::new());
    }

    #[test]
    fn a_stable_stream_that_breaks_is_not_held_against_the_next() {
        let mut subscription = Subscription::Following {
            failures: 5,
            revision: ONE,
        };
        assert_eq!(subscription.ended(End::Failed, STABLE), 0);
        assert_eq!(subscription, Subscription::new());
    }

    #[test]
    fn failures_add_up_until_a_stream_has_proven_itself() {
        let mut subscription = Subscription::new();
        for expected in 0..4 {
            assert_eq!(subscription.ended(End::Failed, QUICK), expected);
        }
        // A server that sends one update and dies is no better than one that is not there.
        subscription.opened(None);
        subscription.applied(ONE);
        assert_eq!(subscription.ended(End::Failed, QUICK), 4);
        // Nor is one that closes streams before it says anything.
        subscription.opened(Some(ONE));
        assert_eq!(subscription.ended(End::Closed, STABLE), 5);
    }
}
