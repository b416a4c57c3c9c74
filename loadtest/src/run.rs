//! A measured run: the agent and the null server in turn, under the same churn, and a verdict.
//!
//! On a shared machine a microsecond means little and a ratio of neighbours means much. So the load
//! goes to the agent, then to the null server, then to the agent again (A B A B), and what is judged
//! are medians over the rounds of what one half-round says about the other.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;

use crate::child::{self, Process, Role};
use crate::dialogue::Answers;
use crate::faults::Fault;
use crate::gate::{Gate, Named};
use crate::measure::Figures;
use crate::pin;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::report::{Report, Usage};
use crate::session::Session;
use crate::simulation::Simulation;
use crate::system::{Extra, System};

/// Runs the agent and the null server in turn under churn, and judges the figures.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    plan: Plan,
    /// Rounds; each is one slice of load on the agent and one on the null server.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Only the agent, without the null server: no ratios.
    #[arg(long)]
    no_null: bool,
    /// Something that goes wrong during the run, as NAME@SECONDS or NAME@SECONDS+LENGTH; may be given
    /// several times. Names: server-killed, agent-killed, sts-throttled, sts-down, api-down.
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,
    /// A condition on a figure, for example 'failures=0' or 'p99_ratio<=1.25'; may be given several
    /// times. If one does not hold the exit code is 1, and also if one is on latency and the
    /// generator itself was late.
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<Gate>,
    /// Writes the figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the figures to this file as a Markdown table.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Shows the change against the figures in this file, which --json wrote earlier.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Leaves the processes on whatever cores the kernel likes. By default the agent and the null
    /// server have the first core and everything else the others.
    #[arg(long)]
    no_pin: bool,
    /// CPU-bound threads on the agent's core during the run: a busy node.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=64))]
    hogs: u16,
    /// A flag handed to the agent as it is; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    agent_flag: Vec<std::ffi::OsString>,
    /// A flag handed to the server as it is; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    server_flag: Vec<std::ffi::OsString>,
}

/// What a run ended with.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// For people.
    pub report: Report,
    /// For gates.
    pub figures: Named,
    /// Gates that are shut, and why.
    pub shut: Vec<String>,
    /// Why the generator's own lateness forbids a verdict on latency, if it does.
    pub no_verdict: Option<String>,
}

/// One half of a round.
#[derive(Debug)]
struct Half {
    figures: Figures,
    cpu: Duration,
}

/// More than this share of the dialogues started late by more than [`LATE`], and the generator has
/// nothing to say about latency.
const LATE_SHARE_MAX: f64 = 0.05;
/// A start this late is late: several times what a sleeping thread needs to wake up.
const LATE: Duration = Duration::from_millis(1);

impl Run {
    /// Runs to the end.
    pub(crate) fn run(&self, progress: &Progress) -> anyhow::Result<Outcome> {
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        progress.step("starting a simulated cluster and STS, the server, and the agent");
        let simulation = Simulation::start(dir.path(), self.plan.seed)?;
        let extra = Extra {
            agent: self.agent_flag.clone(),
            server: self.server_flag.clone(),
            ..Extra::default()
        };
        let system = System::start(simulation, extra)?;
        let null = if self.no_null {
            None
        } else {
            Some(NullServer::start(dir.path())?)
        };
        if !self.no_pin {
            pin_apart(&system, null.as_ref())?;
        }
        let session = Session::start(&system, &self.plan, progress)?;
        let before = session.usage()?;
        let halves = if null.is_some() { 2 } else { 1 };
        let length = self
            .plan
            .slice()
            .saturating_mul(self.rounds.saturating_mul(halves));
        let (changes, rounds) = session.under_churn(length, &self.faults, || {
            let _hogs = Hogs::start(self.hogs);
            (0..self.rounds)
                .map(|round| self.round(round, &session, null.as_ref()))
                .collect()
        })?;
        let rounds: Vec<(Half, Option<Half>)> = rounds;
        let after = session.usage()?;
        let sts = system.simulation().sts();
        let mut steady = Figures::new();
        for (agent, _) in &rounds {
            steady.add(&agent.figures);
        }
        let report = Report {
            title: format!("{}, {} rounds", self.plan.title(), self.rounds),
            broken: session.refusals(),
            agent: Usage::between(before.0, after.0),
            server: Usage::between(before.1, after.1),
            sts_calls: sts.total(),
            sts_roles: sts.counts().len(),
            changes,
            steady,
        };
        drop(session);
        progress.step("stopping");
        system.stop()?;
        self.judge(report, &rounds)
    }

