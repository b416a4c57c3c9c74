//! What the node is served, and the one way to change it.
//!
//! Store, publisher and doorbell always move together: whoever changes the store publishes and
//! rings before anyone else can look. The lock is only ever taken on the control thread and never
//! held across an await, so nobody waits for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiam_wire::{PodState, PodUid, Revision, Update};
use tokio::sync::watch;

use crate::clock::Now;
use crate::data::Ringer;
use crate::snapshot::store::{Applied, Gap, PodView};
use crate::snapshot::{Publisher, Store};

/// The store, its publisher and the workers' doorbell.
#[derive(Debug)]
pub struct Served {
    store: Store,
    publisher: Publisher,
    ringer: Option<Ringer>,
    /// When a server last said something that was applied.
    heard_at: Option<Now>,
    /// Counts changes, for whoever keeps a copy.
    changes: watch::Sender<u64>,
    /// Counts how often credentials ended that pods were granted.
    losses: watch::Sender<u64>,
}

/// [`Served`], shared by the rooms of the control thread.
#[derive(Debug, Clone)]
pub struct SharedServed(Arc<Mutex<Served>>);

impl SharedServed {
    /// The store may hold what an earlier agent left; it is published at once.
    pub fn new(store: Store, mut publisher: Publisher, now: Now) -> Self {
        publisher.publish(store.snapshot(now));
        Self(Arc::new(Mutex::new(Served {
            store,
            publisher,
            ringer: None,
            heard_at: None,
            changes: watch::Sender::new(0),
            losses: watch::Sender::new(0),
        })))
    }

    /// Looks at it, or changes it, without waiting.
    pub fn lock(&self) -> MutexGuard<'_, Served> {
        // Whoever panicked while holding it had not published yet.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Served {
    /// The truth about the node.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Where workers get their readers.
    pub const fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// When a server last said something that was applied.
    pub const fn heard_at(&self) -> Option<Now> {
        self.heard_at
    }

    /// Changes each time the snapshot does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The workers exist now: they are told about every snapshot from here on.
    pub fn ring_with(&mut self, ringer: Ringer) {
        ringer.ring();
        self.ringer = Some(ringer);
    }

    /// Applies what a server said and publishes the outcome. An update that changes nothing, which
    /// is how a server says that this agent is up to date, is not published.
    pub fn apply(&mut self, update: Update, now: Now) -> Result<Applied, Gap> {
        let news = !says_nothing(&update, self.store.revision());
        let applied = self.store.apply(update, now)?;
        self.heard_at = Some(now);
        if news {
            self.publish(now);
        }
        Ok(applied)
    }

    /// Answers these pods no longer, of which an update that is about to be applied says what cannot be read.
    pub fn lose(&mut self, unreadable: &[PodUid], now: Now) {
        self.change(now, |store| store.lose(unreadable));
    }

    /// Something was left out of the update that was applied last. The next stream is asked for everything.
    pub const fn lacks_something(&mut self) {
        self.store.lacks_something();
    }

    /// Changes the store, for example to fence an address, and publishes when that made a
    /// difference, which `change` says.
    pub fn change(&mut self, now: Now, change: impl FnOnce(&mut Store) -> bool) {
        if change(&mut self.store) {
            self.publish(now);
        }
    }

    /// Drops credentials that have ended, and forgets who had an address long ago.
    ///
    /// A server renews them long before. So when some end that pods are granted, it has none to send,
    /// or does not know that this agent lacks them: its clock says that they are good, and this node's
    /// was wrong for a moment. Whoever follows it is to ask for everything.
    pub fn expire(&mut self, now: Now) {
        let mut lost = false;
        self.change(now, |store| {
            let ended = store.expire(now) > 0;
            lost = ended && store.pods().any(|view| is_lost(&view));
            store.forget_departed(now) || ended
        });
        if lost {
            self.losses.send_modify(|losses| *losses += 1);
        }
    }

    /// Changes each time that granted credentials have ended; a change that was there before counts.
    pub fn losses(&self) -> watch::Receiver<u64> {
        let mut losses = self.losses.subscribe();
        if *losses.borrow_and_update() > 0 {
            losses.mark_changed();
        }
        losses
    }

    /// Frees what no worker reads any more.
    pub fn reap(&mut self) -> usize {
        self.publisher.reap()
    }

    fn publish(&mut self, now: Now) {
        self.publisher.publish(self.store.snapshot(now));
        if let Some(ringer) = &self.ringer {
            ringer.ring();
        }
        self.changes
            .send_modify(|changes| *changes = changes.wrapping_add(1));
    }
}

fn is_lost(view: &PodView<'_>) -> bool {
    view.has_ended && matches!(view.pod.state, PodState::Granted(_))
}

fn says_nothing(update: &Update, holds: Option<Revision>) -> bool {
    match update {
        Update::Full(_) => false,
        Update::Delta(delta) => {
            delta.from == delta.to
                && Some(delta.from) == holds
                && delta.pods.is_empty()
                && delta.removed_pods.is_empty()
                && delta.credentials.is_empty()
                && delta.keys.is_none()
        }
    }
}
