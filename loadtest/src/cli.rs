//! What can be said on the command line.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};

use clap::{Parser, Subcommand};

use crate::perf::Perf;
use crate::plan::Plan;
use crate::probe::Probe;
use crate::run::Run;
use crate::scale::Scale;
use crate::soak::Soak;
use crate::up::{Sim, Up};

/// kiam under load, on this machine.
///
/// Without a command: a simulated cluster and STS, the real server and the real agent over mutual
/// TLS, pods that come and go for a few seconds while SDK dialogues are run against the agent, and a
/// table. Exits with 0 only if every pod got its own credentials and nobody else's.
#[derive(Debug, Parser)]
#[command(
    name = "kiam-loadtest",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub plan: Plan,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The whole system, left running, with lines to try.
    Up(Up),
    /// A measured run against the null server, with faults and gates.
    Run(Box<Run>),
    /// One server against a large simulated cluster with simulated agents.
    Scale(Box<Scale>),
    /// The standard series of runs, and docs/perf.md with its plots made of it.
    Report(Box<Perf>),
    /// The whole system for a long time, with every fault in turn: what grows, and who noticed.
    Soak(Box<Soak>),
    /// Asks an agent that is already running, from inside a pod.
    Probe(Box<Probe>),
    /// Only the simulated cluster and STS, for a server and an agent started by hand.
    Sim(Sim),
    /// The null server: answers every request alike, as fast as the kernel allows.
    Null {
        /// The port to listen on, on 127.0.0.1; 0 picks one and prints it.
        #[arg(long, value_name = "PORT", default_value_t = 0)]
        port: u16,
        /// Ends this process when the one that started it does.
        #[arg(long, hide = true)]
        with_parent: bool,
    },
    /// This binary as kiam-agent.
    #[command(hide = true, disable_help_flag = true)]
    Agent {
        /// Ends this process when the one that started it does.
        #[arg(long)]
        with_parent: bool,
        /// Its flags.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// This binary as kiam-server.
    #[command(hide = true, disable_help_flag = true)]
    Server {
        /// Ends this process when the one that started it does.
        #[arg(long)]
        with_parent: bool,
        /// Its flags.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// Where the null server listens.
pub(crate) fn null_address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
