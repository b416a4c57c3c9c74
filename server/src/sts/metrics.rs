//! What is counted about calls to STS. The names are kiam's where the meaning is.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

use super::IssueError;

/// Counters of the fetchers.
#[derive(Debug, Clone)]
pub struct Metrics {
    errors: Family<Reason, Counter>,
    calls: Counter,
    timing: Histogram,
    pub(super) current: Gauge,
    pub(super) queue: Gauge,
    pub(super) rate: Gauge<f64, AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Metrics {
    /// Registers everything, each reason at zero.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            errors: Family::default(),
            calls: Counter::default(),
            // kiam's buckets end at 4.096 s; a call may take longer.
            timing: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            current: Gauge::default(),
            queue: Gauge::default(),
            rate: Gauge::default(),
        };
        for reason in IssueError::REASONS {
            drop(metrics.errors.get_or_create(&Reason { reason }));
        }
        registry.register(
            "kiam_sts_issuing_errors",
            "AssumeRole calls that brought no credentials, by reason",
            metrics.errors.clone(),
        );
        registry.register(
            "kiam_sts_assumerole_calls",
            "AssumeRole calls that have ended",
            metrics.calls.clone(),
        );
        registry.register(
            "kiam_sts_assumerole_timing_seconds",
            "How long AssumeRole calls took",
            metrics.timing.clone(),
        );
        registry.register(
            "kiam_sts_assumerole_current",
            "AssumeRole calls being made",
            metrics.current.clone(),
        );
        registry.register(
            "kiam_sts_assumerole_queue",
            "AssumeRole calls waiting for their turn",
            metrics.queue.clone(),
        );
        registry.register(
            "kiam_sts_assumerole_rate",
            "AssumeRole calls allowed in one second; falls when STS throttles",
            metrics.rate.clone(),
        );
        metrics
    }

    pub(super) fn ended(&self, error: Option<&IssueError>, took_s: f64) {
        self.calls.inc();
        self.timing.observe(took_s);
        if let Some(error) = error {
            let reason = error.as_str();
            self.errors.get_or_create(&Reason { reason }).inc();
        }
    }
}