    fn round(
        &self,
        round: u32,
        session: &Session<'_>,
        null: Option<&NullServer>,
    ) -> anyhow::Result<(Half, Option<Half>)> {
        let slice = u64::from(round) + 1;
        let half = |pid: u32, load| {
            let before = Usage::of(pid)?;
            let figures = session.load(&load);
            // A killed agent's successor has another process id; its half has no CPU figure.
            let cpu =
                Usage::of(pid).map_or(Duration::ZERO, |after| Usage::between(before, after).cpu);
            anyhow::Ok(Half { figures, cpu })
        };
        let target = session.agent_address();
        let agent = half(
            session.agent_pid(),
            self.plan.load(target, Answers::Matter, slice),
        )?;
        let null = null.map(|null| {
            half(
                null.process.id(),
                self.plan.load(null.address, Answers::Ignored, slice),
            )
        });
        Ok((agent, null.transpose()?))
    }

    fn judge(&self, report: Report, rounds: &[(Half, Option<Half>)]) -> anyhow::Result<Outcome> {
        let figures = figures(&report, rounds);
        let late = report.steady.lag.share_above(LATE);
        let no_verdict = (late > LATE_SHARE_MAX).then(|| {
            format!(
                "{:.1} % of the dialogues started more than {LATE:?} late: this machine is too busy \
                 for a verdict on latency",
                late * 100.0
            )
        });
        let shut = self
            .gates
            .iter()
            .filter_map(|gate| gate.shut(&figures))
            .collect();
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&figures)?;
            std::fs::write(path, text + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(path) = &self.markdown {
            let table = markdown(&report, &figures);
            std::fs::write(path, table)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(Outcome {
            report,
            figures,
            shut,
            no_verdict,
        })
    }

    /// Whether a gate judges latency, so that a run without a verdict on it has failed.
    pub(crate) fn judges_latency(&self) -> bool {
        self.gates.iter().any(Gate::is_on_latency)
    }

    /// The change of each figure against the earlier run that `--compare` names.
    pub(crate) fn comparison(&self, figures: &Named) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.compare else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let earlier: std::collections::BTreeMap<String, f64> = serde_json::from_str(&text)
            .with_context(|| format!("{} is not what --json writes", path.display()))?;
        let lines = figures.iter().map(|(name, now)| match earlier.get(*name) {
            Some(then) => format!("{name:<28}{then:>12.3} -> {now:>12.3}"),
            None => format!("{name:<28}{:>12} -> {now:>12.3}", "-"),
        });
        Ok(Some(lines.collect::<Vec<_>>().join("\n")))
    }
}

/// The agent and the null server on the first core, this process and the server on the rest.
fn pin_apart(system: &System, null: Option<&NullServer>) -> anyhow::Result<()> {
    pin::to_first(system.agent_pid())?;
    if let Some(null) = null {
        pin::to_first(null.process.id())?;
    }
    pin::off_first(system.server_pid())?;
    pin::off_first(std::process::id())
}

/// Threads that do nothing but use the first core, until this is dropped.
#[derive(Debug)]
struct Hogs(Arc<AtomicBool>);

