//! The order in which a publisher and a worker touch what they share, so that no news is slept
//! through.
//!
//! The worker says that it is eager first and looks second; the publisher publishes first and looks
//! for eager workers second. One of them sees the other. Nothing but atomics, and those by way of
//! `super::sync`: a test compiles this very file with a model checker's and tries every interleaving
//! (`tests/data_wakeups.rs`).

use super::sync::{AtomicBool, Ordering, fence};

/// Whether a worker wants to hear of news at once: requests are parked.
#[derive(Debug)]
pub struct Eager(AtomicBool);

impl Eager {
    /// It does not, yet.
    pub fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// From now on. The worker calls it before it looks at what may have been published meanwhile;
    /// `true` when it was not eager before.
    pub fn begin(&self) -> bool {
        let was = self.0.swap(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        !was
    }

    /// No longer.
    pub fn end(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether it does. After a publication, ask [`published`] first.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Default for Eager {
    fn default() -> Self {
        Self::new()
    }
}

/// What a publisher does between publishing and asking who is eager: the other half of
/// [`Eager::begin`].
pub fn published() {
    fence(Ordering::SeqCst);
}

/// Whether a ring is on its way and not yet answered.
#[derive(Debug)]
pub(super) struct Rung(AtomicBool);

impl Rung {
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Rings; `true` when the caller is to send the byte that wakes.
    pub(super) fn ring(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }

    /// The byte could not be sent; the next ring may try again.
    pub(super) fn take_back(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// The byte was heard. The worker calls it before it looks at what changed.
    pub(super) fn answer(&self) {
        // A swap, not a store: what changed is read with a relaxed load next, and a store lets
        // that load go first, so that a change and its ring in between would both be missed. A
        // swap also reads: either it sees the ring, and with it all that changed before, or the
        // ring comes after it and sends a byte of its own.
        let _rung: bool = self.0.swap(false, Ordering::SeqCst);
    }
}
