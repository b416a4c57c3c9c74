//! Agents that were sent on to look for a better replica.
//!
//! Each is sent on once. Who comes again soon has asked every replica and found none that would have it: then
//! this one, however far behind, is the best there is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Moment;

/// Longer than an agent waits between two rounds over all replicas, by far.
const SOON: Duration = Duration::from_mins(5);

/// When the agent of each node was last sent on.
#[derive(Debug, Default)]
pub(super) struct SentOn(Mutex<HashMap<Arc<str>, Moment>>);

impl SentOn {
    /// Whether to send the agent of this node on now; not, when it was already.
    pub(super) fn sends(&self, node: &Arc<str>, now: Moment) -> bool {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sent.retain(|_node, at| now.since(*at) < SOON);
        if sent.remove(node).is_some() {
            return false;
        }
        sent.insert(Arc::clone(node), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_again_soon_stays() {
        let sent = SentOn::default();
        let at = |seconds| Moment::new(Duration::from_secs(seconds));
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        assert!(sent.sends(&one, at(0)));
        assert!(sent.sends(&other, at(1)));
        assert!(!sent.sends(&one, at(2)));
        // Its stream ends, and there may be a better one by now.
        assert!(sent.sends(&one, at(3)));
        // The other found one, and comes from there.
        assert!(sent.sends(&other, at(1 + SOON.as_secs())));
        assert_eq!(sent.0.lock().unwrap().len(), 2);
    }
}
