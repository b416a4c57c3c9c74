//! Stops answering for addresses whose pod the kernel has seen go.
//!
//! What an earlier agent left is compared with the kernel before anybody is answered from it.

use std::io;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::inheritance::Known;
use crate::clock::Now;
use crate::control::served::SharedServed;
use crate::fence::{Fence, FenceEvent};
use crate::handover::snapshot::Addresses;
use crate::snapshot::Store;

/// Between attempts to listen to the kernel.
const RETRY: Duration = Duration::from_secs(10);

/// Listens to the kernel, and fences in `store` what changed hands since `saved` was written.
/// `None`, with the reason in the log, when the kernel does not say.
pub(super) async fn begin(store: &mut Store, saved: &Addresses, now: Now) -> Option<Fence> {
    let (kernel, events) = open(saved).await.inspect_err(deaf).ok()?;
    for event in events {
        // Nobody has been named since: the store is what was saved with them.
        apply(store, event, now, now);
    }
    Some(kernel)
}

async fn open(saved: &Addresses) -> io::Result<(Fence, Vec<FenceEvent>)> {
    let mut kernel = Fence::open().await?;
    info!(signal = ?kernel.signal(), "listening to the kernel for pods that go");
    // Gone comes last, so that it counts where both are said.
    let mut events = kernel.expect_back(&saved.left);
    events.extend(kernel.no_longer(&saved.interfaces));
    Ok((kernel, events))
}

fn deaf(error: &io::Error) {
    warn!(%error, "the kernel does not say when pods go; only the server's word counts");
}

/// Follows the kernel.
pub(super) struct Fencing {
    pub(super) served: SharedServed,
    /// Where what it says is written down.
    pub(super) known: Known,
    /// What was known before.
    pub(super) saved: Addresses,
}

impl Fencing {
    /// For ever. `kernel` has been listened to since before the first answer.
    pub(super) async fn run(self, mut kernel: Option<Fence>) {
        let mut saved = self.saved.clone();
        let mut saved_at = Now::read();
        loop {
            let followed = match kernel.take() {
                Some(kernel) => self.follow(kernel).await,
                None => self.follow_anew(&saved, saved_at).await,
            };
            if let Err(error) = followed {
                deaf(&error);
                // What is known by now is what a new beginning is compared with.
                saved = self.known.get();
                saved_at = Now::read();
            }
            sleep(RETRY).await;
        }
    }

    /// What is gone since `saved` was known may belong to another pod by now, which the server
    /// has named: that one is still there.
    async fn follow_anew(&self, saved: &Addresses, saved_at: Now) -> io::Result<()> {
        let (kernel, events) = open(saved).await?;
        self.apply(events, saved_at);
        self.follow(kernel).await
    }

    async fn follow(&self, mut kernel: Fence) -> io::Result<()> {
        loop {
            self.known.set(&kernel);
            let events = kernel.next().await?;
            self.apply(events, Now::read());
        }
    }

    fn apply(&self, events: Vec<FenceEvent>, seen: Now) {
        let now = Now::read();
        for event in events {
            self.served
                .lock()
                .change(now, |store| apply(store, event, seen, now));
        }
    }
}

/// Whether it made a difference. `seen` is when the pods were last known to be there that an event
/// says are gone.
fn apply(store: &mut Store, event: FenceEvent, seen: Now, now: Now) -> bool {
    match event {
        FenceEvent::Gone(ip) => {
            let fenced = store.fence_as_of(ip, seen);
            debug!(%ip, fenced, "an address has nobody behind it");
            fenced
        }
        FenceEvent::Back(ip) => store.unfence(ip, now),
    }
}
