//! Stopping, as a pair: a trigger that is pulled once, and watchers that finish and are dropped.
//!
//! Drained is when every watcher is gone. Nothing is ever sent over the channels; they are dropped.

use std::convert::Infallible;

use tokio::sync::{mpsc, watch};

/// A pair that belongs together.
pub fn channel() -> (Trigger, Watch) {
    let (start, started) = watch::channel(false);
    let (done, drained) = mpsc::channel(1);
    (
        Trigger { start, drained },
        Watch {
            started,
            _done: done,
        },
    )
}

/// Pulled once to stop everyone who holds a [`Watch`].
#[derive(Debug)]
pub struct Trigger {
    start: watch::Sender<bool>,
    drained: mpsc::Receiver<Infallible>,
}

impl Trigger {
    /// Tells every watcher to stop and returns when the last one is gone.
    pub async fn drain(mut self) {
        self.start.send_replace(true);
        while self.drained.recv().await.is_some() {}
    }
}

/// Held by whoever has something to finish before the process ends.
#[derive(Debug, Clone)]
pub struct Watch {
    started: watch::Receiver<bool>,
    _done: mpsc::Sender<Infallible>,
}

impl Watch {
    /// Returns when it is time to stop, also when the trigger was dropped.
    pub async fn started(&mut self) {
        // An error means that there is no trigger any more, which is the end as well.
        drop(self.started.wait_for(|started| *started).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drained_is_when_the_last_watcher_is_gone() {
        let (trigger, mut watch) = channel();
        let second = watch.clone();
        let task = tokio::spawn(async move {
            watch.started().await;
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            drop(watch);
        });
        let draining = tokio::spawn(trigger.drain());
        task.await.unwrap();
        tokio::task::yield_now().await;
        assert!(!draining.is_finished(), "a watcher is left");
        drop(second);
        draining.await.unwrap();
    }

    #[tokio::test]
    async fn a_lost_trigger_counts_as_pulled() {
        let (trigger, mut watch) = channel();
        drop(trigger);
        watch.started().await;
    }
}
