//! Whose token is reviewed next.
//!
//! The API server is asked about few tokens at a time. Anyone can show any number of tokens of their
//! own making, so an address has few in that queue, and the rest of its own wait behind those: an
//! agent waits behind a few of each address and never behind all of one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Of one address, in the queue or under review. A node has one agent, and two while it is replaced.
const EACH_MAX: usize = 4;
/// Of one address, in all.
const WAITING_EACH_MAX: usize = 64;

/// The turns there are.
#[derive(Debug)]
pub(super) struct Turns {
    all: Semaphore,
    by_address: Mutex<HashMap<IpAddr, Arc<Semaphore>>>,
}

/// Somebody's turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _one: SemaphorePermit<'a>,
    // In this order: the queue is forgotten when nobody else is in it.
    _own: Option<OwnedSemaphorePermit>,
    _queue: Option<Queue<'a>>,
}

/// An address's own queue.
#[derive(Debug)]
struct Queue<'a> {
    turns: &'a Turns,
    from: IpAddr,
    own: Arc<Semaphore>,
}

impl Turns {
    /// So many at a time.
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            all: Semaphore::new(at_once),
            by_address: Mutex::default(),
        }
    }

    /// Waits for a turn; `None` when the address has too many waiting already. This machine, which
    /// has no address here, only waits for the others.
    pub(super) async fn turn(&self, from: Option<IpAddr>) -> Option<Turn<'_>> {
        let queue = match from {
            Some(from) => Some(self.queue(from)?),
            None => None,
        };
        let own = match &queue {
            Some(queue) => Some(Arc::clone(&queue.own).acquire_owned().await.ok()?),
            None => None,
        };
        Some(Turn {
            _one: self.all.acquire().await.ok()?,
            _own: own,
            _queue: queue,
        })
    }

    fn queue(&self, from: IpAddr) -> Option<Queue<'_>> {
        let mut by_address = self.lock();
        let own = by_address
            .entry(from)
            .or_insert_with(|| Arc::new(Semaphore::new(EACH_MAX)));
        // Each of them holds one or two, and the map one.
        (Arc::strong_count(own) <= WAITING_EACH_MAX).then(|| Queue {
            turns: self,
            from,
            own: Arc::clone(own),
        })
    }

    /// A poisoned lock guards queues that are still whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        let mut by_address = self.turns.lock();
        // The map's and this one.
        if Arc::strong_count(&self.own) <= 2 {
            by_address.remove(&self.from);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures::FutureExt;

    use super::*;

    const ONE: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)));
    const OTHER: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));

    #[tokio::test]
    async fn an_address_has_its_share_of_turns() {
        let turns = Turns::new(EACH_MAX + 2);
        let mut hoard = Vec::new();
        for _ in 0..EACH_MAX {
            hoard.push(turns.turn(ONE).await.unwrap());
        }
        assert!(turns.turn(ONE).now_or_never().is_none(), "it waits");
        let other = turns.turn(OTHER).now_or_never().unwrap();
        let own = turns.turn(None).now_or_never().unwrap();
        assert!(
            turns.turn(None).now_or_never().is_none(),
            "there are no more"
        );
        drop((other, own));
        hoard.pop();
        assert!(turns.turn(ONE).now_or_never().is_some());
        drop(hoard);
        assert!(turns.lock().is_empty(), "nothing is kept of those gone");
    }

    #[tokio::test]
    async fn too_many_of_an_address_are_told_so_at_once() {
        let turns = Turns::new(1);
        let _only = turns.turn(None).await.unwrap();
        let mut waiting = Vec::new();
        let refused = loop {
            let mut one = Box::pin(turns.turn(ONE));
            match futures::poll!(one.as_mut()) {
                std::task::Poll::Pending => waiting.push(one),
                std::task::Poll::Ready(turn) => break turn,
            }
        };
        assert!(refused.is_none());
        assert!((32..=64).contains(&waiting.len()), "{}", waiting.len());
        let mut other = Box::pin(turns.turn(OTHER));
        assert!(futures::poll!(other.as_mut()).is_pending());
        drop((waiting, other));
        assert!(turns.lock().is_empty());
    }
}
