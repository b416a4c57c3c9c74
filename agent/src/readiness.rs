//! Whether the node may be given pods, as guards that say why not.
//!
//! Each part that is not ready yet holds a [`NotYet`]; the agent is ready when none is left. A part
//! may take a new one later, for example when interception is found removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Why the agent is not ready. Also the words of `/readyz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The workers have not been started.
    Starting,
    /// Neither a server nor an earlier agent has said what to serve.
    NoSnapshot,
    /// Pods' requests are not known to reach this agent.
    NotIntercepting,
    /// Another agent has the ports as well, and comes to answer in this one's place.
    Succeeded,
    /// The agent was told to stop.
    Draining,
}

impl Reason {
    /// All of them, in the order a start goes through.
    pub const ALL: [Self; 5] = [
        Self::Starting,
        Self::NoSnapshot,
        Self::NotIntercepting,
        Self::Succeeded,
        Self::Draining,
    ];

    /// What an operator reads, with where to look next.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Starting => "workers are being started",
            Self::NoSnapshot => {
                "no snapshot yet: no server has been reached and none was handed over; see the log for why"
            }
            Self::NotIntercepting => {
                "interception is not verified: pods' requests may not reach this agent"
            }
            Self::Succeeded => {
                "another agent takes over; this one goes on until that one has something to answer with"
            }
            Self::Draining => "the agent is stopping",
        }
    }

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::NoSnapshot => "no_snapshot",
            Self::NotIntercepting => "not_intercepting",
            Self::Succeeded => "succeeded",
            Self::Draining => "draining",
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Starting => 0,
            Self::NoSnapshot => 1,
            Self::NotIntercepting => 2,
            Self::Succeeded => 3,
            Self::Draining => 4,
        }
    }
}

/// Whether a stream with a server is open, over which something has been said.
#[derive(Debug, Clone, Default)]
pub struct Following(Arc<AtomicBool>);

impl Following {
    /// It is, or no longer.
    pub fn set(&self, following: bool) {
        self.0.store(following, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is asked whether the agent is ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<[AtomicUsize; Reason::ALL.len()]>);

/// While this lives, the node is not ready.
#[derive(Debug)]
#[must_use = "dropping it declares this part ready"]
pub struct NotYet {
    readiness: Readiness,
    reason: Reason,
}

impl Readiness {
    /// Ready, until someone says otherwise.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on the agent is not ready, for `reason`.
    pub fn not_yet(&self, reason: Reason) -> NotYet {
        self.count(reason).fetch_add(1, Ordering::Relaxed);
        NotYet {
            readiness: self.clone(),
            reason,
        }
    }

    /// What is missing; empty when ready.
    pub fn missing(&self) -> Vec<Reason> {
        Reason::ALL
            .into_iter()
            .filter(|reason| self.count(*reason).load(Ordering::Relaxed) > 0)
            .collect()
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the array has a place for each reason, which the test below checks"
    )]
    fn count(&self, reason: Reason) -> &AtomicUsize {
        &self.0[reason.index()]
    }
}

impl Drop for NotYet {
    fn drop(&mut self) {
        self.readiness
            .count(self.reason)
            .fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nobody_objects() {
        let readiness = Readiness::new();
        assert_eq!(readiness.missing(), []);
        let snapshot = readiness.not_yet(Reason::NoSnapshot);
        let again = readiness.not_yet(Reason::NoSnapshot);
        let draining = readiness.not_yet(Reason::Draining);
        drop(snapshot);
        assert_eq!(readiness.missing(), [Reason::NoSnapshot, Reason::Draining]);
        drop((again, draining));
        assert_eq!(readiness.missing(), []);
    }

    #[test]
    fn every_reason_has_a_place_of_its_own() {
        let places = Reason::ALL.map(Reason::index);
        assert_eq!(places, [0, 1, 2, 3, 4]);
    }
}
