//! The outbox, shared between those who put something in and the stream that takes it out.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::outbox::Outbox;

/// Peers that begin to wait within this of the last message that named some share the next one: a
/// lone pod's request is passed on at once, a flood is bundled.
const COALESCE: Duration = Duration::from_millis(1);

/// An [`Outbox`] that wakes whoever empties it. Only used on the control thread.
#[derive(Debug, Clone, Default)]
pub struct Mailbox(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    outbox: Mutex<Outbox>,
    filled: Notify,
}

impl Mailbox {
    /// Looks at the outbox, or takes from it.
    pub fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.0.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something in.
    pub fn put(&self, put: impl FnOnce(&mut Outbox)) {
        put(&mut self.lock());
        self.0.filled.notify_one();
    }

    /// Returns when something should be told. `told_peers` is when peers were last named. Takes
    /// nothing out, so it may be dropped at any time.
    pub async fn ready(&self, told_peers: Option<Instant>) {
        loop {
            let (urgent, waiting) = {
                let outbox = self.lock();
                (outbox.is_urgent(), outbox.has_waiting())
            };
            if urgent {
                return;
            }
            if waiting {
                if let Some(told) = told_peers {
                    sleep_until(told + COALESCE).await;
                }
                return;
            }
            self.0.filled.notified().await;
        }
    }
}

/// Puts every address that the data plane reports on `socket` into the mailbox, for ever. One
/// datagram is one address as IPv6, IPv4 ones mapped.
pub async fn collect(socket: UnixDatagram, mailbox: Mailbox) {
    let mut bytes = [0_u8; 16];
    loop {
        match socket.recv(&mut bytes).await {
            Ok(16) => {
                let peer = IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical();
                mailbox.put(|outbox| outbox.waiting(peer));
            }
            // Not ours; nobody else has the other end.
            Ok(_) => {}
            Err(error) => {
                // The data plane has ended. Waiting peers are only a hint to the server.
                warn!(%error, "parked requests are no longer reported");
                return;
            }
        }
    }
}
