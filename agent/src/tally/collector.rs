//! Adds the workers' counts up when someone scrapes.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use kiam_wire::Refusal;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::histogram::{BOUNDS_US, Sums};
use super::{Handler, Limited, Tallies, Tally};
use crate::clock::Now;
use crate::response::Status;
use crate::snapshot::{Reader, Source};

/// The data plane's metrics.
#[derive(Debug)]
pub(super) struct DataPlane {
    tallies: Tallies,
    snapshots: Source,
}

type Encoded = Result<(), fmt::Error>;

impl DataPlane {
    pub(super) fn new(tallies: Tallies, reader: Reader) -> Self {
        Self {
            tallies,
            snapshots: reader.into_source(),
        }
    }

    fn sum(&self, count: impl Fn(&Tally) -> &AtomicU64) -> u64 {
        self.tallies
            .sum(|tally| count(tally).load(Ordering::Relaxed))
    }

    fn counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        count: impl Fn(&Tally) -> &AtomicU64,
    ) -> Encoded {
        encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&self.sum(count), None)
    }

    /// A counter that kiam labelled with its only handler.
    fn handler_counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help, handler): (&str, &str, Handler),
        count: impl Fn(&Tally) -> &AtomicU64,
    ) -> Encoded {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric
            .encode_family(&[("handler", handler.as_str())])?
            .encode_counter::<NoLabelSet, _, u64>(&self.sum(count), None)
    }

    fn histogram(&self, add: impl Fn(&Tally, &mut Sums)) -> (f64, u64, Vec<(f64, u64)>) {
        let mut sums = Sums::default();
        for tally in self.tallies.workers.iter() {
            add(tally, &mut sums);
        }
        let mut buckets: Vec<(f64, u64)> = BOUNDS_US
            .iter()
            .zip(&sums.buckets)
            .map(|(bound, count)| {
                (
                    std::time::Duration::from_micros(*bound).as_secs_f64(),
                    *count,
                )
            })
            .collect();
        // Only this is written as `+Inf`, without which no quantile can be computed.
        buckets.push((f64::INFINITY, sums.beyond));
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum_ns = u64::try_from(sums.sum_ns).unwrap_or(u64::MAX);
        let sum = std::time::Duration::from_nanos(sum_ns).as_secs_f64();
        (sum, count, buckets)
    }

    fn handlers(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let count = |handler: Handler, place: usize| {
            self.tallies.sum(|tally| {
                tally
                    .handlers
                    .get(handler.index())
                    .and_then(|one| one.responses.get(place))
                    .map_or(0, |count| count.load(Ordering::Relaxed))
            })
        };
        let mut responses = encoder.encode_descriptor(
            "kiam_metadata_responses",
            "Responses by handler and status",
            None,
            MetricType::Counter,
        )?;
        for handler in Handler::ALL {
            let codes = Status::ALL.map(|status| status.code().to_string());
            let codes = codes.iter().map(String::as_str).chain(["other"]);
            for (place, code) in codes.enumerate() {
                let sum = count(handler, place);
                // Some hundred series, most of which can never be: only what has happened, and 200.
                if sum > 0 || code == "200" {
                    responses
                        .encode_family(&[("handler", handler.as_str()), ("code", code)])?
                        .encode_counter::<NoLabelSet, _, u64>(&sum, None)?;
                }
            }
        }
        let mut success = encoder.encode_descriptor(
            "kiam_metadata_success",
            "Responses with status 200 by handler",
            None,
            MetricType::Counter,
        )?;
        for handler in Handler::ALL {
            success
                .encode_family(&[("handler", handler.as_str())])?
                .encode_counter::<NoLabelSet, _, u64>(&count(handler, 0), None)?;
        }
        let mut latency = encoder.encode_descriptor(
            "kiam_metadata_handler_latency",
            "From a request's first byte to its answer",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for handler in Handler::ALL {
            let (sum, count, buckets) = self.histogram(|tally, sums| {
                if let Some(one) = tally.handlers.get(handler.index()) {
                    one.latency.add_to(sums);
                }
            });
            latency
                .encode_family(&[("handler", handler.as_str())])?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn kiams(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        self.handler_counter(
            encoder,
            (
                "kiam_metadata_empty_role",
                "Requests of pods that have no role",
                Handler::RoleName,
            ),
            |tally| &tally.empty_role,
        )?;
        self.handler_counter(
            encoder,
            (
                "kiam_metadata_find_role_errors",
                "Role lists that could not be given in time",
                Handler::RoleName,
            ),
            |tally| &tally.find_role_errors,
        )?;
        self.handler_counter(
            encoder,
            (
                "kiam_metadata_credential_fetch_errors",
                "Credentials that could not be given in time",
                Handler::Credentials,
            ),
            |tally| &tally.credential_fetch_errors,
        )?;
        self.counter(
            encoder,
            "kiam_metadata_proxy_requests_blocked",
            "Requests for metadata that --allow-route-regexp does not allow",
            |tally| &tally.proxy_blocked,
        )
    }

    fn parking(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        self.gauge(
            encoder,
            "kiam_agent_parked_requests",
            "Requests waiting for their pod",
            |t| t.parked_now.load(Ordering::Relaxed),
        )?;
        self.counter(
            encoder,
            "kiam_agent_parked",
            "Requests that had to wait",
            |t| &t.parked,
        )?;
        self.counter(
            encoder,
            "kiam_agent_parked_timed_out",
            "Requests that waited in vain and were answered 503",
            |t| &t.parked_timed_out,
        )?;
        self.counter(
            encoder,
            "kiam_agent_parked_abandoned",
            "Requests whose client hung up while it waited",
            |t| &t.parked_gone,
        )?;
        let (sum, count, buckets) = self.histogram(|tally, sums| tally.parked_for.add_to(sums));
        encoder
            .encode_descriptor(
                "kiam_agent_parked_for",
                "How long requests waited for their pod",
                Some(&Unit::Seconds),
                MetricType::Histogram,
            )?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn sending(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let (sum, count, buckets) = self.histogram(|tally, sums| tally.sending.add_to(sums));
        encoder
            .encode_descriptor(
                "kiam_agent_sending",
                "From an answer's composition until the kernel had all of it",
                Some(&Unit::Seconds),
                MetricType::Histogram,
            )?
            .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn gauge(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&Tally) -> i64,
    ) -> Encoded {
        let sum: i64 = self.tallies.workers.iter().map(value).sum();
        encoder
            .encode_descriptor(name, help, None, MetricType::Gauge)?
            .encode_gauge(&sum)
    }

    fn turned_away(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let mut refused = encoder.encode_descriptor(
            "kiam_agent_refused",
            "Requests of pods whose role is refused, by reason",
            None,
            MetricType::Counter,
        )?;
        for (place, reason) in Refusal::ALL.iter().enumerate() {
            let sum = self.sum_at(place, |tally| &tally.refused);
            refused
                .encode_family(&[("reason", reason.as_str())])?
                .encode_counter::<NoLabelSet, _, u64>(&sum, None)?;
        }
        let mut limited = encoder.encode_descriptor(
            "kiam_agent_limited",
            "Requests and connections turned away, by limit",
            None,
            MetricType::Counter,
        )?;
        for limit in Limited::ALL {
            let sum = self.sum_at(limit.index(), |tally| &tally.limited);
            limited
                .encode_family(&[("limit", limit.as_str())])?
                .encode_counter::<NoLabelSet, _, u64>(&sum, None)?;
        }
        self.counter(encoder, "kiam_agent_accept_errors", "Failed accepts", |t| {
            &t.accept_errors
        })?;
        self.counter(
            encoder,
            "kiam_agent_panics",
            "Connections ended by a panic",
            |t| &t.panics,
        )
    }

    fn sum_at<const N: usize>(
        &self,
        place: usize,
        counts: impl Fn(&Tally) -> &[AtomicU64; N],
    ) -> u64 {
        self.tallies.sum(|tally| {
            counts(tally)
                .get(place)
                .map_or(0, |count| count.load(Ordering::Relaxed))
        })
    }

    fn driver(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let mut driver = encoder.encode_descriptor(
            "kiam_agent_driver",
            "Workers by the system interface that moves their bytes",
            None,
            MetricType::Gauge,
        )?;
        for (number, name) in [(1, "io_uring"), (2, "epoll")] {
            let sum = self
                .tallies
                .sum(|tally| u64::from(tally.driver.load(Ordering::Relaxed) == number));
            driver
                .encode_family(&[("driver", name)])?
                .encode_gauge(&sum)?;
        }
        Ok(())
    }

    fn snapshot(&self, encoder: &mut DescriptorEncoder<'_>) -> Encoded {
        let now = Now::read();
        let mut reader = self.snapshots.reader();
        let snapshot = reader.current();
        let mut gauge = |name: &str, help: &str, value: f64| {
            encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&value)
        };
        let count = |count: usize| u32::try_from(count).map_or(f64::MAX, f64::from);
        let age = now
            .monotonic
            .saturating_duration_since(snapshot.published_at().monotonic);
        gauge(
            "kiam_agent_snapshot_age_seconds",
            "Since the snapshot being served was published",
            age.as_secs_f64(),
        )?;
        if let Some(revision) = snapshot.revision() {
            // Beyond 2^32 updates the exact number no longer matters to anyone.
            let number = u32::try_from(revision.number).unwrap_or(u32::MAX);
            gauge(
                "kiam_agent_snapshot_revision",
                "The number of the revision being served; starts again with every server",
                f64::from(number),
            )?;
        }
        gauge(
            "kiam_agent_snapshot_addresses",
            "Pod addresses that can be answered",
            count(snapshot.addresses()),
        )?;
        gauge(
            "kiam_agent_snapshot_credentials",
            "Credential ids that pods of the node refer to",
            count(snapshot.credentials()),
        )?;
        Ok(())
    }
}

impl Collector for DataPlane {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let encoder = &mut encoder;
        self.handlers(encoder)?;
        self.kiams(encoder)?;
        self.parking(encoder)?;
        self.sending(encoder)?;
        self.turned_away(encoder)?;
        self.gauge(
            encoder,
            "kiam_agent_connections_open",
            "Open connections",
            |tally| tally.connections_now.load(Ordering::Relaxed),
        )?;
        self.counter(
            encoder,
            "kiam_agent_connections",
            "Accepted connections",
            |tally| &tally.connections,
        )?;
        self.driver(encoder)?;
        self.snapshot(encoder)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::snapshot::Publisher;

    #[test]
    fn whoever_scrapes_keeps_no_snapshot() {
        let mut publisher = Publisher::new(Now::read());
        let mut registry = Registry::default();
        Tallies::new(1).register(&mut registry, publisher.reader());
        for _ in 0..2 {
            publisher.publish(crate::snapshot::Snapshot::empty(Now::read()));
            encode(&mut String::new(), &registry).unwrap();
        }
        assert_eq!(publisher.reap(), 0);
    }

    #[test]
    fn workers_are_added_up_under_kiams_names() {
        let tallies = Tallies::new(2);
        for worker in 0..2 {
            let tally = tallies.of(worker).unwrap();
            tally.answered(Handler::RoleName, 200, Duration::from_micros(20));
            tally.limited(Limited::PeerRequests);
            tally.set_driver("epoll");
        }
        let mut registry = Registry::default();
        tallies.register(&mut registry, Publisher::new(Now::read()).reader());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"kiam_metadata_success_total{handler="roleName"} 2"#,
            r#"kiam_metadata_responses_total{handler="roleName",code="200"} 2"#,
            r#"kiam_metadata_handler_latency_seconds_bucket{le="0.00001",handler="roleName"} 0"#,
            r#"kiam_metadata_handler_latency_seconds_bucket{le="0.000025",handler="roleName"} 2"#,
            r#"kiam_metadata_handler_latency_seconds_bucket{le="+Inf",handler="roleName"} 2"#,
            r#"kiam_metadata_handler_latency_seconds_count{handler="roleName"} 2"#,
            r#"kiam_agent_limited_total{limit="peer_requests"} 2"#,
            r#"kiam_agent_driver{driver="epoll"} 2"#,
            "kiam_metadata_proxy_requests_blocked_total 0",
        ] {
            assert!(
                text.lines().any(|have| have == line),
                "no {line} in\n{text}"
            );
        }
    }
}
