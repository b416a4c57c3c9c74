//! What time it is, for the rooms that touch the world; everything else is given its `now`.
//!
//! Wall time is read once and then advanced by tokio's clock, so that a test with paused time sees
//! tokens and credentials expire when it says so.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// A wall clock anchored at its creation.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    wall: Timestamp,
    anchor: Instant,
}

impl Clock {
    /// Starts at the machine's present time.
    #[must_use]
    pub fn start() -> Self {
        Self {
            wall: Timestamp::now(),
            anchor: Instant::now(),
        }
    }

    /// The present wall time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.wall
            .saturating_add(jiff_span(self.elapsed()))
            .unwrap_or(Timestamp::MAX)
    }

    /// Time since [`Clock::start`].
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.anchor.elapsed()
    }
}

fn jiff_span(elapsed: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(elapsed).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Clock;

    #[tokio::test(start_paused = true)]
    async fn wall_time_follows_the_runtime() {
        let clock = Clock::start();
        let before = clock.now();
        tokio::time::sleep(Duration::from_hours(1)).await;
        assert!(clock.now().duration_since(before).as_secs() >= 3600);
    }
}
