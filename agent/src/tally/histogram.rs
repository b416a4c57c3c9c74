//! Durations counted in fixed buckets from 10 µs to 5 s.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, microseconds. kiam's began at 1 ms and ended below its own deadline;
/// an answer from memory takes some 20 µs and a parked one up to a second.
pub(super) const BOUNDS_US: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 5_000_000,
];

/// How many durations fell where. One writer, any number of readers.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len()],
    beyond: AtomicU64,
    sum_ns: AtomicU64,
}

impl Histogram {
    pub(super) const fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BOUNDS_US.len()],
            beyond: AtomicU64::new(0),
            sum_ns: AtomicU64::new(0),
        }
    }

    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        // Nearly everything is in the first few, so looking from the left is the quickest.
        let place = BOUNDS_US.iter().position(|bound| us <= *bound);
        let bucket = place
            .and_then(|place| self.buckets.get(place))
            .unwrap_or(&self.beyond);
        bucket.fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Adds what this has counted to `sums`.
    pub(super) fn add_to(&self, sums: &mut Sums) {
        for (sum, bucket) in sums.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.load(Ordering::Relaxed);
        }
        sums.beyond += self.beyond.load(Ordering::Relaxed);
        sums.sum_ns += u128::from(self.sum_ns.load(Ordering::Relaxed));
    }
}

/// Several histograms added up.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) buckets: [u64; BOUNDS_US.len()],
    pub(super) beyond: u64,
    pub(super) sum_ns: u128,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for us in [0, 10, 11, 5_000_000, 5_000_001] {
            histogram.record(Duration::from_micros(us));
        }
        let mut sums = Sums::default();
        histogram.add_to(&mut sums);
        assert_eq!(
            (sums.buckets[0], sums.buckets[1], sums.buckets[17]),
            (2, 1, 1)
        );
        assert_eq!((sums.beyond, sums.sum_ns), (1, 10_000_022_000));
    }
}
