//! What clients asked for, counted, so that a test can say "one list and one watch, no more".

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::shared::lock;

/// Requests by verb and resource, and the watches open at this moment.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    watches: Arc<AtomicU64>,
}

impl Counters {
    pub(crate) fn count(&self, verb: &'static str, resource: &'static str) {
        *lock(&self.requests).entry((verb, resource)).or_default() += 1;
    }

    pub(crate) fn requests(&self, verb: &str, resource: &str) -> u64 {
        let requests = lock(&self.requests);
        requests
            .iter()
            .filter(|((one, other), _)| *one == verb && *other == resource)
            .map(|(_, count)| count)
            .sum()
    }

    pub(crate) fn all(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        lock(&self.requests).clone()
    }

    pub(crate) fn open_watch(&self) -> OpenWatch {
        self.watches.fetch_add(1, Ordering::Relaxed);
        OpenWatch(Arc::clone(&self.watches))
    }

    pub(crate) fn open_watches(&self) -> u64 {
        self.watches.load(Ordering::Relaxed)
    }
}

/// While this lives, a watch is open.
#[derive(Debug)]
pub(crate) struct OpenWatch(Arc<AtomicU64>);

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
