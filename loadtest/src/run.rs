//! A measured run: the agent and the null server in turn, under the same churn, and a verdict.
//!
//! On a shared machine a microsecond means little and a ratio of neighbours means much. So the load
//! goes to the agent, then to the null server, then to the agent again (A B A B), and what is judged
//! are medians over the rounds of what one slice says about the other.

mod beside;
mod comparison;
mod figures;
mod lateness;
mod pool;
mod slices;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use beside::{NullServer, OtherAgent};
use comparison::Baseline;
use figures::Known;
use lateness::Lateness;
use pool::Pools;
use slices::{Asked, Kind, Parts, Round};

use crate::churn;
use crate::clock;
use crate::faults::{self, Fault};
use crate::gate::{self, Gate, Named};
use crate::json;
use crate::pin;
use crate::plan::Plan;
use crate::proc_stats::Cores;
use crate::progress::Progress;
use crate::report::{EARLIEST_RENEWAL, Report, Usage};
use crate::scrape::Metrics;
use crate::session::{Changes, Session};
use crate::simulation::Simulation;
use crate::system::{Extra, System};
use crate::verdict;

/// Runs the agent and the null server in turn under churn, and judges the figures.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    plan: Plan,
    /// Rounds; each is one slice of load on the agent and one on whatever it is compared with.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Without the null server: no ratios against it.
    #[arg(long)]
    no_null: bool,
    /// In each round, one more slice on the agent while its node changes so often that it publishes
    /// this many snapshots a second.
    #[arg(long, value_name = "N", value_parser = crate::plan::positive_rate)]
    snapshots_per_second: Option<f64>,
    /// In each round, one more slice on the agent beside this many CPU-bound threads on its core: a
    /// busy node.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    hogs: Option<u16>,
    /// In each round, one more slice on another agent, whatever it is, under the same simulated
    /// cluster: http://IP:PORT. Without --agent-command the run says where the simulated Kubernetes
    /// API and STS are, and waits until that agent serves the pods. One that issues no tokens of its
    /// own needs --dialogue=v1.
    #[arg(long, value_name = "URL", value_parser = address_of)]
    agent_url: Option<SocketAddr>,
    /// Starts that agent: a shell command, run in the directory of the simulation's files (kubeconfig,
    /// ca.pem, agent.pem, …) with KUBECONFIG, KUBE_API, NODE_NAME, AWS_ENDPOINT_URL_STS and stand-in
    /// AWS keys in its environment; ended with the run. What it prints is in other.log there.
    #[arg(long, value_name = "COMMAND", requires = "agent_url")]
    agent_command: Option<String>,
    /// Keeps the simulation's files and the programs' logs here instead of in a temporary directory.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[arg(long = "fault", value_name = "FAULT", help = faults::help())]
    faults: Vec<Fault>,
    /// A condition on a figure, for example 'failures=0' or 'p99_ratio<=1.25', or on its change since
    /// the baseline, for example 'change.cpu_ratio<=1.1'; may be given several times. If one does not
    /// hold the exit code is 1, and also if one is on the latency of a load that the generator started
    /// late. Unless said otherwise failures=0 is one; with a --fault it is failures_of_known=0, and
    /// with one that ends the agent none.
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<Gate>,
    /// Writes the figures to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the figures to this file as a Markdown table.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Shows the change against a baseline: figures that --json wrote earlier.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Leaves the processes on whatever cores the kernel likes. By default the agent and the null
    /// server have the first core and everything else the others.
    #[arg(long)]
    no_pin: bool,
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
    /// Distributions, by name: the latency in microseconds and the share of all that did not exceed it.
    pub curves: BTreeMap<&'static str, Vec<(f64, f64)>>,
    /// What became of the figures since the baseline, as a table.
    pub comparison: Option<String>,
    /// Gates that are shut, and why. One on the latency of a load that was late is.
    pub shut: Vec<String>,
    /// Why the generator's own lateness forbids a verdict on some of the latencies, if it does.
    pub no_verdict: Option<String>,
}

/// What was seen before anything is made of it.
struct Seen {
    rounds: Vec<Round>,
    changes: Changes,
    before: Readings,
    after: Readings,
    /// Pods that must get nothing and got something.
    broken: Vec<String>,
    sts: Sts,
    other_resident_bytes: Option<u64>,
}

/// What STS counted.
struct Sts {
    calls: u64,
    /// Distinct roles of theirs.
    roles: usize,
    /// Calls for what was not due for renewal.
    early: u64,
}

/// What the kernel and the programs say at one moment.
struct Readings {
    agent: Usage,
    server: Usage,
    agent_metrics: Option<Metrics>,
    server_metrics: Option<Metrics>,
    cores: Cores,
    at: std::time::Instant,
}

