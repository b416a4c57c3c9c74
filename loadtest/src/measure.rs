//! What was seen: latencies in histograms, failures by kind.
//!
//! Each thread fills its own; they are added up at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::dialogue::Failure;
use crate::numbers::float;

/// Latencies from a microsecond to a minute, to three digits.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Histogram<u64>);

/// Longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_mins(1);

impl Latencies {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        let max_us = u64::try_from(LATENCY_MAX.as_micros()).unwrap_or(u64::MAX);
        #[expect(
            clippy::expect_used,
            reason = "the bounds are constants, and a test makes one"
        )]
        Self(Histogram::new_with_bounds(1, max_us, 3).expect("constant bounds"))
    }

    /// Counts one.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.0
            .saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// Takes another thread's in.
    pub(crate) fn add(&mut self, other: &Self) {
        // Same bounds on both sides, so nothing can be out of range.
        let added = self.0.add(&other.0);
        debug_assert!(added.is_ok(), "histograms have the same bounds");
    }

    /// How many were counted.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share of all, from 0 to 1, did not exceed; of nothing, none.
    pub(crate) fn quantile(&self, share: f64) -> Option<Duration> {
        self.seen(self.0.value_at_quantile(share))
    }

    /// The share of all, from 0 to 1, that exceeded `limit`; of nothing, none.
    pub(crate) fn share_above(&self, limit: Duration) -> Option<f64> {
        let limit = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        (!self.0.is_empty()).then(|| 1.0 - self.0.quantile_below(limit))
    }

    /// The distribution: for each latency in microseconds that was seen, the share of all that did not
    /// exceed it. Neighbours that a plot could not tell
    /// apart are left out.
    pub(crate) fn curve(&self) -> Vec<(f64, f64)> {
        let total = self.0.len();
        let mut seen = 0_u64;
        let mut curve: Vec<(f64, f64)> = Vec::new();
        for step in self.0.iter_recorded() {
            seen = seen.saturating_add(step.count_since_last_iteration());
            let (at, share) = (float(step.value_iterated_to()), float(seen) / float(total));
            // Closer than a line is wide: the last point stands for both.
            if let Some(last) = curve.last_mut()
                && at < last.0 * CURVE_STEP
                && 1.0 - share > (1.0 - last.1) * 0.9
            {
                continue;
            }
            curve.push((at, share));
        }
        curve
    }

    /// The shortest: what a busy machine can least spoil, because it only ever adds.
    pub(crate) fn min(&self) -> Option<Duration> {
        self.seen(self.0.min())
    }

    /// The longest.
    pub(crate) fn max(&self) -> Option<Duration> {
        self.seen(self.0.max())
    }

    /// What the histogram says, which is 0 when it holds nothing.
    fn seen(&self, us: u64) -> Option<Duration> {
        (!self.0.is_empty()).then_some(Duration::from_micros(us))
    }
}

/// Points of a curve are at least this far apart.
const CURVE_STEP: f64 = 1.02;

/// What one kind of load saw.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    /// Each request, from when it was sent.
    pub requests: Latencies,
    /// Whole dialogues, from when they were due to the credentials.
    pub dialogues: Latencies,
    /// How late the generator itself was. Part of neither of the above being fair when it is large.
    pub lag: Latencies,
    /// How long the generator's threads were ready to run and did not: other work had their core, or
    /// the hypervisor had it.
    pub waited: Duration,
    /// Dialogues that ended without the pod's credentials.
    pub failures: BTreeMap<Failure, u64>,
}

impl Figures {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            requests: Latencies::new(),
            dialogues: Latencies::new(),
            lag: Latencies::new(),
            waited: Duration::ZERO,
            failures: BTreeMap::new(),
        }
    }

    /// Takes another thread's in.
    pub(crate) fn add(&mut self, other: &Self) {
        self.requests.add(&other.requests);
        self.dialogues.add(&other.dialogues);
        self.lag.add(&other.lag);
        self.waited += other.waited;
        for (failure, count) in &other.failures {
            *self.failures.entry(*failure).or_default() += count;
        }
    }

    /// Counts one dialogue that failed.
    pub(crate) fn fail(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    /// Dialogues that failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_add_up() {
        let mut one = Figures::new();
        one.requests.record(Duration::from_micros(100));
        one.fail(Failure::TimedOut);
        let mut two = one.clone();
        two.requests.record(Duration::from_hours(1));
        two.add(&one);
        assert_eq!(two.requests.count(), 3);
        assert_eq!(two.failed(), 2);
        let above = two.requests.share_above(Duration::from_secs(1));
        assert!((above.unwrap() - 1.0 / 3.0).abs() < 1e-9);
        let median = two.requests.quantile(0.5);
        assert_eq!(median, Some(Duration::from_micros(100)));
        assert!(two.requests.max().unwrap() + Duration::from_millis(100) >= LATENCY_MAX);
    }

    #[test]
    fn nothing_was_not_fast() {
        let none = Latencies::new();
        assert_eq!(
            (none.min(), none.quantile(0.99), none.max()),
            (None, None, None)
        );
        assert_eq!(none.share_above(Duration::ZERO), None);
    }
}
