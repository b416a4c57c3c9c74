//! Every metric of the server, one struct per room.
//!
//! Names are kiam's where the meaning is the same, so that existing dashboards keep working; new
//! ones are in the same style. Labels are closed sets: never a pod, a role, a namespace or a node,
//! of which a cluster has too many.

mod agents;
mod connections;
mod sts;
mod watch;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use agents::{AgentMetrics, AuthOutcome, GrpcCode, StreamEnd, TlsMetrics};
pub use connections::{ConnectionMetrics, TurnedAway};
pub use sts::{DecisionMetrics, PodWord, StsMetrics};
pub use watch::{EventOutcome, WatchMetrics, WatchTrouble, WriteMetrics};

/// All of them, and the registry they are read from.
#[derive(Debug)]
pub struct Metrics {
    /// What they are read from.
    pub registry: Registry,
    /// Whether `/readyz` says yes; 0 while it does not, also while stopping.
    pub ready: Gauge,
    /// Watching the cluster.
    pub watch: WatchMetrics,
    /// Events and taints.
    pub writes: WriteMetrics,
    /// Deciding.
    pub decisions: DecisionMetrics,
    /// Holding credentials.
    pub sts: StsMetrics,
    /// Fetching them.
    pub fetchers: crate::sts::metrics::Metrics,
    /// Streams and their agents.
    pub agents: AgentMetrics,
    /// Certificates.
    pub tls: TlsMetrics,
    /// Connections of agents.
    pub connections: ConnectionMetrics,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register(
            "kiam_server_build",
            "What was built",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        let ready = Gauge::default();
        registry.register(
            "kiam_server_ready",
            "1 while agents may be sent here, as /readyz says",
            ready.clone(),
        );
        Self {
            ready,
            watch: WatchMetrics::new(&mut registry),
            writes: WriteMetrics::new(&mut registry),
            decisions: DecisionMetrics::new(&mut registry),
            sts: StsMetrics::new(&mut registry),
            fetchers: crate::sts::metrics::Metrics::new(&mut registry),
            agents: AgentMetrics::new(&mut registry),
            tls: TlsMetrics::new(&mut registry),
            connections: ConnectionMetrics::new(&mut registry),
            registry,
        }
    }

    /// The exposition, as `OpenMetrics` text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// 50 µs to 26 s: most of what is timed here takes well under a millisecond.
fn wide_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 20))
}

/// A label whose values are a closed set: written as the word that `as_str` gives.
macro_rules! label {
    ($type:ident { $field:ident: $value:ty }) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        struct $type {
            $field: $value,
        }
        impl prometheus_client::encoding::EncodeLabelSet for $type {
            fn encode(
                &self,
                encoder: &mut prometheus_client::encoding::LabelSetEncoder<'_>,
            ) -> Result<(), std::fmt::Error> {
                use prometheus_client::encoding::EncodeLabel;
                (stringify!($field), self.$field.as_str()).encode(encoder.encode_label())
            }
        }
    };
}
use label;

/// A closed set of words for a label.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($(#[$each:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $type { $($(#[$each])* $variant,)+ }

        impl $type {
            /// Every value, for metrics that start at zero.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word used in labels and logs.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
    };
}
use words;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kiams_names_are_there_from_the_start() {
        let text = Metrics::new().text().unwrap();
        for name in [
            "kiam_server_build_info",
            "kiam_server_ready",
            "kiam_sts_cacheSize",
            "kiam_sts_cache_hit_total",
            "kiam_sts_cache_miss_total",
            "kiam_sts_issuing_errors_total",
            "kiam_sts_assumerole_timing_seconds_bucket",
            "kiam_sts_assumerole_current",
            "kiam_k8s_dropped_pods_total",
            "grpc_server_tls_certificate_update_error",
            "grpc_server_tls_certificate_verify_error",
            "grpc_server_tls_certificate_expiry_seconds",
        ] {
            assert!(
                text.contains(&format!("\n{name}")),
                "{name} is missing:\n{text}"
            );
        }
    }

    #[test]
    fn closed_labels_start_at_zero() {
        let text = Metrics::new().text().unwrap();
        assert!(
            text.contains("kiam_k8s_watch_errors_total{kind=\"pods\",at=\"list\"} 0"),
            "{text}"
        );
        assert!(text.contains("kiam_decisions_total{decision=\"namespace_forbids\"} 0"));
        assert!(text.contains("kiam_agent_auth_total{outcome=\"accepted\"} 0"));
    }
}
