//! Lets the kernel's word be heard before the server's.
//!
//! A server names an address's next pod only after that pod's network was made, and so after the
//! kernel said that the former pod's is gone. But the two arrive on two sockets. Were the update
//! applied first, the kernel's older word would be taken for the end of the *new* pod, and nothing
//! would take that fence down before the server next changes the pod. So whoever applies an update
//! waits until everything the kernel has said by then was applied.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::warn;

/// Reading what is waiting takes microseconds, reading everything anew some milliseconds.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// For whoever applies updates. The default has no kernel to wait for.
#[derive(Debug, Clone, Default)]
pub struct KernelFirst(Option<mpsc::Sender<Waiting>>);

/// Somebody waits; dropping or answering it lets them go on.
pub type Waiting = oneshot::Sender<()>;

/// For whoever listens to the kernel.
#[derive(Debug)]
pub struct Updates(mpsc::Receiver<Waiting>);

/// The two ends.
pub fn kernel_first() -> (KernelFirst, Updates) {
    // One follower applies one update at a time.
    let (sender, receiver) = mpsc::channel(1);
    (KernelFirst(Some(sender)), Updates(receiver))
}

impl KernelFirst {
    /// Returns when everything that the kernel had said before this call was applied.
    pub async fn heard(&self) {
        let Some(updates) = &self.0 else {
            return;
        };
        let (waiting, answered) = oneshot::channel();
        let heard = async {
            if updates.send(waiting).await.is_ok() {
                // An error says that the listener has ended, and the agent with it.
                drop(answered.await);
            }
        };
        if timeout(WAIT_MAX, heard).await.is_err() {
            warn!("the kernel's word was not heard in time; the server's is taken as it comes");
        }
    }
}

impl Updates {
    /// Returns when somebody waits; never when nobody is left who could. Safe to cancel.
    pub async fn waiting(&mut self) -> Waiting {
        match self.0.recv().await {
            Some(waiting) => waiting,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        KernelFirst::default().heard().await;
        let (kernel, mut updates) = kernel_first();
        let listener = tokio::spawn(async move {
            // Answers the first, forgets the second, then ends.
            updates.waiting().await.send(()).unwrap();
            let _forgotten = updates.waiting().await;
            std::future::pending::<()>().await;
        });
        kernel.heard().await;
        kernel.heard().await;
        listener.abort();
        kernel.heard().await;
    }
}
