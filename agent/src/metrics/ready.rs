//! Whether the node may be given pods, and what is missing, as `/readyz` says.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::readiness::{Readiness, Reason};

/// Asks at each scrape.
#[derive(Debug)]
pub struct Ready(Readiness);

impl Ready {
    /// Asks `readiness`.
    pub const fn new(readiness: Readiness) -> Self {
        Self(readiness)
    }
}

impl Collector for Ready {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let missing = self.0.missing();
        ConstGauge::new(i64::from(missing.is_empty())).encode(encoder.encode_descriptor(
            "kiam_agent_ready",
            "1 while the node may be given pods, as /readyz says",
            None,
            MetricType::Gauge,
        )?)?;
        let mut family = encoder.encode_descriptor(
            "kiam_agent_not_ready",
            "1 for each reason for which the agent is not ready",
            None,
            MetricType::Gauge,
        )?;
        for reason in Reason::ALL {
            let holds = i64::from(missing.contains(&reason));
            family
                .encode_family(&[("reason", reason.as_str())])?
                .encode_gauge(&holds)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[track_caller]
    fn check(readiness: &Readiness, expected: &[&str]) {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Ready::new(readiness.clone())));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in expected {
            assert!(
                text.lines().any(|have| have == *line),
                "no {line} in\n{text}"
            );
        }
    }

    #[test]
    fn each_reason_is_a_series_of_its_own() {
        let readiness = Readiness::new();
        let not_yet = readiness.not_yet(Reason::NoSnapshot);
        check(
            &readiness,
            &[
                "kiam_agent_ready 0",
                r#"kiam_agent_not_ready{reason="starting"} 0"#,
                r#"kiam_agent_not_ready{reason="no_snapshot"} 1"#,
                r#"kiam_agent_not_ready{reason="not_intercepting"} 0"#,
                r#"kiam_agent_not_ready{reason="draining"} 0"#,
            ],
        );
        drop(not_yet);
        check(
            &readiness,
            &[
                "kiam_agent_ready 1",
                r#"kiam_agent_not_ready{reason="no_snapshot"} 0"#,
            ],
        );
    }
}
