//! Whether what this server knows of the cluster may be old.
//!
//! A server whose watches fail goes on to serve what it knew, which is right for the agents it has: what runs
//! goes on running. An agent that comes from a replica which knows more must not be taken back in time by it,
//! though. So who lets agents in asks here, and sends those on who may find a better one. It is not a matter
//! of readiness: when the Kubernetes API is away every replica is behind, and a Service without any ready one
//! has no addresses at all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Moment;
use crate::nodes::Kind;

/// What an API server that restarts, or is replaced, takes at most. Until then a watch that fails is behind by
/// no more than others may be.
pub const BEHIND_AFTER: Duration = Duration::from_secs(30);
/// A watch that was opened and has not failed again for so long goes well, even if nothing happens in it.
const SETTLED: Duration = Duration::from_secs(5);

/// How the watches go; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Freshness(Arc<Mutex<HashMap<Kind, Trouble>>>);

/// A watch that has failed and not gone well since.
#[derive(Debug)]
struct Trouble {
    since: Moment,
    /// When the API server opened it anew.
    opened_at: Option<Moment>,
    /// A list is under way, and its pages are no watch: it may break off.
    listing: bool,
}

impl Trouble {
    fn is_over(&self, now: Moment) -> bool {
        self.opened_at.is_some_and(|at| now.since(at) >= SETTLED)
    }
}

impl Freshness {
    /// A watch failed.
    pub fn failed(&self, kind: Kind, now: Moment) {
        let mut troubles = self.troubles();
        let trouble = troubles.entry(kind).or_insert(Trouble {
            since: now,
            opened_at: None,
            listing: false,
        });
        if trouble.is_over(now) {
            trouble.since = now;
        }
        trouble.opened_at = None;
    }

    /// A list begins.
    pub fn lists(&self, kind: Kind) {
        if let Some(trouble) = self.troubles().get_mut(&kind) {
            (trouble.listing, trouble.opened_at) = (true, None);
        }
    }

    /// The API server has answered, and not with an error.
    pub fn answered(&self, kind: Kind, now: Moment) {
        if let Some(trouble) = self.troubles().get_mut(&kind)
            && !trouble.listing
        {
            trouble.opened_at.get_or_insert(now);
        }
    }

    /// A list is complete, or a watch has said something.
    pub fn goes_well(&self, kind: Kind) {
        self.troubles().remove(&kind);
    }

    /// Since when something may have happened in the cluster of which this server does not know; `None` while
    /// that is not for long.
    pub fn behind_since(&self, now: Moment) -> Option<Moment> {
        let troubles = self.troubles();
        let lasting = troubles.values().filter(|trouble| !trouble.is_over(now));
        let since = lasting.map(|trouble| trouble.since).min()?;
        (now.since(since) >= BEHIND_AFTER).then_some(since)
    }

    fn troubles(&self) -> MutexGuard<'_, HashMap<Kind, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds))
    }

    #[test]
    fn a_watch_that_fails_for_long_leaves_the_server_behind() {
        let freshness = Freshness::default();
        assert_eq!(freshness.behind_since(at(1_000)), None);
        freshness.failed(Kind::Pods, at(1_000));
        freshness.failed(Kind::Pods, at(1_020));
        freshness.failed(Kind::Namespaces, at(1_025));
        assert_eq!(freshness.behind_since(at(1_029)), None);
        assert_eq!(freshness.behind_since(at(1_030)), Some(at(1_000)));
        freshness.goes_well(Kind::Pods);
        assert_eq!(freshness.behind_since(at(1_030)), None);
        assert_eq!(freshness.behind_since(at(1_055)), Some(at(1_025)));
        freshness.goes_well(Kind::Namespaces);
        assert_eq!(freshness.behind_since(at(9_000)), None);
    }

    #[test]
    fn a_watch_that_is_open_and_quiet_goes_well() {
        let freshness = Freshness::default();
        freshness.failed(Kind::Namespaces, at(0));
        freshness.answered(Kind::Namespaces, at(1));
        assert_eq!(freshness.behind_since(at(600)), None);
        // It fails again, which is another trouble.
        freshness.failed(Kind::Namespaces, at(600));
        assert_eq!(freshness.behind_since(at(629)), None);
        assert_eq!(freshness.behind_since(at(630)), Some(at(600)));
    }

    #[test]
    fn a_watch_that_is_opened_and_fails_at_once_does_not() {
        let freshness = Freshness::default();
        for second in (0..60).step_by(3) {
            freshness.failed(Kind::Pods, at(second));
            freshness.answered(Kind::Pods, at(second + 1));
        }
        assert_eq!(freshness.behind_since(at(60)), Some(at(0)));
    }

    #[test]
    fn the_pages_of_a_list_are_no_watch() {
        let freshness = Freshness::default();
        freshness.failed(Kind::Pods, at(0));
        freshness.lists(Kind::Pods);
        freshness.answered(Kind::Pods, at(1));
        assert_eq!(freshness.behind_since(at(40)), Some(at(0)));
        freshness.goes_well(Kind::Pods);
        assert_eq!(freshness.behind_since(at(40)), None);
    }
}
