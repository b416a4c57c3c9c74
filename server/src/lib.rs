//! The kiam server: decides, fetches ahead, and tells each node what its pods may have.
//!
//! A pod's way to its credentials, in order:
//! - [`pods`]: what the cluster says; the only room that names kube.
//! - [`nodes`]: all of it in one place: which pods there are, where, and whose an address is.
//! - [`annotations`], [`arn`], [`policy`]: what a pod asks for, and what it may have.
//! - [`ledger`]: who holds what, and until when. [`sts`]: where it comes from.
//! - [`snapshot`]: what each node should be serving. [`push`]: telling the nodes.
//! - [`agent_auth`], [`tls`]: to whom. [`legacy`]: the same for kiam's own agents.
//!
//! Around it: [`app`] puts the rooms together, [`config`] reads the flags, [`events`], [`why`],
//! [`metrics`], [`admin`] and [`logging`] say what happens, [`keys`] and [`taint`] do two chores,
//! [`base_arn`] finds out where this is, [`clock`], [`drain`], [`freshness`] and [`readiness`]
//! are used by all.
//!
//! # Invariants
//! - A stream carries the pods of the node that its agent was found to be on, and no others.
//! - A decision is taken only when everything it depends on has been seen.
//! - Nothing is queued for an agent: what it has not been told is worked out when it can be told.
//! - Deciding rooms (`nodes`, `policy`, `ledger`, `snapshot`, `why`) read no clock and do no I/O.

pub mod admin;
pub mod agent_auth;
pub mod annotations;
pub mod app;
pub mod arn;
pub mod base_arn;
pub mod clock;
pub mod config;
pub mod drain;
pub mod events;
pub mod freshness;
pub mod keys;
pub mod ledger;
pub mod legacy;
pub mod logging;
pub mod metrics;
pub mod nodes;
pub mod pods;
pub mod policy;
pub mod push;
pub mod readiness;
pub mod snapshot;
pub mod sts;
pub mod taint;
pub mod tls;
pub mod why;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use kiam_wire::process;
use tokio::runtime::{self, Runtime};

use config::{Config, Invalid, Task};

/// Wrong usage.
const USAGE: u8 = 2;

/// The whole program. The first of `args` is its name, the rest what `kiam-server` takes. Returns 0
/// when it was told to stop, 1 when it could not go on, 2 when `args` make no sense.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let task = match config::parse(args) {
        Ok(task) => task,
        Err(invalid) => return misused(&invalid),
    };
    match perform(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Serve(config) => serve(*config),
        Task::PrintConfig(text) => print(text.as_bytes()),
        Task::Health(probe) => print(runtime()?.block_on(app::health(&probe))?.as_bytes()),
        Task::Why(question) => print(runtime()?.block_on(app::why(&question))?.as_bytes()),
        Task::Completion(shell) => print(&config::shell_completion(shell)),
    }
}

fn runtime() -> std::io::Result<Runtime> {
    runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("kiam-server")
        .build()
}

fn serve(config: Config) -> anyhow::Result<()> {
    // When this process logs already it is the load test, which wants to.
    drop(logging::start(config.level, config.json_log));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        dry_run = config.dry_run,
        "kiam-server"
    );
    process::open_files::raise();
    // Before there are threads: part of it is each thread's own, and handed down to those it starts.
    process::hardening::harden();
    runtime()?.block_on(async {
        let bound = Box::pin(app::build(config)).await?;
        bound.run(stop()?).await
    })
}

/// Completes at the first SIGTERM or SIGINT.
fn stop() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _signal = terminate.recv() => {}
            _signal = interrupt.recv() => {}
        }
    })
}

/// Help and version are asked for in the same way as mistakes are made.
fn misused(invalid: &Invalid) -> ExitCode {
    if let Invalid::Usage(error) = invalid {
        // Nothing better can be done about a closed terminal.
        let _printed = error.print().is_ok();
        let code = u8::try_from(error.exit_code()).unwrap_or(USAGE);
        return ExitCode::from(code);
    }
    complain(&invalid.to_string());
    ExitCode::from(USAGE)
}

fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    if !bytes.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn complain(text: &str) {
    // Nothing better can be done about a closed terminal.
    let _printed = writeln!(std::io::stderr(), "kiam-server: {text}").is_ok();
}
