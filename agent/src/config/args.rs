//! What the operator typed, flag by flag.
//!
//! Each group of flags is a file that holds their names, their help and the function that turns
//! them into a part of [`Config`]. Every such function takes its struct apart without `..`, so that
//! a flag that is parsed but never used does not compile.

#![expect(
    clippy::doc_markdown,
    reason = "doc comments here are help texts, and terminals show backticks as they are"
)]

pub(crate) mod ignored;
pub(crate) mod intercept;
pub(crate) mod limits;
pub(crate) mod logs;
pub(crate) mod node;
pub(crate) mod pods;
pub(crate) mod server;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use self::node::clash;
use super::{Config, Invalid, RulesTask, Task, kingpin};
use crate::intercept::command::{Action, Options};

/// Gives each pod of this node its own AWS credentials, and never the node's.
///
/// The agent answers pods as the EC2 metadata service would, from a snapshot that the server keeps
/// up to date. It starts, listens and serves what its predecessor left without any server.
///
/// Durations are written 15m, 1h30m or 100ms. Flags that take no value are switched off with --no-
/// in front. @FILE stands for the arguments in FILE, one a line.
#[derive(Debug, Parser)]
#[command(
    name = "kiam-agent",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 stopped when asked to, 1 failure, 2 wrong usage."
)]
struct ServeArgs {
    #[command(flatten)]
    server: server::ServerArgs,
    #[command(flatten)]
    node: node::NodeArgs,
    #[command(flatten)]
    pods: pods::PodArgs,
    #[command(flatten)]
    intercept: intercept::InterceptArgs,
    #[command(flatten)]
    limits: limits::LimitArgs,
    #[command(flatten)]
    logs: logs::LogArgs,
    #[command(flatten)]
    ignored: ignored::IgnoredArgs,
}

// What the program does besides serving. No doc comment: clap would show it in place of the one above.
#[derive(Debug, Subcommand)]
enum CommandWord {
    /// Installs, removes or shows the rules that direct pods' metadata requests to the agent.
    ///
    /// For an init container with NET_ADMIN, so that the agent itself needs none. Exit codes: 0
    /// done, or the rules are in place; 1 failure; 2 wrong usage; 3 the rules are not in place, or
    /// a probe met the node's own metadata service.
    Intercept(RulesArgs),
    /// Prints a completion script for a shell.
    Completion {
        /// bash, zsh or fish.
        #[arg(value_enum)]
        shell: ShellWord,
    },
}

#[derive(Debug, Args)]
struct RulesArgs {
    /// What to do with the rules.
    #[arg(value_enum)]
    action: ActionWord,

    /// The port the agent answers on.
    #[arg(long, value_name = "PORT", default_value = "3100")]
    port: u16,

    /// Where to tell the agent that the rules are in place, as the agent is given it.
    #[arg(long, value_name = "DIRECTORY")]
    handover_dir: Option<PathBuf>,

    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    intercept: intercept::InterceptArgs,
    #[command(flatten)]
    logs: logs::LogArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ActionWord {
    /// Put the rules in place, replacing those of an earlier address or port.
    Install,
    /// Take them away: pods then reach the node's own credentials.
    Remove,
    /// Say whether they are in place.
    Status,
    /// Ask the metadata addresses who answers; run it in a pod.
    Probe,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ShellWord {
    Bash,
    Zsh,
    Fish,
}

/// The whole command line, for parsing, help and completion.
pub(crate) fn command() -> Command {
    CommandWord::augment_subcommands(ServeArgs::command()).subcommand_required(false)
}

/// What the command line asks for. `cores` is what the machine lets this process use.
pub(crate) fn parse(
    args: impl IntoIterator<Item = OsString>,
    cores: NonZeroUsize,
) -> Result<Task, Invalid> {
    let args = kingpin::normalise(args, &mut command())?;
    let matches = command().try_get_matches_from(args)?;
    if matches.subcommand_name().is_none() {
        let config = ServeArgs::from_arg_matches(&matches)?.validate(cores)?;
        return Ok(Task::Serve(Box::new(config)));
    }
    match CommandWord::from_arg_matches(&matches)? {
        CommandWord::Intercept(rules) => rules.validate(),
        CommandWord::Completion { shell } => Ok(Task::Completion(match shell {
            ShellWord::Bash => Shell::Bash,
            ShellWord::Zsh => Shell::Zsh,
            ShellWord::Fish => Shell::Fish,
        })),
    }
}

impl ServeArgs {
    fn validate(self, cores: NonZeroUsize) -> Result<Config, Invalid> {
        let Self {
            server,
            node,
            pods,
            intercept,
            limits,
            logs,
            ignored,
        } = self;
        let pods = pods.validate(cores)?;
        let config = Config {
            server: server.validate()?,
            node: node.validate()?,
            intercept: intercept.validate(pods.listen.port())?,
            pods,
            limits: limits.validate()?,
            log: logs.validate(),
            ignored: ignored.validate(),
        };
        let doors = config.pods.container.iter().flat_map(|door| &door.listen);
        let mut taken = vec![("--port", config.pods.listen)];
        let others = doors.map(|door| ("--container-credentials-listen", *door));
        let admin = config
            .node
            .admin
            .map(|admin| ("--admin-listen-addr", admin));
        for (flag, address) in others.chain(admin) {
            if let Some((other, _)) = taken.iter().find(|(_, other)| clash(*other, address)) {
                return Err(Invalid::SameAddress(flag, other, address));
            }
            taken.push((flag, address));
        }
        Ok(config)
    }
}

impl RulesArgs {
    fn validate(self) -> Result<Task, Invalid> {
        let Self {
            action,
            port,
            handover_dir,
            options,
            intercept,
            logs,
        } = self;
        let action = match action {
            ActionWord::Install => Action::Install,
            ActionWord::Remove => Action::Remove,
            ActionWord::Status => Action::Status,
            ActionWord::Probe => Action::Probe,
        };
        if port == 0 {
            return Err(Invalid::Zero("--port"));
        }
        let intercept = intercept.validate(port)?;
        let needs_rules = match action {
            Action::Install | Action::Status => true,
            Action::Remove => !options.kiam_leftovers,
            Action::Probe => false,
        };
        if needs_rules && intercept.rules.is_none() {
            return Err(Invalid::HostMissing);
        }
        Ok(Task::Rules(Box::new(RulesTask {
            action,
            options,
            intercept,
            handover_dir,
            log: logs.validate(),
        })))
    }
}
