//! Whether this server may be sent agents.
//!
//! Readiness is a guard that someone drops: each part that is not ready holds one, and no list of
//! parts has to be kept anywhere.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Which parts are not ready yet.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

/// While this lives, the server is not ready.
#[derive(Debug)]
#[must_use = "dropping it declares this part ready"]
pub struct NotYet {
    readiness: Readiness,
    part: &'static str,
}

impl Readiness {
    /// A part that is not ready, by the name that `/readyz` shows.
    pub fn wait_for(&self, part: &'static str) -> NotYet {
        self.parts().insert(part);
        NotYet {
            readiness: self.clone(),
            part,
        }
    }

    /// What is still missing; empty when the server is ready.
    pub fn missing(&self) -> Vec<&'static str> {
        self.parts().iter().copied().collect()
    }

    fn parts(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NotYet {
    fn drop(&mut self) {
        self.readiness.parts().remove(self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_nobody_waits() {
        let readiness = Readiness::default();
        assert!(readiness.missing().is_empty());
        let first = readiness.wait_for("caches");
        let second = readiness.wait_for("listener");
        assert_eq!(readiness.missing(), ["caches", "listener"]);
        drop(first);
        assert_eq!(readiness.missing(), ["listener"]);
        drop(second);
        assert!(readiness.missing().is_empty());
    }
}