impl Run {
    /// Runs to the end.
    pub(crate) fn run(&self, progress: &Progress) -> anyhow::Result<Outcome> {
        gate::check(&self.gates, figures::NAMES, self.compare.is_some())?;
        faults::check(&self.faults, self.length(), &self.agent_flag)?;
        // Before the run: a baseline that cannot be read should not cost one.
        let baseline = self.compare.as_deref().map(Baseline::read).transpose()?;
        let temporary = tempfile::tempdir().context("cannot make a temporary directory")?;
        let dir = self.dir.as_deref().unwrap_or(temporary.path());
        progress.step("starting a simulated cluster and STS, the server, and the agent");
        let simulation = Simulation::start(dir, self.plan.crowd.seed)?;
        let extra = Extra {
            agent: self.agent_flag.clone(),
            server: self.server_flag.clone(),
            ..Extra::default()
        };
        let system = System::start(simulation, extra)?;
        let session = Session::start(&system, &self.plan, progress)?;
        let seen = self.measure(&system, &session, dir, progress)?;
        drop(session);
        progress.step("stopping");
        system.stop()?;
        self.conclude(&seen, baseline.as_ref())
    }

    /// Everything between the pods' first credentials and the end.
    fn measure(
        &self,
        system: &System,
        session: &Session<'_>,
        dir: &Path,
        progress: &Progress,
    ) -> anyhow::Result<Seen> {
        let null = if self.no_null {
            None
        } else {
            Some(NullServer::start(dir)?)
        };
        let other = self.other(system, progress)?;
        let parts = Parts {
            null: null.as_ref().map(NullServer::asked),
            other: other.as_ref().map(OtherAgent::asked),
            snapshots_per_s: self.snapshots_per_second,
            hogs: self.hogs,
        };
        if !self.no_pin {
            pin_apart(system, &parts)?;
        }
        let before = readings(system, session)?;
        let (changes, rounds) =
            session.under_churn(self.length(), &self.faults, self.agent_url, || {
                let rounds = (0..self.rounds).map(|number| parts.round(number, session));
                rounds.collect()
            })?;
        let other_pid = parts.other.and_then(|other| other.pid);
        let after = readings(system, session)?;
        let sts = system.simulation().sts();
        Ok(Seen {
            rounds,
            changes,
            before,
            after,
            broken: session.refusals(),
            sts: Sts {
                calls: sts.total(),
                roles: sts.counts().len(),
                early: sts.early(EARLIEST_RENEWAL),
            },
            other_resident_bytes: other_pid
                .and_then(|pid| Usage::of(pid).ok())
                .map(|usage| usage.resident_bytes),
        })
    }

    /// How long all slices take together.
    fn length(&self) -> Duration {
        let taking_part = [
            true,
            !self.no_null,
            self.snapshots_per_second.is_some(),
            self.hogs.is_some(),
            self.agent_url.is_some(),
        ];
        let slices = taking_part.map(u32::from).iter().sum::<u32>();
        let slices = self.rounds.saturating_mul(slices);
        self.plan.slice().saturating_mul(slices)
    }

    fn other(&self, system: &System, progress: &Progress) -> anyhow::Result<Option<OtherAgent>> {
        let Some(address) = self.agent_url else {
            return Ok(None);
        };
        let command = self.agent_command.as_deref();
        let pod = churn::address(0);
        let other = OtherAgent::start(address, command, system.simulation(), pod, progress)?;
        Ok(Some(other))
    }

    fn conclude(&self, seen: &Seen, baseline: Option<&Baseline>) -> anyhow::Result<Outcome> {
        let pools = pool::of(&seen.rounds);
        let lateness = Lateness::of(&seen.changes, &pools);
        let report = self.report(seen, &pools);
        let known = Known {
            report: &report,
            lateness: &lateness,
            snapshots: seen.snapshots(),
            applied_s: seen.applied_s(0.5).zip(seen.applied_s(0.99)),
            elapsed: seen.elapsed(),
            stolen: seen.stolen(),
            other_resident_bytes: seen.other_resident_bytes,
        };
        let figures = figures::of(&known, &pools, &seen.rounds);
        let changes = baseline.map(|baseline| baseline.changes(&figures));
        if let Some(path) = &self.json {
            json::write(path, &figures)?;
        }
        if let Some(path) = &self.markdown {
            std::fs::write(path, markdown(&report, &figures))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let late = |figure: &str| lateness.refusal(figure);
        Ok(Outcome {
            no_verdict: lateness.refusals(),
            comparison: baseline.map(|baseline| baseline.table(&figures)),
            shut: gate::judge(&self.gates(), &figures, changes.as_ref(), late),
            curves: curves(&report, &pools),
            report,
            figures,
        })
    }

    /// The gates that were asked for, and that nothing fails that need not: while something goes wrong
    /// pods may start that nobody can name, and while an agent is dead nobody is answered.
    fn gates(&self) -> Vec<Gate> {
        let none_of = if self.faults.is_empty() {
            Some("failures")
        } else if self.faults.iter().any(Fault::leaves_no_agent) {
            None
        } else {
            Some("failures_of_known")
        };
        gate::with_none_of(&self.gates, none_of)
    }

    fn report(&self, seen: &Seen, pools: &Pools) -> Report {
        let steady = pool::all(pools, &[Kind::Agent]);
        let own = pools.get(&Kind::Agent);
        Report {
            title: format!("{}, {} rounds", self.plan.title(), self.rounds),
            changes: seen.changes.clone(),
            broken: seen.broken.clone(),
            agent: Usage::between(seen.before.agent, seen.after.agent),
            agent_cpu_per_request: own.and_then(pool::Pool::cpu_per_request),
            server: Usage::between(seen.before.server, seen.after.server),
            sts_calls: seen.sts.calls,
            sts_roles: seen.sts.roles,
            sts_early: seen.sts.early,
            generator: verdict::generator(&steady, seen.elapsed(), seen.stolen()),
            stressed: pool::all(pools, &[Kind::Stirred, Kind::Hogged]),
            steady,
        }
    }
}

impl Seen {
    fn elapsed(&self) -> Duration {
        self.after.at.saturating_duration_since(self.before.at)
    }

