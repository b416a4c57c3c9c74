//! What deciding and fetching count.

use std::time::Duration;

use kiam_wire::{PodState, Refusal, UnixSeconds};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{label, words};

words! {
    /// What pods are told at the moment.
    PodWord {
        /// Credentials.
        Granted = "granted",
        /// Credentials that are on the way.
        Pending = "pending",
        /// Nothing, although they asked.
        Refused = "refused",
        /// Nothing, as they asked for none.
        NoRole = "no_role",
    }
}

impl PodWord {
    /// The word for a state.
    pub const fn of(state: &PodState) -> Self {
        match state {
            PodState::Granted(_) => Self::Granted,
            PodState::Pending(_) => Self::Pending,
            PodState::Refused(_) => Self::Refused,
            PodState::NoRole => Self::NoRole,
        }
    }
}

label!(ByState { state: PodWord });

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Word(&'static str);

impl Word {
    const fn as_str(self) -> &'static str {
        self.0
    }
}

label!(ByDecision { decision: Word });

/// Deciding.
#[derive(Debug, Clone)]
pub struct DecisionMetrics {
    decisions: Family<ByDecision, Counter>,
    states: Family<ByState, Gauge>,
}

impl DecisionMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            decisions: Family::default(),
            states: Family::default(),
        };
        let refusals = Refusal::ALL.map(Refusal::as_str);
        for decision in ["granted", "no_role"].into_iter().chain(refusals) {
            let decision = Word(decision);
            drop(metrics.decisions.get_or_create(&ByDecision { decision }));
        }
        for state in PodWord::ALL {
            drop(metrics.states.get_or_create(&ByState { state: *state }));
        }
        registry.register(
            "kiam_decisions",
            "Decisions about pods, by result",
            metrics.decisions.clone(),
        );
        registry.register(
            "kiam_pods",
            "Pods on nodes, by what their node is told",
            metrics.states.clone(),
        );
        metrics
    }

    /// A pod was decided. `decision` is one of `granted`, `no_role` and the words of [`Refusal`].
    pub fn decided(&self, decision: &'static str) {
        let decision = Word(decision);
        self.decisions.get_or_create(&ByDecision { decision }).inc();
    }

    /// A pod's state went from one to the other; `None` is not being there.
    pub fn moved(&self, from: Option<PodWord>, to: Option<PodWord>) {
        if from == to {
            return;
        }
        if let Some(state) = from {
            self.states.get_or_create(&ByState { state }).dec();
        }
        if let Some(state) = to {
            self.states.get_or_create(&ByState { state }).inc();
        }
    }
}

/// Fetching.
#[derive(Debug, Clone)]
pub struct StsMetrics {
    cached: Gauge,
    hits: Counter,
    misses: Counter,
    slack: Histogram,
    soonest: Gauge,
}

impl StsMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            cached: Gauge::default(),
            hits: Counter::default(),
            misses: Counter::default(),
            // A minute to about 17 hours of remaining life.
            slack: Histogram::new(exponential_buckets(60.0, 2.0, 11)),
            soonest: Gauge::default(),
        };
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "kiam_sts_cacheSize",
            "Role sessions held",
            self.cached.clone(),
        );
        registry.register(
            "kiam_sts_cache_hit",
            "Pods that were granted credentials which were there already",
            self.hits.clone(),
        );
        registry.register(
            "kiam_sts_cache_miss",
            "Pods that were granted credentials which had to be fetched",
            self.misses.clone(),
        );
        registry.register(
            "kiam_sts_refresh_slack_seconds",
            "Life that was left in credentials when they were replaced",
            self.slack.clone(),
        );
        registry.register(
            "kiam_sts_soonest_expiry_timestamp_seconds",
            "When the first of the credentials being served ends; 0 when there are none",
            self.soonest.clone(),
        );
    }

    /// A pod was granted credentials that were there already, or not.
    pub fn wanted(&self, there: bool) {
        if there {
            self.hits.inc();
        } else {
            self.misses.inc();
        }
    }

    /// Credentials were replaced with so much life left.
    pub fn replaced(&self, slack: Duration) {
        self.slack.observe(slack.as_secs_f64());
    }

    /// What is held, and when the first of it ends.
    pub fn held(&self, sessions: usize, soonest: Option<UnixSeconds>) {
        self.cached.set(i64::try_from(sessions).unwrap_or(i64::MAX));
        self.soonest.set(soonest.map_or(0, UnixSeconds::get));
    }
}
