//! The one thread that tells the workers that time has passed.
//!
//! Often while requests are parked, since those have deadlines that people wait for; otherwise
//! twice a second, which is enough for dates, expiry, and closing what is slow or idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::park_timeout;
use std::time::Duration;

use super::worker::Signals;
use crate::clock::monotonic;
use crate::doorbell::Bell;

/// Between two ticks of a worker that has requests parked or is ending.
pub(super) const EAGER: Duration = Duration::from_millis(25);
/// Between two ticks of any other.
pub(super) const USUAL: Duration = Duration::from_millis(500);

/// One worker from outside.
#[derive(Debug, Clone)]
pub(super) struct Post {
    pub(super) bell: Bell,
    pub(super) signals: Signals,
}

impl Post {
    /// Whether it wants to know of everything at once.
    pub(super) fn is_eager(&self) -> bool {
        self.signals.eager.get() || self.signals.draining.load(Ordering::Relaxed)
    }
}

/// Ticks until told to stop.
pub(super) fn run(posts: &[Post], stop: &Arc<AtomicBool>) {
    let mut rung_at = monotonic();
    while !stop.load(Ordering::Relaxed) {
        let eager = posts.iter().any(Post::is_eager);
        park_timeout(if eager { EAGER } else { USUAL });
        let now = monotonic();
        let everyone = now.saturating_duration_since(rung_at) >= USUAL;
        if everyone {
            rung_at = now;
        }
        for post in posts.iter().filter(|post| everyone || post.is_eager()) {
            post.bell.ring();
        }
    }
}
