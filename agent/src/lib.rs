//! The agent: answers the pods of one node as the metadata service would, from memory.
//!
//! An update's way to an answer, in order:
//!
//! - [`config`]: what the operator asked for.
//! - [`control`]: follows a server, on one thread of its own.
//! - [`snapshot`]: what an update makes of the node, published by one swap.
//! - [`response`]: answers, rendered once for each update.
//! - [`data`]: the workers that give them, [`doorbell`]: how they learn of news.
//! - [`mod@intercept`]: how pods' requests get here, [`fence`]: pods that the kernel saw go,
//!   [`handover`](mod@handover): what outlives the process.
//! - [`app`]: puts all of it together; [`readiness`] is what it still lacks.
//! - [`metrics`], [`tally`], [`logging`]: what it tells; [`clock`]: what time it is;
//!   [`hardening`]: what others may not see; [`open_files`]: how many connections there may be.
//!
//! # Invariants
//! - A request never waits on the network: starting, serving and stopping need no server.
//! - The snapshot is never cleared because something went wrong; only its parts expire.
//! - `data` names nothing of `control`, nor the other way round; they meet in `snapshot`.

pub mod app;
mod buffer;
pub mod clock;
pub mod config;
pub mod control;
pub mod data;
pub mod doorbell;
pub mod fence;
pub mod handover;
pub mod hardening;
pub mod intercept;
pub mod logging;
pub mod metrics;
pub mod open_files;
pub mod readiness;
pub mod response;
pub mod snapshot;
pub mod tally;

use std::ffi::OsString;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::thread::available_parallelism;

use kiam_wire::process;
use tracing::{error, warn};

use crate::config::{Config, Intercept, Interceptor, Invalid, RulesTask, Task};
use crate::handover::directory::Directory;
use crate::intercept::Backend;
use crate::intercept::command::{self, Setting};

/// Wrong usage.
const USAGE: u8 = 2;

/// The whole program. The first of `args` is its name, the rest what `kiam-agent` takes. Returns 0
/// when it was told to stop, 1 when it could not go on, 2 when `args` make no sense.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cores = available_parallelism().unwrap_or(NonZeroUsize::MIN);
    match config::parse(args, cores) {
        Ok(Task::Serve(config)) => outcome(serve(*config)),
        Ok(Task::Rules(task)) => intercept(*task).unwrap_or_else(|failure| outcome(Err(failure))),
        Ok(Task::Completion(shell)) => outcome(
            io::stdout()
                .write_all(&config::completion(shell))
                .map_err(Into::into),
        ),
        Err(invalid) => misused(&invalid),
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    // When the process logs already it is the load test, which wants to.
    drop(logging::start(config.log));
    process::open_files::raise();
    process::hardening::harden();
    hardening::while_starting();
    config.log();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .thread_name("control")
        .build()?;
    let result = runtime.block_on(async {
        let app = Box::pin(app::build(config)).await?;
        Box::pin(app.run()).await
    });
    // A resolver that hangs must not keep the process from ending.
    runtime.shutdown_background();
    result
}

/// `kiam-agent intercept`: does it, says what came of it on standard output, and exits accordingly.
fn intercept(task: RulesTask) -> anyhow::Result<ExitCode> {
    let RulesTask {
        action,
        options,
        intercept:
            Intercept {
                with,
                remove_at_exit: _,
                rules,
            },
        handover_dir,
        log,
    } = task;
    drop(logging::start(log));
    let handover = handover_dir.and_then(|path| handover(&path));
    let setting = Setting {
        rules: rules.as_ref(),
        backend: match with {
            Some(Interceptor::Nftables) => Some(Backend::Nftables),
            Some(Interceptor::Iptables) => Some(Backend::Iptables),
            Some(Interceptor::Auto) | None => None,
        },
        handover: handover
            .as_ref()
            .map(|(directory, boot_id)| (directory, boot_id.as_str())),
        now: clock::Now::read().wall,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answer = runtime.block_on(command::run(action, &setting, options));
    writeln!(io::stdout(), "{answer}")?;
    Ok(answer.exit_code())
}

/// Where the agent is told. Rules without a record are worth more than no rules: the agent then waits
/// for a pod's request before it calls them verified.
fn handover(path: &Path) -> Option<(Directory, String)> {
    let opened = Directory::open(path).map_err(anyhow::Error::from);
    opened
        .and_then(|directory| Ok((directory, handover::boot_id()?)))
        .inspect_err(|error| {
            let error = format!("{error:#}");
            warn!(error, "the agent will not be told of what is installed");
        })
        .ok()
}

fn outcome(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!(error = format!("{failure:#}"), "the agent cannot go on");
            ExitCode::FAILURE
        }
    }
}

/// Help and the version are asked for in the same way as nonsense, and are no misuse.
fn misused(invalid: &Invalid) -> ExitCode {
    if let Invalid::Words(words) = invalid {
        drop(words.print());
        return if words.use_stderr() {
            ExitCode::from(USAGE)
        } else {
            ExitCode::SUCCESS
        };
    }
    // Nobody is left to tell when this fails.
    drop(writeln!(
        io::stderr(),
        "error: {invalid}\n\nFor more information, try '--help'."
    ));
    ExitCode::from(USAGE)
}
