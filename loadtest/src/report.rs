//! The figures as a table that a person reads.

use std::fmt::{self, Write as _};
use std::time::Duration;

use anyhow::Context as _;

use crate::measure::{Figures, Latencies};
use crate::numbers;
use crate::proc_stats::Process;
use crate::session::Changes;

/// A session is renewed when at least this share of its life has gone (0.40 to 0.48 of it);
/// asking for it before is waste.
pub(crate) const EARLIEST_RENEWAL: f64 = 0.4;

/// Everything one run saw.
#[derive(Debug)]
pub(crate) struct Report {
    /// What was run, in one line.
    pub title: String,
    /// Pods that came and went, and asked for the first time.
    pub changes: Changes,
    /// Pods that asked again and again.
    pub steady: Figures,
    /// The same while something else wanted the agent's time.
    pub stressed: Figures,
    /// What the agent's process used.
    pub agent: Used,
    /// Its CPU time for each request, both of the same time.
    pub agent_cpu_per_request: Option<Duration>,
    /// What the server's process used.
    pub server: Used,
    /// Calls to STS, and roles they were for.
    pub sts_calls: u64,
    /// Distinct roles that were asked of STS.
    pub sts_roles: usize,
    /// Calls for what had been issued less than [`EARLIEST_RENEWAL`] of its life before.
    pub sts_early: u64,
    /// What the generator itself lacked, in words.
    pub generator: String,
    /// Checks that are not requests, for example that a pod without a role got nothing.
    pub broken: Vec<String>,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// The process.
    pub pid: u32,
    /// CPU time.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
}

/// What a program used during some time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    /// CPU time; `None` when another process took the place of the first.
    pub cpu: Option<Duration>,
    /// Resident memory at the end, in bytes.
    pub resident_bytes: u64,
}

impl Usage {
    /// What the process with this id has used so far.
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let process = Process::new(pid);
        let read = || {
            anyhow::Ok(Self {
                pid,
                cpu: process.cpu()?,
                resident_bytes: process.resident_bytes()?,
            })
        };
        read().with_context(|| format!("cannot read what process {pid} used"))
    }

    /// What was used between the two.
    pub(crate) fn between(before: Self, after: Self) -> Used {
        let same = before.pid == after.pid;
        Used {
            cpu: same.then(|| after.cpu.saturating_sub(before.cpu)),
            resident_bytes: after.resident_bytes,
        }
    }
}

/// Each one's part of this time; `None` when there is no time, or nobody to have a part.
pub(crate) fn each(time: Option<Duration>, count: u64) -> Option<Duration> {
    time?.checked_div(u32::try_from(count).unwrap_or(u32::MAX))
}

impl Report {
    /// Dialogues and checks that failed.
    pub(crate) fn failures(&self) -> u64 {
        self.changes.first.failed() + self.failures_of_known()
    }

    /// Those of pods that had been granted before, and of pods that must get nothing.
    pub(crate) fn failures_of_known(&self) -> u64 {
        let broken = u64::try_from(self.broken.len()).unwrap_or(u64::MAX);
        self.steady.failed() + self.stressed.failed() + broken
    }
}

/// One kind of load by itself, with its failures.
pub(crate) fn summary(figures: &Figures) -> String {
    Summary(figures).to_string()
}

struct Summary<'a>(&'a Figures);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        header(f)?;
        row(f, "credentials, whole dialogue", &self.0.dialogues)?;
        row(f, "one request", &self.0.requests)?;
        row(f, "(lateness of this generator)", &self.0.lag)?;
        writeln!(f, "\nfailures  {}", self.0.failed())?;
        failures(f, "dialogues", self.0)
    }
}

fn header(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "{:<34}{:>9}{:>11}{:>11}{:>11}{:>11}",
        "", "count", "p50", "p99", "p99.9", "max"
    )
}

