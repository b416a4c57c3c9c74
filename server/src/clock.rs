//! The only file of the server that reads a clock.
//!
//! Every deciding room is handed a [`Now`] instead. It carries two times on purpose: the monotonic
//! one stops while a machine sleeps and the wall one can be set by anyone, so that an expiry is
//! kept in both and the earlier one is believed. The monotonic time is tokio's, so that a test with
//! paused time moves it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiam_wire::UnixSeconds;
use tokio::time::Instant;

/// A point of monotonic time: how long after the clock was made. Only the clock that made it can
/// tell what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(Duration);

impl Moment {
    /// The moment at which the clock was made.
    pub const ORIGIN: Self = Self(Duration::ZERO);

    /// The moment `since_origin` after the clock was made.
    pub const fn new(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// How long after the clock was made.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// This moment and `duration` more; never overflows.
    #[must_use]
    pub const fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// This moment less `duration`; never before the origin.
    #[must_use]
    pub const fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration))
    }

    /// How long from `earlier` to this; zero when it is not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Never goes back, may stand still while the machine sleeps.
    pub monotonic: Moment,
    /// What AWS's expiries are compared with; may jump either way.
    pub wall: UnixSeconds,
}

impl Now {
    /// Both clocks moved on by `duration`.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self {
            monotonic: self.monotonic.after(duration),
            wall: self.wall.after(duration),
        }
    }
}

/// Where the time comes from.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    wall: Wall,
}

#[derive(Debug, Clone, Copy)]
enum Wall {
    /// The machine's.
    System,
    /// So many seconds after the epoch at the origin, and moving with the monotonic clock.
    Derived(UnixSeconds),
    /// The same, and wrong by so many seconds.
    Steered(UnixSeconds, &'static AtomicI64),
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self {
            origin: Instant::now(),
            wall: Wall::System,
        }
    }

    /// A clock whose wall time is `wall` now and then moves with the monotonic time, so that a
    /// test with paused time moves both.
    pub fn starting_at(wall: UnixSeconds) -> Self {
        Self {
            origin: Instant::now(),
            wall: Wall::Derived(wall),
        }
    }

    /// As [`Clock::starting_at`], with a wall clock that is wrong by as many seconds as `wrong_by_s`
    /// says: for tests in which it jumps.
    pub fn steered(wall: UnixSeconds, wrong_by_s: &'static AtomicI64) -> Self {
        Self {
            origin: Instant::now(),
            wall: Wall::Steered(wall, wrong_by_s),
        }
    }

    /// Reads both clocks.
    pub fn now(&self) -> Now {
        let since_origin = Instant::now().saturating_duration_since(self.origin);
        Now {
            monotonic: Moment(since_origin),
            wall: match self.wall {
                Wall::System => system_wall(),
                Wall::Derived(wall) => wall.after(since_origin),
                Wall::Steered(wall, wrong_by_s) => {
                    let right = wall.after(since_origin).get();
                    UnixSeconds::new(right.saturating_add(wrong_by_s.load(Ordering::Relaxed)))
                }
            },
        }
    }

    /// The moment as the runtime's timers want it.
    pub fn instant(&self, moment: Moment) -> Instant {
        self.origin
            .checked_add(moment.0)
            // Centuries away: a day is as good, whoever waits looks again.
            .unwrap_or_else(|| Instant::now() + Duration::from_hours(24))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this file is where the clock is read"
)]
fn system_wall() -> UnixSeconds {
    let seconds = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since_epoch) => i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
        // A clock before 1970: nothing can be valid then, and the sign says so.
        Err(before_epoch) => {
            i64::try_from(before_epoch.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds)
        }
    };
    UnixSeconds::new(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn paused_time_moves_both_clocks() {
        let clock = Clock::starting_at(UnixSeconds::new(1_000));
        tokio::time::advance(Duration::from_secs(90)).await;
        let now = clock.now();
        assert_eq!(now.wall, UnixSeconds::new(1_090));
        assert_eq!(now.monotonic, Moment::new(Duration::from_secs(90)));
        assert_eq!(clock.instant(now.monotonic), Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_steered_wall_clock_jumps_and_the_monotonic_one_does_not() {
        static WRONG_BY_S: AtomicI64 = AtomicI64::new(0);
        let clock = Clock::steered(UnixSeconds::new(1_000), &WRONG_BY_S);
        WRONG_BY_S.store(-100, Ordering::Relaxed);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(clock.now().wall, UnixSeconds::new(910));
        assert_eq!(clock.now().monotonic, Moment::new(Duration::from_secs(10)));
    }

    #[test]
    fn moments_saturate() {
        let late = Moment::new(Duration::MAX);
        assert_eq!(late.after(Duration::from_secs(1)), late);
        assert_eq!(Moment::ORIGIN.since(late), Duration::ZERO);
        let clock = Clock::system();
        assert!(clock.instant(late) > clock.instant(Moment::ORIGIN));
    }
}
