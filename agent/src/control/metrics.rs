//! What the control plane counts.

pub mod served;

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The control plane's counts; clones count together.
#[derive(Debug, Clone)]
pub struct ControlMetrics {
    /// 1 while a stream with a server is open and an update has come over it.
    pub connected: Gauge,
    /// Addresses tried, by what came of it.
    pub attempts: Family<AttemptLabels, Counter>,
    /// Streams that had been open, by how they ended.
    pub streams_ended: Family<EndLabels, Counter>,
    /// Updates by what was done with them.
    pub updates: Family<UpdateLabels, Counter>,
    /// Parts of updates that broke a rule of the protocol.
    pub left_out: Family<LeftOutLabels, Counter>,
    /// From an update's arrival to the moment the data plane sees it.
    pub apply_seconds: Histogram,
    /// The client certificate.
    pub tls: TlsMetrics,
}

/// kiam's three gauges about the client certificate.
#[derive(Debug, Clone, Default)]
pub struct TlsMetrics {
    /// Unix time at which the first certificate of the chain ends.
    pub expiry: Gauge,
    /// 1 when the files could not be used the last time they were read.
    pub update_error: Gauge,
    /// 1 when the certificate does not verify against the authorities.
    pub verify_error: Gauge,
}

/// What came of trying an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the words are the labels")]
pub enum Attempt {
    Opened,
    Failed,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the words are the labels")]
pub enum Ended {
    Closed,
    Failed,
    OutOfStep,
}

/// What was done with an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the words are the labels")]
pub enum Outcome {
    Full,
    Delta,
    Gap,
    Malformed,
}

/// What was left out of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the words are the labels")]
pub enum Part {
    Pod,
    Credentials,
    Keys,
}

/// Spells label values as Prometheus does, which the derived way would not.
macro_rules! spell {
    ($($labels:ident { $($variant:ident: $word:literal),+ })+) => { $(
        impl $labels {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
        }

        impl EncodeLabelValue for $labels {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
                let word = match self {
                    $(Self::$variant => $word),+
                };
                EncodeLabelValue::encode(&word, encoder)
            }
        }
    )+ };
}

spell! {
    Attempt { Opened: "opened", Failed: "failed" }
    Ended { Closed: "closed", Failed: "failed", OutOfStep: "out_of_step" }
    Outcome { Full: "full", Delta: "delta", Gap: "gap", Malformed: "malformed" }
    Part { Pod: "pod", Credentials: "credentials", Keys: "keys" }
}

/// Labels of `kiam_agent_server_attempts_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AttemptLabels {
    /// What came of it.
    pub result: Attempt,
}

/// Labels of `kiam_agent_server_streams_ended_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabels {
    /// How.
    pub reason: Ended,
}

/// Labels of `kiam_agent_updates_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpdateLabels {
    /// What was done with it.
    pub outcome: Outcome,
}

/// Labels of `kiam_agent_update_parts_left_out_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LeftOutLabels {
    /// What.
    pub part: Part,
}

impl ControlMetrics {
    /// Counts that are shown by `registry`, which adds no prefix.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            connected: Gauge::default(),
            attempts: Family::default(),
            streams_ended: Family::default(),
            updates: Family::default(),
            left_out: Family::default(),
            // 10 microseconds to 0.3 seconds.
            apply_seconds: Histogram::new(exponential_buckets(1e-5, 2.0, 16)),
            tls: TlsMetrics::default(),
        };
        metrics.start_at_zero();
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let kiam = registry.sub_registry_with_prefix("kiam_agent");
        kiam.register(
            "server_connected",
            "Whether a stream with a server is open",
            self.connected.clone(),
        );
        kiam.register(
            "server_attempts",
            "Server addresses tried",
            self.attempts.clone(),
        );
        kiam.register(
            "server_streams_ended",
            "Streams with a server that ended",
            self.streams_ended.clone(),
        );
        kiam.register("updates", "Updates received", self.updates.clone());
        kiam.register(
            "update_parts_left_out",
            "Parts of updates that break a rule of the protocol",
            self.left_out.clone(),
        );
        kiam.register(
            "update_apply_seconds",
            "From an update's arrival until the data plane sees it",
            self.apply_seconds.clone(),
        );
        let tls = registry.sub_registry_with_prefix("grpc_client_tls_certificate");
        tls.register(
            "expiry_seconds",
            "Unix time at which the client certificate ends",
            self.tls.expiry.clone(),
        );
        tls.register(
            "update_error",
            "Whether the certificate files could not be used when last read",
            self.tls.update_error.clone(),
        );
        tls.register(
            "verify_error",
            "Whether the client certificate does not verify against the authorities",
            self.tls.verify_error.clone(),
        );
    }

    /// Makes every label exist, so that a rate is right from the first event on.
    fn start_at_zero(&self) {
        for &result in Attempt::ALL {
            drop(self.attempts.get_or_create(&AttemptLabels { result }));
        }
        for &reason in Ended::ALL {
            drop(self.streams_ended.get_or_create(&EndLabels { reason }));
        }
        for &outcome in Outcome::ALL {
            drop(self.updates.get_or_create(&UpdateLabels { outcome }));
        }
        for &part in Part::ALL {
            drop(self.left_out.get_or_create(&LeftOutLabels { part }));
        }
    }
}
