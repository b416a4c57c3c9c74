//! Ending well: a trigger, and watchers that are waited for.
//!
//! Nothing is ever sent over the second channel; that its senders are all gone is the message.

use std::convert::Infallible;

use tokio::sync::{mpsc, watch};

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct Drain {
    start: watch::Sender<bool>,
    drained: mpsc::Receiver<Infallible>,
}

/// Held by whatever must end before the program does.
#[derive(Debug, Clone)]
pub struct Draining {
    started: watch::Receiver<bool>,
    _alive: mpsc::Sender<Infallible>,
}

/// A trigger and its first watcher.
pub fn channel() -> (Drain, Draining) {
    let (start, started) = watch::channel(false);
    let (alive, drained) = mpsc::channel(1);
    let drain = Drain { start, drained };
    let draining = Draining {
        started,
        _alive: alive,
    };
    (drain, draining)
}

impl Drain {
    /// Tells every watcher, and waits until all of them are gone.
    pub async fn drain(mut self) {
        self.start.send_replace(true);
        while self.drained.recv().await.is_some() {}
    }
}

impl Draining {
    /// Waits for the drain to begin.
    pub async fn started(&mut self) {
        // A trigger that is gone can only mean the end, too.
        let _begun_or_gone = self.started.wait_for(|started| *started).await.is_ok();
    }

    /// Whether the drain has begun.
    pub fn has_started(&self) -> bool {
        *self.started.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_drain_ends_with_its_last_watcher() {
        let (drain, mut first) = channel();
        let mut second = first.clone();
        assert!(!first.has_started());
        let draining = tokio::spawn(drain.drain());
        first.started().await;
        second.started().await;
        drop(first);
        assert!(!draining.is_finished());
        drop(second);
        draining.await.unwrap();
    }
}
