//! What the ledger says of itself, to `why` and to whoever scrapes.

use kiam_wire::{CredentialId, UnixSeconds};

use super::entry::State;
use super::{Ledger, Standing};
use crate::clock::Moment;

/// One credential id, as `why` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// What its pods are told.
    pub standing: Standing,
    /// How many pods are granted it.
    pub pods: usize,
    /// A call is queued or being made.
    pub is_outstanding: bool,
    /// When the next call is due, if none is outstanding.
    pub call_at: Option<Moment>,
    /// Errors in a row.
    pub failures: u32,
    /// The last of them.
    pub last_error: Option<String>,
}

/// Sums over all credential ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Ids with pods.
    pub wanted: usize,
    /// Of those, with valid credentials in hand.
    pub held: usize,
    /// Of those, refused by STS with nothing in hand.
    pub refused: usize,
    /// Ids kept for pods that may come back.
    pub orphans: usize,
    /// Calls queued or being made.
    pub outstanding: usize,
    /// Wanted ids whose last call failed.
    pub failing: usize,
    /// The soonest end of credentials that pods are served.
    pub soonest_expiry: Option<UnixSeconds>,
}

impl Ledger {
    /// What is known of one id.
    pub fn account(&self, id: &CredentialId) -> Option<Account> {
        let entry = self.entries.get(id)?;
        let call_at = match &entry.state {
            _ if entry.orphaned_at.is_some() => None,
            State::Covered { call_at }
            | State::BackingOff { call_at }
            | State::Holding { call_at, .. } => Some(*call_at),
            State::Fetching | State::Renewing { .. } => None,
        };
        Some(Account {
            standing: entry.standing(),
            pods: entry.pods.len(),
            is_outstanding: entry.is_outstanding(),
            call_at,
            failures: entry.failures,
            last_error: entry.error.as_ref().map(ToString::to_string),
        })
    }

    /// Sums over all ids; walks them all, so once a scrape.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for entry in self.entries.values() {
            if entry.orphaned_at.is_some() {
                totals.orphans += 1;
                continue;
            }
            totals.wanted += 1;
            totals.outstanding += usize::from(entry.is_outstanding());
            totals.failing += usize::from(entry.failures > 0);
            if let Some(held) = entry.held() {
                totals.held += 1;
                let end = held.credentials.expires_at();
                totals.soonest_expiry = Some(
                    totals
                        .soonest_expiry
                        .map_or(end, |soonest| soonest.min(end)),
                );
            } else if entry.refusal.is_some() {
                totals.refused += 1;
            }
        }
        totals
    }
}
