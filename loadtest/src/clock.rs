//! The only file that reads a clock or sleeps. Measuring time is what this program is for, so here,
//! unlike in the programs it measures, both are ordinary.

use std::time::{Duration, Instant};

/// Monotonic now.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the clock"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Today in UTC, as YYYY-MM-DD.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the clock"
)]
pub(crate) fn today() -> String {
    let now = jiff::Timestamp::try_from(std::time::SystemTime::now());
    let now = now.map_or_else(|_before_time| String::new(), |now| now.to_string());
    now.split('T').next().unwrap_or_default().to_owned()
}

/// Sleeps until `due` and says how late the thread woke up: the generator's own lag, which is
/// reported and never charged to the system under test.
#[expect(
    clippy::disallowed_methods,
    reason = "an open loop is paced by sleeping"
)]
pub(crate) fn sleep_until(due: Instant) -> Duration {
    let before = now();
    if let Some(wait) = due.checked_duration_since(before) {
        std::thread::sleep(wait);
    }
    now().saturating_duration_since(due)
}

/// Sleeps for 20 ms: how often something that takes seconds is looked at.
pub(crate) fn sleep_a_while() -> Instant {
    sleep_until(now() + Duration::from_millis(20));
    now()
}
