//! The circuit of one role: keeps a role that refuses everyone from asking too often.
//!
//! Pure. One role may stand behind thousands of credential ids, when sessions carry tags of their
//! pod. When its trust policy is wrong every one of them is refused, so once a few have been, the
//! role's calls are spaced out. They are not stopped: the ids differ, and the next one may carry
//! the external id or tag that was missing. The first success opens the way for the others. Slots
//! of those that leave before their turn are given to others, or the pods of a roll-out would keep
//! a healed role from being asked long after they are gone.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use kiam_wire::CredentialId;

use crate::clock::Moment;

/// Refusals in a row, of whichever ids, after which the role's calls are spaced.
const OPENS_AFTER: u32 = 3;
/// Between two calls of such a role.
const SPACING: Duration = Duration::from_secs(1);

/// What is known of a role across its ids.
#[derive(Debug, Default)]
pub(super) struct Role {
    /// Every id in the ledger that asks for this role.
    pub(super) ids: HashSet<CredentialId>,
    refusals: u32,
    /// After all slots that were given.
    next_slot: Moment,
    /// Slots before that one that were given back.
    free: BTreeSet<Moment>,
}

impl Role {
    /// STS refused one of its ids.
    pub(super) const fn refused(&mut self) {
        self.refusals = self.refusals.saturating_add(1);
    }

    /// STS granted one of its ids. Returns whether the circuit had been open, and so others may
    /// have been waiting without need.
    pub(super) fn granted(&mut self) -> bool {
        let was_open = self.is_open();
        self.refusals = 0;
        self.next_slot = Moment::ORIGIN;
        self.free = BTreeSet::new();
        was_open
    }

    /// When a call that is due now may be made. Slots are only given for what is due, or a retry
    /// in five minutes would hold up a first try now.
    pub(super) fn slot(&mut self, now: Moment) -> Moment {
        if !self.is_open() {
            return now;
        }
        // Those that have passed are nobody's any more.
        self.free = self.free.split_off(&now);
        self.free.pop_first().unwrap_or_else(|| {
            let slot = now.max(self.next_slot);
            self.next_slot = slot.after(SPACING);
            slot
        })
    }

    /// Nobody will make a call in this slot, which was given for a time to come.
    pub(super) fn give_back(&mut self, slot: Moment) {
        // Of a circuit that has closed since, otherwise.
        if slot < self.next_slot {
            self.free.insert(slot);
        }
        while let Some(last) = self.free.last().copied()
            && last.after(SPACING) == self.next_slot
        {
            self.free.pop_last();
            self.next_slot = last;
        }
    }

    const fn is_open(&self) -> bool {
        self.refusals >= OPENS_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_spaced_once_the_circuit_is_open_and_not_after_a_success() {
        let at = |seconds| Moment::new(Duration::from_secs(seconds));
        let mut role = Role::default();
        for _ in 0..OPENS_AFTER {
            assert_eq!((role.slot(at(5)), role.slot(at(5))), (at(5), at(5)));
            role.refused();
        }
        assert_eq!((role.slot(at(5)), role.slot(at(5))), (at(5), at(6)));
        assert_eq!(role.slot(at(60)), at(60));
        assert!(role.granted());
        assert!(!role.granted());
        assert_eq!((role.slot(at(5)), role.slot(at(5))), (at(5), at(5)));
    }

    #[test]
    fn slots_that_were_given_back_are_given_again() {
        let at = |seconds| Moment::new(Duration::from_secs(seconds));
        let mut role = Role::default();
        for _ in 0..OPENS_AFTER {
            role.refused();
        }
        for second in 5..15 {
            assert_eq!(role.slot(at(5)), at(second));
        }
        for second in [8, 7, 10, 6] {
            role.give_back(at(second));
        }
        // The first of those to come; one that has passed is lost.
        assert_eq!((role.slot(at(7)), role.slot(at(7))), (at(7), at(8)));
        assert_eq!((role.slot(at(7)), role.slot(at(7))), (at(10), at(15)));
        for second in [12, 14, 11, 13, 15] {
            role.give_back(at(second));
        }
        assert_eq!((role.slot(at(7)), role.free.len()), (at(11), 0));
        role.granted();
        role.give_back(at(11));
        assert!(role.free.is_empty(), "the circuit has closed meanwhile");
    }
}
