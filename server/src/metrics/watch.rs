//! What the watches and the writes to the Kubernetes API count.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{label, wide_buckets, words};
use crate::nodes::Kind;

words! {
    /// Where a watch failed.
    WatchTrouble {
        /// No client could be made.
        Connect = "connect",
        /// The list.
        List = "list",
        /// Opening the watch.
        Start = "start",
        /// The open watch.
        Watch = "watch",
        /// An object that cannot be read.
        Object = "object",
    }
}

words! {
    /// What became of a Kubernetes event.
    EventOutcome {
        /// Written as new.
        Written = "written",
        /// Added to one written before.
        Repeated = "repeated",
        /// Left out, because too many were to be written.
        Limited = "limited",
        /// The queue was full.
        Dropped = "dropped",
        /// The API server refused it or did not answer.
        Failed = "failed",
    }
}

label!(ByKind { kind: Kind });
label!(ByOutcome {
    outcome: EventOutcome
});

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Failure {
    kind: Kind,
    at: WatchTrouble,
}

impl EncodeLabelSet for Failure {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        ("kind", self.kind.as_str()).encode(encoder.encode_label())?;
        ("at", self.at.as_str()).encode(encoder.encode_label())
    }
}

/// Watching the cluster.
#[derive(Debug, Clone)]
pub struct WatchMetrics {
    events: Family<ByKind, Counter>,
    lists: Family<ByKind, Counter>,
    errors: Family<Failure, Counter>,
    lag: Histogram,
    pods: Gauge,
    contested: Gauge,
}

impl WatchMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            events: Family::default(),
            lists: Family::default(),
            errors: Family::default(),
            lag: wide_buckets(),
            pods: Gauge::default(),
            contested: Gauge::default(),
        };
        for kind in Kind::ALL {
            drop(metrics.events.get_or_create(&ByKind { kind }));
            drop(metrics.lists.get_or_create(&ByKind { kind }));
            for at in WatchTrouble::ALL {
                drop(metrics.errors.get_or_create(&Failure { kind, at: *at }));
            }
        }
        // kiam dropped pods when its queue was full; here a full queue slows the watch down, so that
        // this stays zero. It is kept for the alerts that look at it.
        registry.register(
            "kiam_k8s_dropped_pods",
            "Pods announced by the watch that were dropped; always zero",
            Counter::<u64>::default(),
        );
        registry.register(
            "kiam_k8s_watch_events",
            "What the watches said",
            metrics.events.clone(),
        );
        registry.register(
            "kiam_k8s_lists",
            "Complete lists; more than one means that a watch had to start over",
            metrics.lists.clone(),
        );
        registry.register(
            "kiam_k8s_watch_errors",
            "Failures of the watches, each waited out",
            metrics.errors.clone(),
        );
        registry.register(
            "kiam_k8s_watch_lag_seconds",
            "From the arrival of a watch event to its having been taken in",
            metrics.lag.clone(),
        );
        registry.register("kiam_k8s_pods", "Pods known", metrics.pods.clone());
        registry.register(
            "kiam_address_conflicts",
            "Addresses that several running pods of a node show, so that none is served by it",
            metrics.contested.clone(),
        );
        metrics
    }

    /// A watch said something.
    pub fn event(&self, kind: Kind) {
        self.events.get_or_create(&ByKind { kind }).inc();
    }

    /// A list is complete.
    pub fn listed(&self, kind: Kind) {
        self.lists.get_or_create(&ByKind { kind }).inc();
    }

    /// A watch failed.
    pub fn trouble(&self, kind: Kind, at: WatchTrouble) {
        self.errors.get_or_create(&Failure { kind, at }).inc();
    }

    /// An event was taken in so long after it arrived.
    pub fn lag(&self, lag: Duration) {
        self.lag.observe(lag.as_secs_f64());
    }

    /// So many addresses are shown by several running pods.
    pub fn contested(&self, addresses: usize) {
        let addresses = i64::try_from(addresses).unwrap_or(i64::MAX);
        self.contested.set(addresses);
    }

    /// What [`WatchMetrics::contested`] was told last.
    #[cfg(test)]
    pub(crate) fn contested_now(&self) -> i64 {
        self.contested.get()
    }

    /// So many pods are known.
    pub fn pods(&self, pods: usize) {
        self.pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
    }
}

/// What is written to the Kubernetes API.
#[derive(Debug, Clone)]
pub struct WriteMetrics {
    events: Family<ByOutcome, Counter>,
    taints: Counter,
    taint_errors: Counter,
}

impl WriteMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            events: Family::default(),
            taints: Counter::default(),
            taint_errors: Counter::default(),
        };
        for outcome in EventOutcome::ALL {
            drop(
                metrics
                    .events
                    .get_or_create(&ByOutcome { outcome: *outcome }),
            );
        }
        registry.register(
            "kiam_k8s_events",
            "Kubernetes events about pods, by what became of them",
            metrics.events.clone(),
        );
        registry.register(
            "kiam_k8s_startup_taints_removed",
            "Nodes freed of the start-up taint",
            metrics.taints.clone(),
        );
        registry.register(
            "kiam_k8s_startup_taint_errors",
            "Nodes that could not be freed of the start-up taint at the first attempt",
            metrics.taint_errors.clone(),
        );
        metrics
    }

    /// What became of an event.
    pub fn event(&self, outcome: EventOutcome) {
        self.events.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// A node was freed of its taint.
    pub fn untainted(&self) {
        self.taints.inc();
    }

    /// A node could not be freed of its taint.
    pub fn taint_error(&self) {
        self.taint_errors.inc();
    }
}
