//! How many handshakes each address has under way.
//!
//! Places for handshakes are limited, and a client need not say a word to take one. So no address
//! may have more than a small part of them. Agents connect from their nodes' addresses, and behind
//! an address translation a few of them from one. The machine's own loopback is not counted: whoever
//! is there is no stranger on the network.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts unfinished handshakes by address.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    each_max: usize,
    unfinished: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One handshake under way. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Unfinished {
    from: Option<IpAddr>,
    sources: Sources,
}

impl Sources {
    /// Nobody yet, and at most `each_max` for each address.
    pub(super) fn new(each_max: usize) -> Self {
        Self {
            each_max,
            unfinished: Arc::default(),
        }
    }

    /// A handshake with this address, unless it has as many as it may.
    pub(super) fn begin(&self, from: IpAddr) -> Option<Unfinished> {
        let from = Some(from.to_canonical()).filter(|from| !from.is_loopback());
        if let Some(from) = from {
            let mut unfinished = self.lock();
            let count = unfinished.entry(from).or_default();
            if *count >= self.each_max {
                return None;
            }
            *count += 1;
        }
        let sources = self.clone();
        Some(Unfinished { from, sources })
    }

    /// A poisoned lock guards counts that are still right.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(from) = self.from else { return };
        if let Entry::Occupied(mut count) = self.sources.lock().entry(from) {
            *count.get_mut() = count.get().saturating_sub(1);
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_and_no_more_until_one_ends() {
        let sources = Sources::new(2);
        let [one, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let mapped = "::ffff:10.0.0.1".parse().unwrap();
        let first = sources.begin(one).unwrap();
        let second = sources.begin(mapped).unwrap();
        assert!(sources.begin(one).is_none());
        let third = sources.begin(other).unwrap();
        drop(first);
        let fourth = sources.begin(one).unwrap();
        assert!(sources.begin(mapped).is_none());
        drop((second, third, fourth));
        assert!(sources.lock().is_empty(), "nothing is kept of those gone");
    }

    #[test]
    fn the_machine_itself_is_not_counted() {
        let sources = Sources::new(1);
        let all: Option<Vec<_>> = (0..5)
            .map(|_| sources.begin("127.0.0.1".parse().unwrap()))
            .collect();
        assert_eq!(all.map(|all| all.len()), Some(5));
    }
}
