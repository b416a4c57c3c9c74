//! Stops answering for addresses whose pod the kernel has seen go.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::inheritance::Interfaces;
use crate::clock::Now;
use crate::control::served::SharedServed;
use crate::fence::{Fence, FenceEvent, InterfaceIndex};

/// Between attempts to listen to the kernel.
const RETRY: Duration = Duration::from_secs(10);

/// Follows the kernel for ever. `saved` is where an earlier agent saw the addresses.
pub(super) async fn fence(
    served: SharedServed,
    interfaces: Interfaces,
    saved: Vec<(IpAddr, InterfaceIndex)>,
) {
    let mut saved = saved;
    loop {
        if let Err(error) = follow(&served, &interfaces, &saved).await {
            warn!(%error, "the kernel does not say when pods go; only the server's word counts");
        }
        // What is known by now is what a new beginning is compared with.
        saved = interfaces.get();
        sleep(RETRY).await;
    }
}

async fn follow(
    served: &SharedServed,
    interfaces: &Interfaces,
    saved: &[(IpAddr, InterfaceIndex)],
) -> io::Result<()> {
    let mut kernel = Fence::open().await?;
    info!(signal = ?kernel.signal(), "listening to the kernel for pods that go");
    apply(served, kernel.no_longer(saved));
    loop {
        interfaces.set(kernel.interfaces());
        apply(served, kernel.next().await?);
    }
}

fn apply(served: &SharedServed, events: Vec<FenceEvent>) {
    let now = Now::read();
    for event in events {
        served.lock().change(now, |store| match event {
            FenceEvent::Gone(ip) => {
                let fenced = store.fence(ip);
                debug!(%ip, fenced, "an address has nobody behind it");
                fenced
            }
            FenceEvent::Back(ip) => store.unfence(ip, now),
        });
    }
}