impl Hogs {
    fn start(count: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..count {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                if let Err(error) = pin::this_thread_to_first() {
                    tracing::warn!(%error, "a hog is not on the agent's core");
                }
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The null server as a process.
#[derive(Debug)]
struct NullServer {
    process: Process,
    address: std::net::SocketAddr,
}

impl NullServer {
    fn start(dir: &std::path::Path) -> anyhow::Result<Self> {
        let address = child::free_port()?;
        let args = [std::ffi::OsString::from(format!(
            "--port={}",
            address.port()
        ))];
        let mut process = Process::spawn(Role::Null, args, &[], dir)?;
        process.wait_ready(address, "/", Duration::from_secs(10))?;
        Ok(Self { process, address })
    }
}

fn figures(report: &Report, rounds: &[(Half, Option<Half>)]) -> Named {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let us = |duration: Duration| duration.as_secs_f64() * 1e6;
    let steady = &report.steady;
    let mut named = Named::from([
        ("failures", float(report.failures())),
        ("failures_of_known", float(report.failures_of_known())),
        ("requests", float(steady.requests.count())),
        ("pods_created", float(report.changes.churned.created)),
        ("request_p50_us", us(steady.requests.quantile(0.5))),
        ("request_p99_us", us(steady.requests.quantile(0.99))),
        ("request_p999_us", us(steady.requests.quantile(0.999))),
        ("request_max_us", us(steady.requests.max())),
        ("dialogue_p50_us", us(steady.dialogues.quantile(0.5))),
        ("dialogue_p99_us", us(steady.dialogues.quantile(0.99))),
        ("generator_lag_p50_us", us(steady.lag.quantile(0.5))),
        ("generator_lag_p99_us", us(steady.lag.quantile(0.99))),
        (
            "agent_rss_mib",
            float(report.agent.resident_bytes) / f64::from(1 << 20),
        ),
        (
            "server_rss_mib",
            float(report.server.resident_bytes) / f64::from(1 << 20),
        ),
        (
            "sts_calls_per_role",
            ratio(float(report.sts_calls), float(length(report.sts_roles))),
        ),
    ]);
    if report.changes.first.dialogues.count() > 0 {
        named.insert(
            "first_credential_p50_ms",
            ms(report.changes.first.dialogues.quantile(0.5)),
        );
        named.insert(
            "first_credential_p99_ms",
            ms(report.changes.first.dialogues.quantile(0.99)),
        );
    }
    let cpu = |half: &Half| ratio(us(half.cpu), float(half.figures.requests.count()));
    named.insert(
        "agent_cpu_per_request_us",
        median(rounds.iter().map(|(agent, _)| cpu(agent))),
    );
    named.append(&mut against_null(rounds, cpu));
    named
}

/// What is said about the agent by its neighbour: medians over the rounds of their ratios.
fn against_null(rounds: &[(Half, Option<Half>)], cpu: impl Fn(&Half) -> f64) -> Named {
    let pairs: Vec<(&Half, &Half)> = rounds
        .iter()
        .filter_map(|(agent, null)| Some((agent, null.as_ref()?)))
        .collect();
    if pairs.is_empty() {
        return Named::new();
    }
    let over = |of: &dyn Fn(&Half) -> f64| {
        median(pairs.iter().map(|(agent, null)| ratio(of(agent), of(null))))
    };
    let null = |of: &dyn Fn(&Half) -> f64| median(pairs.iter().map(|(_, null)| of(null)));
    let us = |half: &Half, share| half.figures.requests.quantile(share).as_secs_f64() * 1e6;
    Named::from([
        ("p50_ratio", over(&|half| us(half, 0.5))),
        ("p99_ratio", over(&|half| us(half, 0.99))),
        ("cpu_ratio", over(&cpu)),
        ("null_request_p50_us", null(&|half| us(half, 0.5))),
        ("null_request_p99_us", null(&|half| us(half, 0.99))),
        ("null_cpu_per_request_us", null(&cpu)),
    ])
}

fn markdown(report: &Report, figures: &Named) -> String {
    let rows = figures
        .iter()
        .map(|(name, value)| format!("| `{name}` | {value:.2} |\n"));
    let rows: Vec<_> = rows.collect();
    format!(
        "{}\n\n| figure | value |\n|---|---:|\n{}",
        report.title,
        rows.concat()
    )
}

/// The middle one; of an even number the lower of the two.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
        .get(values.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

fn ratio(above: f64, below: f64) -> f64 {
    if below > 0.0 { above / below } else { 0.0 }
}

fn float(count: u64) -> f64 {
    #[expect(
        clippy::as_conversions,
        clippy::cast_precision_loss,
        reason = "counts below 2^52"
    )]
    let float = count as f64;
    float
}

fn length(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_value_that_was_seen() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < f64::EPSILON);
        assert!((median([4.0, 1.0].into_iter()) - 1.0).abs() < f64::EPSILON);
        assert!(median(std::iter::empty()).is_nan());
    }
}
