//! Whole seconds of wall time, as AWS writes them.
//!
//! `YYYY-MM-DDTHH:MM:SSZ` exactly: a fraction defeats botocore's expiry check and an offset breaks
//! the Rust SDK, so this type can produce neither.

use std::fmt;
use std::time::Duration;

/// Seconds since the Unix epoch, within the years 1 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixSeconds(i64);

impl UnixSeconds {
    /// 0001-01-01T00:00:00Z.
    pub const MIN: Self = Self(-62_135_596_800);
    /// 9999-12-30T22:00:00Z: the last hour that every time zone can still print.
    pub const MAX: Self = Self(253_402_207_200);

    /// The nearest value in range.
    pub const fn new(seconds: i64) -> Self {
        if seconds < Self::MIN.0 {
            Self::MIN
        } else if seconds > Self::MAX.0 {
            Self::MAX
        } else {
            Self(seconds)
        }
    }

    /// Seconds since the epoch.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// This moment and `duration` more, fractions dropped.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self::new(
            self.0
                .saturating_add(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)),
        )
    }

    /// How long from `earlier` to this; zero when it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for UnixSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `new` keeps the value in jiff's range, so this cannot fail; were it to, the error is the
        // formatter's and not a panic.
        let time = jiff::Timestamp::from_second(self.0).map_err(|_out_of_range| fmt::Error)?;
        fmt::Display::fmt(&time, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: i64, expected: &str) {
        assert_eq!(UnixSeconds::new(seconds).to_string(), expected);
    }

    #[test]
    fn times_have_no_fraction_and_end_in_z() {
        check(0, "1970-01-01T00:00:00Z");
        check(1_709_251_199, "2024-02-29T23:59:59Z");
        check(-1, "1969-12-31T23:59:59Z");
    }

    #[test]
    fn absurd_times_are_brought_into_range() {
        check(i64::MAX, "9999-12-30T22:00:00Z");
        check(i64::MIN, "0001-01-01T00:00:00Z");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(UnixSeconds::MAX.after(Duration::MAX), UnixSeconds::MAX);
        assert_eq!(
            UnixSeconds::new(5).since(UnixSeconds::new(9)),
            Duration::ZERO
        );
        assert_eq!(
            UnixSeconds::new(9).since(UnixSeconds::new(5)),
            Duration::from_secs(4)
        );
    }
}
