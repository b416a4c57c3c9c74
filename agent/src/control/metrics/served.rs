//! What the node is served, counted when someone scrapes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kiam_wire::PodState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use crate::clock::Now;
use crate::control::served::SharedServed;

/// Counts the store's pods and what little life credentials have left.
#[derive(Debug)]
pub struct ServedCollector {
    served: SharedServed,
    min_remaining: Duration,
}

/// One scrape.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    pods: BTreeMap<&'static str, i64>,
    below_min_remaining: i64,
    heard_ago_seconds: Option<f64>,
}

impl ServedCollector {
    /// Credentials with less than `min_remaining` left are counted apart.
    pub const fn new(served: SharedServed, min_remaining: Duration) -> Self {
        Self {
            served,
            min_remaining,
        }
    }

    fn count(&self, now: Now) -> Counts {
        let mut counts = Counts::default();
        for state in ["granted", "pending", "refused", "no_role"] {
            counts.pods.insert(state, 0);
        }
        let served = self.served.lock();
        for view in served.store().pods() {
            let (state, granted) = match view.pod.state {
                PodState::Granted(_) => ("granted", true),
                PodState::Pending(_) => ("pending", false),
                PodState::Refused(_) => ("refused", false),
                PodState::NoRole => ("no_role", false),
            };
            *counts.pods.entry(state).or_default() += 1;
            let left = view.expires_at.map(|expires_at| expires_at.since(now.wall));
            if granted && left.is_none_or(|left| left < self.min_remaining) {
                counts.below_min_remaining += 1;
            }
        }
        counts.heard_ago_seconds = served.heard_at().map(|heard_at| {
            let ago = now.monotonic.saturating_duration_since(heard_at.monotonic);
            ago.as_secs_f64()
        });
        counts
    }
}

impl Collector for ServedCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Counts {
            pods,
            below_min_remaining,
            heard_ago_seconds,
        } = self.count(Now::read());
        let gauge = ConstGauge::new(0_i64);
        let mut family = encoder.encode_descriptor(
            "kiam_agent_pods",
            "Pods of this node by what they are answered",
            None,
            gauge.metric_type(),
        )?;
        for (state, count) in pods {
            ConstGauge::new(count).encode(family.encode_family(&[("state", state)])?)?;
        }
        ConstGauge::new(below_min_remaining).encode(encoder.encode_descriptor(
            "kiam_agent_pods_below_min_remaining",
            "Pods whose credentials have less than --min-remaining left, or are missing",
            None,
            gauge.metric_type(),
        )?)?;
        let Some(heard_ago) = heard_ago_seconds else {
            return Ok(());
        };
        ConstGauge::new(heard_ago).encode(encoder.encode_descriptor(
            "kiam_agent_last_update_age_seconds",
            "Since a server last sent an update",
            None,
            gauge.metric_type(),
        )?)
    }
}
