//! The only room that reads a clock; everyone else is given a [`Now`].
//!
//! It always gives both clocks, because each of them lies in its own way: the wall clock is set back
//! and forth by people and NTP, the monotonic one stands still while a machine is suspended. A
//! lifetime therefore ends when either says so.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kiam_wire::UnixSeconds;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Never goes back.
    pub monotonic: Instant,
    /// What the world says, in whole seconds, rounded down.
    pub wall: UnixSeconds,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self {
            monotonic: monotonic(),
            wall: wall(),
        }
    }

    /// This moment and `duration` more, on both clocks.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self {
            monotonic: later(self.monotonic, duration),
            wall: self.wall.after(duration),
        }
    }
}

/// Reads the monotonic clock alone: about 25 ns, no system call.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the room that reads clocks"
)]
pub fn monotonic() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the room that reads clocks"
)]
fn wall() -> UnixSeconds {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or_else(
        |before| i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
        |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
    );
    UnixSeconds::new(seconds)
}

/// Since this machine started, whatever happened to the wall clock; suspended time counts. Comparable
/// between processes of one boot.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// `instant` and `duration` more; for a duration beyond what the clock can say, some 30 years.
pub fn later(instant: Instant, duration: Duration) -> Instant {
    const FAR: Duration = Duration::from_hours(30 * 365 * 24);
    instant.checked_add(duration.min(FAR)).unwrap_or(instant)
}

/// The end of a lifetime, kept on both clocks. The earlier of the two is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    monotonic: Instant,
    wall: UnixSeconds,
}

impl Expiry {
    /// What ends at `wall`, as seen from `now`.
    pub fn at(wall: UnixSeconds, now: Now) -> Self {
        Self {
            monotonic: later(now.monotonic, wall.since(now.wall)),
            wall,
        }
    }

    /// The wall time it was made from.
    pub const fn wall(self) -> UnixSeconds {
        self.wall
    }

    /// Whether either clock says that it is over.
    pub fn has_passed(self, now: Now) -> bool {
        self.wall <= now.wall || self.monotonic <= now.monotonic
    }

    /// Whether it is over whatever happens to the wall clock: the monotonic one, which nobody sets
    /// back, says so.
    pub fn is_spent(self, now: Now) -> bool {
        self.monotonic <= now.monotonic
    }

    /// What is left by the more pessimistic clock; zero when it is over.
    pub fn remaining(self, now: Now) -> Duration {
        self.wall
            .since(now.wall)
            .min(self.monotonic.saturating_duration_since(now.monotonic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[track_caller]
    fn check(monotonic: Duration, wall: i64, expected_s: u64) {
        let start = Now {
            monotonic: monotonic_zero(),
            wall: UnixSeconds::new(1_000_000),
        };
        let expiry = Expiry::at(start.wall.after(HOUR), start);
        let now = Now {
            monotonic: later(start.monotonic, monotonic),
            wall: UnixSeconds::new(1_000_000 + wall),
        };
        assert_eq!(expiry.remaining(now), Duration::from_secs(expected_s));
        assert_eq!(expiry.has_passed(now), expected_s == 0);
    }

    fn monotonic_zero() -> Instant {
        monotonic()
    }

    #[test]
    fn the_earlier_of_two_clocks_is_believed() {
        check(Duration::ZERO, 0, 3600);
        check(HOUR / 2, 1800, 1800);
        // The wall clock was set back: the monotonic one still counts.
        check(HOUR, -7200, 0);
        // The machine was suspended: the monotonic clock stood still.
        check(Duration::ZERO, 3600, 0);
        // The wall clock was set forward a little.
        check(Duration::ZERO, 600, 3000);
    }
}