fn failures(f: &mut fmt::Formatter<'_>, what: &str, figures: &Figures) -> fmt::Result {
    let mut each = figures.failures.iter();
    each.try_for_each(|(failure, count)| writeln!(f, "          {count} {what}: {failure}"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.title)?;
        header(f)?;
        row(
            f,
            "first credentials of a new pod",
            &self.changes.first.dialogues,
        )?;
        row(f, "credentials, whole dialogue", &self.steady.dialogues)?;
        row(f, "one request", &self.steady.requests)?;
        row(f, "(lateness of this generator)", &self.steady.lag)?;
        writeln!(f)?;
        writeln!(
            f,
            "pods      {} created, {} deleted",
            self.changes.churned.created, self.changes.churned.deleted
        )?;
        writeln!(
            f,
            "STS       {} calls for {} roles, {} before a renewal was due",
            self.sts_calls, self.sts_roles, self.sts_early
        )?;
        writeln!(
            f,
            "agent     {} CPU a request, {} resident",
            or_unknown(self.agent_cpu_per_request),
            mebibytes(self.agent.resident_bytes)
        )?;
        writeln!(
            f,
            "server    {} CPU, {} resident",
            or_unknown(self.server.cpu),
            mebibytes(self.server.resident_bytes)
        )?;
        writeln!(f, "{}", self.generator)?;
        writeln!(f, "failures  {}", self.failures())?;
        failures(f, "first credentials", &self.changes.first)?;
        failures(f, "dialogues", &self.steady)?;
        failures(f, "dialogues beside other work", &self.stressed)?;
        self.broken
            .iter()
            .try_for_each(|broken| writeln!(f, "          {broken}"))
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, latencies: &Latencies) -> fmt::Result {
    let mut line = format!("{name:<34}{:>9}", latencies.count());
    let quantiles = [0.5, 0.99, 0.999].map(|share| latencies.quantile(share));
    for latency in quantiles.into_iter().chain([latencies.max()]).flatten() {
        write!(line, "{:>11}", time(latency))?;
    }
    writeln!(f, "{line}")
}

fn or_unknown(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "unknown".into(), time)
}

/// A duration to three digits, in the unit that fits.
pub(crate) fn time(duration: Duration) -> String {
    let us = duration.as_secs_f64() * 1e6;
    match us {
        us if us < 1_000.0 => format!("{us:.0} µs"),
        us if us < 10_000.0 => format!("{:.2} ms", us / 1e3),
        us if us < 1_000_000.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Appends; writing to a string cannot fail.
pub(crate) fn push(text: &mut String, what: fmt::Arguments<'_>) {
    let _written = fmt::Write::write_fmt(text, what);
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", numbers::mebibytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::churn::Churned;
    use crate::dialogue::Failure;

    #[track_caller]
    fn check(duration: Duration, expected: &str) {
        assert_eq!(time(duration), expected);
    }

    #[test]
    fn times_are_short() {
        check(Duration::from_micros(73), "73 µs");
        check(Duration::from_micros(1_234), "1.23 ms");
        check(Duration::from_micros(123_456), "123 ms");
        check(Duration::from_millis(1_500), "1.50 s");
    }

    #[test]
    fn failures_are_named_and_counted() {
        let mut steady = Figures::new();
        steady.requests.record(Duration::from_micros(100));
        steady.fail(Failure::Status(503));
        let mut stressed = Figures::new();
        stressed.fail(Failure::TimedOut);
        let report = Report {
            title: "a run".into(),
            changes: Changes {
                churned: Churned::default(),
                other_first: None,
                first: Figures::new(),
            },
            steady,
            stressed,
            agent: Used {
                cpu: None,
                resident_bytes: 12 << 20,
            },
            agent_cpu_per_request: Some(Duration::from_micros(40)),
            server: Used {
                cpu: None,
                resident_bytes: 0,
            },
            sts_calls: 0,
            sts_roles: 0,
            sts_early: 0,
            generator: "generator 0.0 % late".into(),
            broken: vec!["a pod without a role got 200".into()],
        };
        assert_eq!(report.failures(), 3);
        assert_eq!(report.failures_of_known(), 3);
        let text = report.to_string();
        assert!(
            text.contains("1 dialogues beside other work: timed out"),
            "{text}"
        );
        assert!(text.contains("unknown CPU, 0.0 MiB resident"), "{text}");
        assert!(text.contains("1 dialogues: status 503"), "{text}");
        assert!(text.contains("a pod without a role got 200"), "{text}");
        assert!(
            text.contains("40 µs CPU a request, 12.0 MiB resident"),
            "{text}"
        );
    }
}
