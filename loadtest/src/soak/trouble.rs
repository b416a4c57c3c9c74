//! Every fault in turn, and what it explains.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::faults::{self, KINDS, Kind};
use crate::system::System;

/// How long a fault lasts.
const LASTS: Duration = Duration::from_secs(5);
/// Between one fault's end and the next: longer than anything takes to heal.
const REST: Duration = Duration::from_secs(25);
/// How long after its end a fault may still keep news from a node: agents come back to a server
/// within fifteen seconds.
const HEALS: Duration = Duration::from_secs(20);
/// The part of the run in which processes are ended.
const YOUNG: f64 = 0.4;

/// What goes wrong while a soak goes on.
#[derive(Debug, Default)]
pub(super) struct Trouble(Mutex<Windows>);

/// When what went wrong.
#[derive(Debug, Clone, Default)]
pub(super) struct Windows(Vec<(Kind, Instant, Instant)>);

impl Trouble {
    /// Lets everything go wrong, one after the other, until `over` or the last rest.
    pub(super) fn happen(
        &self,
        system: &System,
        length: Duration,
        over: &AtomicBool,
    ) -> anyhow::Result<()> {
        let start = clock::now();
        let young_until = start + length.mul_f64(YOUNG);
        // The last fault has healed by the end.
        let last = start + length.saturating_sub(LASTS + REST);
        let mut turns = KINDS.into_iter().cycle().map(|(_name, kind)| kind);
        loop {
            wait(clock::now() + REST, over);
            if over.load(Ordering::Relaxed) || clock::now() > last {
                return Ok(());
            }
            let Some(kind) = next(&mut turns, clock::now() <= young_until) else {
                return Ok(());
            };
            let began = clock::now();
            faults::begin(kind, system)?;
            clock::sleep_until(began + LASTS);
            faults::end(kind, system)?;
            let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            windows.push(kind, began, clock::now());
        }
    }

    /// When what went wrong.
    pub(super) fn windows(&self) -> Windows {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Whose turn it is. What ends a process is passed over when both are to grow old, and costs no rest.
fn next(turns: &mut impl Iterator<Item = Kind>, young: bool) -> Option<Kind> {
    turns
        .take(KINDS.len())
        .find(|kind| young || !ends_a_process(*kind))
}

fn wait(until: Instant, over: &AtomicBool) {
    while clock::now() < until && !over.load(Ordering::Relaxed) {
        clock::sleep_a_while();
    }
}

const fn ends_a_process(kind: Kind) -> bool {
    match kind {
        Kind::ServerKilled | Kind::ServerStopped | Kind::AgentKilled | Kind::AgentUpgraded => true,
        Kind::StsThrottled
        | Kind::StsDown
        | Kind::StsHanging
        | Kind::ApiDown
        | Kind::WatchesExpired
        | Kind::CertificatesRotated
        | Kind::AuthorityRotated
        | Kind::TokenKeysRotated => false,
    }
}

/// Whether it may keep a new pod's news, or its first credentials, from its node.
const fn delays(kind: Kind) -> bool {
    match kind {
        Kind::ServerKilled
        | Kind::ServerStopped
        | Kind::AgentKilled
        | Kind::StsThrottled
        | Kind::StsDown
        | Kind::StsHanging
        | Kind::ApiDown
        | Kind::WatchesExpired => true,
        Kind::AgentUpgraded
        | Kind::CertificatesRotated
        | Kind::AuthorityRotated
        | Kind::TokenKeysRotated => false,
    }
}

impl Windows {
    /// Adds one.
    pub(super) fn push(&mut self, kind: Kind, began: Instant, ended: Instant) {
        self.0.push((kind, began, ended));
    }

    /// Whether a pod that had credentials may have gone unanswered some time from `from` to `until`:
    /// only while no agent was there to answer.
    pub(super) fn explain_silence(&self, from: Instant, until: Instant) -> bool {
        self.0.iter().any(|(kind, began, ended)| {
            *kind == Kind::AgentKilled && *began <= until && from <= *ended
        })
    }

    /// Whether the first dialogue of a pod that became visible at `visible` may have failed.
    pub(super) fn explain_delay(&self, visible: Instant) -> bool {
        // It waits a second, so the fault may begin that much later.
        let asked_until = visible + Duration::from_secs(2);
        self.0.iter().any(|(kind, began, ended)| {
            delays(*kind) && *began <= asked_until && visible <= *ended + HEALS
        })
    }

    /// How often each fault happened.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for (kind, ..) in &self.0 {
            *counts.entry(kind.name()).or_default() += 1;
        }
        counts
    }

    /// The faults that did not happen.
    pub(super) fn left_out(&self) -> Vec<&'static str> {
        let happened = self.counts();
        let names = KINDS.into_iter().map(|(name, _kind)| name);
        names.filter(|name| !happened.contains_key(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_over_costs_no_rest() {
        let mut turns = KINDS.into_iter().cycle().map(|(_name, kind)| kind);
        let happened = [true, false, false].map(|young| next(&mut turns, young));
        let expected = [Kind::ServerKilled, Kind::StsThrottled, Kind::StsDown];
        assert_eq!(happened, expected.map(Some));
        let again: Vec<_> = (0..KINDS.len()).map(|_| next(&mut turns, false)).collect();
        assert!(!again.contains(&Some(Kind::AgentUpgraded)) && !again.contains(&None));
    }

    #[test]
    fn faults_that_did_not_happen_are_known() {
        let mut windows = Windows::default();
        windows.push(Kind::StsDown, clock::now(), clock::now());
        let left_out = windows.left_out();
        assert_eq!(left_out.len(), KINDS.len() - 1);
        assert!(!left_out.contains(&"sts-down"));
    }
}
