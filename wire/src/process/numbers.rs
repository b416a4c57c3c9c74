//! The process's own numbers, under the names every Prometheus client gives them.
//!
//! Read from `/proc/self` when someone asks. A number that cannot be read is left out.

use std::fmt;
use std::fs;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::UnixSeconds;

/// Reads the numbers at each scrape.
#[derive(Debug)]
pub struct Numbers {
    started_at: UnixSeconds,
}

impl Numbers {
    /// The process that started at `started_at`.
    pub const fn new(started_at: UnixSeconds) -> Self {
        Self { started_at }
    }
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |key| number_in(&status, key)?.checked_mul(1024);
        let most_fds = getrlimit(Resource::Nofile).current;
        for (name, help, value) in [
            (
                "process_start_time_seconds",
                "Unix time at which the process started",
                Some(self.started_at.get()),
            ),
            (
                "process_resident_memory_bytes",
                "Memory in use",
                bytes("VmRSS:"),
            ),
            (
                "process_virtual_memory_bytes",
                "Address space in use",
                bytes("VmSize:"),
            ),
            ("process_threads", "Threads", number_in(&status, "Threads:")),
            ("process_open_fds", "Open file descriptors", open_fds()),
            (
                "process_max_fds",
                "The most file descriptors that may be open",
                most_fds.and_then(|most| i64::try_from(most).ok()),
            ),
        ] {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(
                    name,
                    help,
                    None,
                    gauge.metric_type(),
                )?)?;
            }
        }
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = Duration::try_from(used).map_or(0.0, |used| used.as_secs_f64());
        let cpu = ConstCounter::new(seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            "Processor time used",
            None,
            cpu.metric_type(),
        )?)
    }
}

fn number_in(status: &str, key: &str) -> Option<i64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Without the one that reading the directory takes.
fn open_fds() -> Option<i64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    i64::try_from(open.saturating_sub(1)).ok()
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_line_of_status_is_read() {
        let status = "Name:\tkiam-agent\nVmRSS:\t    1234 kB\nThreads:\t3\n";
        assert_eq!(number_in(status, "VmRSS:"), Some(1234));
        assert_eq!(number_in(status, "Threads:"), Some(3));
        assert_eq!(number_in(status, "VmSwap:"), None);
    }

    #[test]
    fn every_number_is_there_under_its_usual_name() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Numbers::new(UnixSeconds::new(1_800_000_000))));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for name in [
            "process_start_time_seconds",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_threads",
            "process_open_fds",
            "process_max_fds",
            "process_cpu_seconds_total",
        ] {
            let line = text
                .lines()
                .find(|line| line.starts_with(&format!("{name} ")));
            let value: f64 = line
                .unwrap_or_else(|| panic!("{name} is missing in {text}"))
                .rsplit(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert!(value > 0.0, "{name} is {value}");
        }
    }
}
