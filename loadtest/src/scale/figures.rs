//! The named figures of a run against a large cluster.

use std::time::{Duration, Instant};

use super::pace::Paced;
use crate::clock;
use crate::fleet::Seen;
use crate::gate::{self, Named};
use crate::numbers::{float, mebibytes, ms, ratio, us};
use crate::report::Usage;
use crate::simulation::Simulation;
use crate::system::ServerAlone;
use crate::verdict;

/// Every figure there can be. What a run did not measure it does not have.
pub(crate) const NAMES: &[&str] = &[
    "cold_start_s",
    "cold_start_cpu_s",
    "cold_sent_bytes_per_pod",
    "server_rss_quiet_mib",
    "server_rss_mib",
    "server_rss_bytes_per_pod",
    "push_min_ms",
    "push_p50_ms",
    "push_p99_ms",
    "push_max_ms",
    "changes",
    "changes_lost",
    "cpu_per_change_us",
    "bytes_per_change",
    "server_cpu_share",
    "refreshes",
    "bytes_per_refresh",
    "sts_calls_cold",
    "sts_calls",
    "updates",
    "streams",
    "disconnects",
    "violations",
    "generator_lag_p50_us",
    "generator_lag_p99_us",
    "generator_late_share",
    "reconnect_s",
    "reconnect_cpu_s",
    "reconnect_rss_mib",
    "reconnect_sts_calls",
];

/// From the start of the server until every node was served.
#[derive(Debug)]
pub(crate) struct Cold {
    /// How long that was.
    pub took: Duration,
    /// What the server had used by then.
    pub used: Usage,
    /// Bytes that its agents had been sent.
    pub bytes: u64,
    /// Pods of the cluster.
    pub pods: u32,
}

/// What everybody had counted at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    at: Instant,
    server: Usage,
    /// Sent to the agents.
    bytes: u64,
    /// Sessions that an agent was sent anew, and the bytes of those updates.
    refreshes: (u64, u64),
    sts_calls: u64,
}

impl Counts {
    /// Now.
    pub(crate) fn read(
        server: &ServerAlone,
        seen: &Seen,
        simulation: &Simulation,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            at: clock::now(),
            server: Usage::of(server.pid())?,
            bytes: seen.bytes(),
            refreshes: seen.refreshes(),
            sts_calls: simulation.sts().total(),
        })
    }
}

impl Cold {
    /// Of the start, and of the rest after it, which ended at `quiet`.
    pub(crate) fn figures(&self, quiet: &Counts) -> Named {
        let (pods, resident) = (f64::from(self.pods), quiet.server.resident_bytes);
        gate::measured([
            ("cold_start_s", Some(self.took.as_secs_f64())),
            ("cold_start_cpu_s", Some(self.used.cpu.as_secs_f64())),
            ("cold_sent_bytes_per_pod", ratio(float(self.bytes), pods)),
            ("server_rss_quiet_mib", Some(mebibytes(resident))),
            ("server_rss_bytes_per_pod", ratio(float(resident), pods)),
            ("sts_calls_cold", Some(float(quiet.sts_calls))),
        ])
    }
}

/// What the changes cost, by their number; without any there is no cost of one.
pub(crate) fn of_changes(before: &Counts, after: &Counts, made: u32) -> Named {
    let used = Usage::between(before.server, after.server);
    let elapsed = after.at.saturating_duration_since(before.at);
    let made = f64::from(made);
    let grown = |now: u64, then: u64| float(now.saturating_sub(then));
    let refreshes = grown(after.refreshes.0, before.refreshes.0);
    let refresh_bytes = grown(after.refreshes.1, before.refreshes.1);
    let cpu_per_change = used.cpu.and_then(|cpu| ratio(us(cpu), made));
    let cpu_share = used
        .cpu
        .and_then(|cpu| ratio(cpu.as_secs_f64(), elapsed.as_secs_f64()));
    gate::measured([
        ("server_rss_mib", Some(mebibytes(used.resident_bytes))),
        ("changes", Some(made)),
        ("cpu_per_change_us", cpu_per_change),
        (
            "bytes_per_change",
            ratio(grown(after.bytes, before.bytes), made),
        ),
        ("server_cpu_share", cpu_share),
        ("refreshes", Some(refreshes)),
        ("bytes_per_refresh", ratio(refresh_bytes, refreshes)),
        ("sts_calls", Some(float(after.sts_calls))),
    ])
}

