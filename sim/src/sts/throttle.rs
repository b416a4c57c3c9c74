//! A token bucket, as AWS throttles with. Pure: time is an argument.

use std::time::Duration;

/// So many calls at once, so many a second in the long run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    per_second: f64,
    burst: f64,
    left: f64,
    filled_at: Duration,
}

impl Bucket {
    /// A full bucket. `now` counts from any fixed moment.
    pub(super) const fn new(per_second: f64, burst: f64, now: Duration) -> Self {
        Self {
            per_second,
            burst,
            left: burst,
            filled_at: now,
        }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.filled_at).as_secs_f64();
        self.left = passed.mul_add(self.per_second, self.left).min(self.burst);
        self.filled_at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Bucket;

    #[test]
    fn bursts_then_the_rate() {
        let mut bucket = Bucket::new(10.0, 3.0, Duration::ZERO);
        let taken = |bucket: &mut Bucket, at| (0..5).filter(|_| bucket.take(at)).count();
        assert_eq!(taken(&mut bucket, Duration::ZERO), 3);
        assert_eq!(taken(&mut bucket, Duration::from_millis(250)), 2);
        assert_eq!(taken(&mut bucket, Duration::from_mins(1)), 3);
    }
}
