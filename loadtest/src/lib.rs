//! kiam under load: the whole system on one machine, in one process tree.
//!
//! In reading order:
//! - `cli`: what can be said on the command line.
//! - `demo`: the short run that happens when nothing is said; `up`: the system left running.
//! - `simulation`: the simulated cluster and STS, and their files; `cast`: who is in it.
//! - `system`, `child`: the real server and agent beside it, as processes of their own.
//! - `plan`, `session`, `run`, `faults`, `gate`: a measured run and its verdict.
//! - [`rig`]: the system as tests hold it; `soak`: the system for a long time, and what grew.
//! - `churn`: pods that come and go; `population`: those that may be asked for.
//! - `load`, `dialogue`: the open loop, and what SDKs say in it.
//! - `scale`, `fleet`: one server against a large cluster of simulated agents.
//! - `perf`: the standard series of runs, and the pages and plots made of it.
//! - `probe`: an agent that is already running, asked from inside a pod.
//! - `null`: what the agent is measured against.
//! - `measure`, `numbers`, `proc_stats`, `scrape`, `pin`: what was seen, and whether the generator could
//!   see it (`verdict`).
//! - `progress`, `report`, `description`, `json`: how it is told.
//!
//! # Invariants
//! - A dialogue is late from when it was due, not from when the generator got round to it.
//! - Credentials count only if STS issued them for the asking pod's role.
//! - Load goes to loopback addresses and ends by itself.

mod cast;
mod child;
mod churn;
mod cli;
mod clock;
mod demo;
mod description;
mod dialogue;
mod faults;
mod fleet;
mod gate;
mod json;
mod load;
mod measure;
mod null;
mod numbers;
mod perf;
mod pin;
mod plan;
mod population;
mod probe;
mod proc_stats;
mod progress;
mod report;
pub mod rig;
mod run;
mod scale;
mod scrape;
mod session;
mod simulation;
mod soak;
mod system;
mod up;
mod verdict;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser as _;

use cli::{Args, Command};
use null::Null;
use progress::Progress;

/// Runs the program with these arguments, the first being its own name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // To standard output for --help, to standard error for mistakes; 2 for those.
            return match error.print() {
                Ok(()) if !error.use_stderr() => ExitCode::SUCCESS,
                Ok(()) | Err(_) => ExitCode::from(2),
            };
        }
    };
    let outcome = match args.command {
        Some(Command::Agent { with_parent, args }) => {
            return in_role("kiam-agent", with_parent, args, kiam_agent::run);
        }
        Some(Command::Server { with_parent, args }) => {
            return in_role("kiam-server", with_parent, args, kiam_server::run);
        }
        Some(Command::Null { port, with_parent }) => {
            child::end_with_parent(with_parent);
            logged(|| serve_null(port))
        }
        Some(Command::Up(up)) => logged(|| up.run(&Progress::new(), &mut std::io::stdout().lock())),
        Some(Command::Sim(sim)) => logged(|| sim.run(&mut std::io::stdout().lock())),
        Some(Command::Run(run)) => logged(|| measured(&run)),
        Some(Command::Scale(scale)) => logged(|| scaled(&scale)),
        Some(Command::Report(perf)) => logged(|| perf.run(&Progress::new())),
        Some(Command::Soak(soak)) => logged(|| soaked(&soak)),
        Some(Command::Probe(probe)) => logged(|| probed(&probe)),
        None => logged(|| {
            let report = demo::run(&args.plan, &Progress::new())?;
            writeln!(std::io::stdout().lock(), "\n{report}")?;
            anyhow::ensure!(report.failures() == 0, "{} failures", report.failures());
            Ok(())
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "kiam-loadtest: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Takes a child's role: its name first, then its flags.
fn in_role(
    name: &str,
    with_parent: bool,
    args: Vec<OsString>,
    run: fn(Vec<OsString>) -> ExitCode,
) -> ExitCode {
    child::end_with_parent(with_parent);
    run(std::iter::once(OsString::from(name)).chain(args).collect())
}

fn logged(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .init();
    work()
}

fn measured(run: &run::Run) -> anyhow::Result<()> {
    let outcome = run.run(&Progress::new())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{}", outcome.report)?;
    for (name, value) in &outcome.figures {
        writeln!(out, "{name:<32}{value:>14.3}")?;
    }
    if let Some(comparison) = &outcome.comparison {
        writeln!(out, "\n{comparison}")?;
    }
    judged(&mut out, outcome.no_verdict.as_deref(), &outcome.shut)
}

fn scaled(scale: &scale::Scale) -> anyhow::Result<()> {
    let outcome = scale.run(&Progress::new())?;
    let mut out = std::io::stdout().lock();
    for (name, value) in &outcome.figures {
        writeln!(out, "{name:<28}{value:>14.3}")?;
    }
    judged(&mut out, outcome.no_verdict.as_deref(), &outcome.shut)
}

/// Says what could not be judged and which gates are shut; an error if any is.
fn judged(out: &mut impl Write, no_verdict: Option<&str>, shut: &[String]) -> anyhow::Result<()> {
    if let Some(why) = no_verdict {
        writeln!(out, "\nno verdict: {why}")?;
    }
    for gate in shut {
        writeln!(out, "gate shut: {gate}")?;
    }
    anyhow::ensure!(shut.is_empty(), "{} gates are shut", shut.len());
    Ok(())
}

fn soaked(soak: &soak::Soak) -> anyhow::Result<()> {
    let outcome = soak.run(&Progress::new())?;
    writeln!(std::io::stdout().lock(), "\n{outcome}")?;
    anyhow::ensure!(
        outcome.verdict().is_empty(),
        "{}",
        outcome.verdict().join("; ")
    );
    Ok(())
}

fn probed(probe: &probe::Probe) -> anyhow::Result<()> {
    let probed = probe.run(&Progress::new())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "role      {}", probed.role)?;
    writeln!(out, "{}", report::summary(&probed.figures))?;
    let failed = probed.figures.failed();
    let shut = judged(&mut out, None, &probed.shut);
    anyhow::ensure!(failed == 0, "{failed} dialogues failed");
    shut
}

fn serve_null(port: u16) -> anyhow::Result<()> {
    let null = Null::bind(cli::null_address(port))?;
    writeln!(std::io::stdout().lock(), "http://{}", null.address()?)?;
    Ok(null.serve()?)
}
