//! The process's own numbers, under the names every Prometheus client gives them.
//!
//! Read from `/proc/self` when someone asks. A number that cannot be read is left out.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::clock::Now;

/// Reads the numbers at each scrape.
#[derive(Debug)]
pub struct Process {
    started_at: Now,
}

impl Process {
    /// The process that started at `started_at`.
    pub const fn new(started_at: Now) -> Self {
        Self { started_at }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, value: Option<i64>| match value {
            None => Ok(()),
            Some(value) => {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
            }
        };
        gauge(
            "process_start_time_seconds",
            "Unix time at which the process started",
            Some(self.started_at.wall.get()),
        )?;
        gauge(
            "process_resident_memory_bytes",
            "Memory in use",
            status_bytes("VmRSS:"),
        )?;
        gauge(
            "process_virtual_memory_bytes",
            "Address space in use",
            status_bytes("VmSize:"),
        )?;
        gauge("process_threads", "Threads", status_number("Threads:"))?;
        gauge("process_open_fds", "Open file descriptors", open_fds())?;
        gauge(
            "process_max_fds",
            "The most file descriptors that may be open",
            getrlimit(Resource::Nofile)
                .current
                .and_then(|most| i64::try_from(most).ok()),
        )?;
        let cpu = ConstCounter::new(cpu_seconds());
        cpu.encode(encoder.encode_descriptor(
            "process_cpu_seconds",
            "Processor time used",
            None,
            cpu.metric_type(),
        )?)
    }
}

fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    std::time::Duration::try_from(used).map_or(0.0, |used| used.as_secs_f64())
}

/// A line of `/proc/self/status` that is in kB.
fn status_bytes(key: &str) -> Option<i64> {
    status_number(key)?.checked_mul(1024)
}

fn status_number(key: &str) -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    number_in(&status, key)
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
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

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
        registry.register_collector(Box::new(Process::new(Now::read())));
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