/// What the agents saw, and how late the changes were made. `lost` of these no agent heard of.
pub(crate) fn of_the_fleet(seen: &Seen, paced: &Paced, lost: u64) -> Named {
    let (pushed, lag) = (seen.latencies(), &paced.lag);
    gate::measured([
        ("changes_lost", Some(float(lost))),
        ("push_min_ms", pushed.min().map(ms)),
        ("push_p50_ms", pushed.quantile(0.5).map(ms)),
        ("push_p99_ms", pushed.quantile(0.99).map(ms)),
        ("push_max_ms", pushed.max().map(ms)),
        ("updates", Some(float(seen.updates()))),
        ("streams", Some(float(seen.streams()))),
        ("disconnects", Some(float(seen.disconnects()))),
        ("violations", Some(float(seen.violations()))),
        ("generator_lag_p50_us", lag.quantile(0.5).map(us)),
        ("generator_lag_p99_us", lag.quantile(0.99).map(us)),
        ("generator_late_share", verdict::late_share(lag)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(at: Instant, cpu_ms: u64, bytes: u64, refreshes: (u64, u64)) -> Counts {
        let mut server = Usage::of(std::process::id()).unwrap();
        server.cpu = Duration::from_millis(cpu_ms);
        Counts {
            at,
            server,
            bytes,
            refreshes,
            sts_calls: 0,
        }
    }

    #[track_caller]
    fn check(figures: &Named, name: &str, expected: f64) {
        let got = figures[name];
        assert!((got - expected).abs() < 1e-6, "{name} is {got}");
    }

    #[test]
    fn costs_are_of_the_time_and_the_changes_they_were_measured_over() {
        let start = clock::now();
        let before = counts(start, 100, 1_000, (7, 700));
        let after = counts(start + Duration::from_secs(4), 300, 5_000, (9, 1_000));
        let figures = of_changes(&before, &after, 20);
        check(&figures, "cpu_per_change_us", 10_000.0);
        check(&figures, "bytes_per_change", 200.0);
        check(&figures, "server_cpu_share", 0.05);
        check(&figures, "refreshes", 2.0);
        check(&figures, "bytes_per_refresh", 150.0);
    }

    #[test]
    fn what_did_not_happen_had_no_cost() {
        let counts = counts(clock::now(), 100, 1_000, (7, 700));
        let figures = of_changes(&counts, &counts, 0);
        for absent in [
            "cpu_per_change_us",
            "bytes_per_change",
            "bytes_per_refresh",
            "server_cpu_share",
        ] {
            assert!(!figures.contains_key(absent), "{absent}");
        }
        let paced = Paced {
            made: 0,
            lag: crate::measure::Latencies::new(),
        };
        let figures = of_the_fleet(&Seen::default(), &paced, 0);
        assert!(!figures.contains_key("push_p99_ms"));
        check(&figures, "changes_lost", 0.0);
    }

    #[test]
    fn a_change_that_was_lost_took_long() {
        let seen = Seen::default();
        let due = clock::now();
        seen.expect("node-00001.7".into(), due);
        clock::sleep_until(due + Duration::from_millis(30));
        let lost = seen.give_up();
        let paced = Paced {
            made: 1,
            lag: crate::measure::Latencies::new(),
        };
        let figures = of_the_fleet(&seen, &paced, lost);
        check(&figures, "changes_lost", 1.0);
        assert!(figures["push_p99_ms"] >= 30.0);
        assert_eq!(seen.give_up(), 0, "once");
    }
}