    fn stolen(&self) -> Option<f64> {
        self.after.cores.stolen_since(self.before.cores)
    }

    /// By the agent's own count; an agent that took another's place counts from zero.
    fn snapshots(&self) -> Option<f64> {
        let same = Usage::between(self.before.agent, self.after.agent).cpu;
        let updates = |readings: &Readings| {
            let metrics = readings.agent_metrics.as_ref();
            metrics.map(|metrics| metrics.sum("kiam_agent_updates_total"))
        };
        same?;
        Some(updates(&self.after)? - updates(&self.before)?)
    }

    fn applied_s(&self, share: f64) -> Option<f64> {
        let [before, after] = [&self.before, &self.after].map(|one| one.server_metrics.as_ref());
        after?.quantile_since(before?, "kiam_push_applied_latency_seconds", share)
    }
}

fn readings(system: &System, session: &Session<'_>) -> anyhow::Result<Readings> {
    let (agent, server) = session.usage()?;
    let [agent_admin, server_admin] = system.admin_addresses();
    Ok(Readings {
        agent,
        server,
        agent_metrics: Metrics::of(agent_admin),
        server_metrics: Metrics::of(server_admin),
        cores: Cores::read(),
        at: clock::now(),
    })
}

/// The agent and what it is compared with on the first core, this process and the server on the rest.
fn pin_apart(system: &System, parts: &Parts) -> anyhow::Result<()> {
    pin::to_first(system.agent_pid())?;
    for asked in [parts.null, parts.other].into_iter().flatten() {
        let Asked { pid, address } = asked;
        let pid = pid.with_context(|| format!("cannot see which process listens on {address}"))?;
        pin::to_first(pid)?;
    }
    pin::off_first(system.server_pid())?;
    pin::off_first(std::process::id())
}

fn curves(report: &Report, pools: &Pools) -> BTreeMap<&'static str, Vec<(f64, f64)>> {
    let slices = pools.iter().map(|(kind, pool)| {
        let name = match kind {
            Kind::Agent => "agent",
            Kind::Null => "null",
            Kind::Stirred => "stirred",
            Kind::Hogged => "hogged",
            Kind::Other => "other",
        };
        (name, pool.figures.requests.curve())
    });
    let first = [("first", report.changes.first.dialogues.curve())];
    let other = report.changes.other_first.as_ref();
    let other = other.map(|other| ("other_first", other.dialogues.curve()));
    slices.chain(first).chain(other).collect()
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

/// The address in `http://IP:PORT`.
fn address_of(url: &str) -> Result<SocketAddr, String> {
    let address = url.strip_prefix("http://").unwrap_or(url);
    let address = address.trim_end_matches('/').parse();
    address.map_err(|_error| "must be http://IP:PORT".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Args, Command};

    fn run(flags: &str) -> Run {
        let words = ["kiam-loadtest", "run"].into_iter();
        let args = Args::parse_from(words.chain(flags.split_whitespace()));
        let Some(Command::Run(run)) = args.command else {
            panic!("not a run: {flags}");
        };
        *run
    }

    #[track_caller]
    fn check(flags: &str, expected: &[&str]) {
        let gates = run(flags).gates();
        let gates: Vec<_> = gates.iter().map(ToString::to_string).collect();
        assert_eq!(gates, expected, "{flags}");
    }

    #[test]
    fn what_fails_needlessly_ends_a_run_badly() {
        check("", &["failures=0"]);
        check("--fault sts-down@1", &["failures_of_known=0"]);
        check("--fault agent-killed@1", &[]);
        check("--gate failures<=3", &["failures<=3"]);
        let both = ["cpu_ratio<=2", "failures=0"];
        check("--gate cpu_ratio<=2", &both);
    }

    #[test]
    fn a_run_is_as_long_as_all_its_slices() {
        let seconds = |flags: &str| run(flags).length().as_secs();
        assert_eq!(seconds("--rounds 2 --seconds 6"), 24);
        assert_eq!(seconds("--rounds 2 --seconds 6 --no-null"), 12);
        assert_eq!(seconds("--rounds 1 --hogs 1 --snapshots-per-second 5"), 20);
    }

    #[test]
    fn a_fault_that_could_not_happen_is_refused_before_anything_starts() {
        let refused = run("--fault sts-down@60").run(&Progress::new());
        assert!(refused.unwrap_err().to_string().starts_with("--fault "));
    }
}
