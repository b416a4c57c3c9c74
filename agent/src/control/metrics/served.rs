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
    least_left: Option<Duration>,
    heard_ago_seconds: Option<f64>,
    fenced: usize,
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
            // A server that has just started calls pending what agents hold already.
            let (state, has_role) = match view.pod.state {
                PodState::Granted(_) => ("granted", true),
                PodState::Pending(_) => ("pending", true),
                PodState::Refused(_) => ("refused", false),
                PodState::NoRole => ("no_role", false),
            };
            *counts.pods.entry(state).or_default() += 1;
            let left = view.expires_at.map(|expires_at| expires_at.since(now.wall));
            if has_role && left.is_none_or(|left| left < self.min_remaining) {
                counts.below_min_remaining += 1;
            }
            let left = left.or_else(|| view.has_ended.then_some(Duration::ZERO));
            counts.least_left = counts.least_left.into_iter().chain(left).min();
        }
        counts.fenced = served.store().fenced_owned().count();
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
            least_left,
            heard_ago_seconds,
            fenced,
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
        ConstGauge::new(i64::try_from(fenced).unwrap_or(i64::MAX)).encode(
            encoder.encode_descriptor(
                "kiam_agent_fenced_addresses",
                "Pods' addresses that nobody is answered from because their network went",
                None,
                gauge.metric_type(),
            )?,
        )?;
        if let Some(least_left) = least_left {
            ConstGauge::new(least_left.as_secs_f64()).encode(encoder.encode_descriptor(
                "kiam_agent_min_remaining_lifetime_seconds",
                "What is left of the credentials that end first, 0 while a pod waits for new ones",
                None,
                gauge.metric_type(),
            )?)?;
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kiam_wire::credentials::Unchecked;
    use kiam_wire::{CredentialId, Credentials, Full, Pod, PodUid, Revision, UnixSeconds, Update};

    use super::*;
    use crate::snapshot::store::Doors;
    use crate::snapshot::{Publisher, Store};

    const ID: CredentialId = CredentialId::new([7; 32]);

    fn full(number: u64, state: PodState, credentials: Vec<Arc<Credentials>>) -> Update {
        let pod = Pod {
            uid: PodUid::try_new("a").unwrap(),
            namespace: "default".into(),
            name: "a".into(),
            service_account: "default".into(),
            ips: vec![],
            host_network: false,
            imds_v2_required: false,
            state,
        };
        Update::Full(Full {
            revision: Revision { epoch: 1, number },
            pods: vec![pod],
            credentials,
            keys: None,
        })
    }

    fn lasting(now: Now, life_s: i64) -> Arc<Credentials> {
        let parts = Unchecked {
            id: ID,
            role_name: "reader".into(),
            role_arn: "arn:aws:iam::123456789012:role/reader".into(),
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: String::from("secret").into(),
            session_token: String::from("token").into(),
            issued_at: now.wall,
            expires_at: UnixSeconds::new(now.wall.get() + life_s),
        };
        Arc::new(Credentials::try_new(parts).unwrap())
    }

    #[test]
    fn what_is_held_counts_whatever_the_server_calls_it() {
        let now = Now::read();
        let after = |seconds: i64| Now {
            wall: UnixSeconds::new(now.wall.get() + seconds),
            monotonic: now.monotonic + Duration::from_secs(seconds.unsigned_abs()),
        };
        let served = SharedServed::new(Store::new(Doors::Metadata), Publisher::new(now), now);
        let collector = ServedCollector::new(served.clone(), Duration::from_mins(5));
        let check = |now, below, left_s: Option<u64>| {
            let counts = collector.count(now);
            assert_eq!(counts.below_min_remaining, below);
            assert_eq!(counts.least_left, left_s.map(Duration::from_secs));
        };
        check(now, 0, None);
        let apply = |update, now| {
            served.lock().apply(update, now).unwrap();
        };
        apply(full(1, PodState::Pending(ID), vec![]), now);
        check(now, 1, None);
        apply(full(2, PodState::Granted(ID), vec![lasting(now, 600)]), now);
        check(now, 0, Some(600));
        // A restarted server.
        apply(full(3, PodState::Pending(ID), vec![]), now);
        check(now, 0, Some(600));
        check(after(400), 1, Some(200));
        served.lock().expire(after(700));
        check(after(700), 1, Some(0));
        apply(full(4, PodState::Pending(ID), vec![]), after(700));
        check(after(700), 1, Some(0));
        let late = after(800);
        apply(
            full(5, PodState::Granted(ID), vec![lasting(late, 600)]),
            late,
        );
        check(late, 0, Some(600));
    }
}
