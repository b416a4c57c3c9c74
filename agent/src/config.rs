//! What the program may rely on, once what the operator typed has been found to make sense.
//!
//! [`parse`] is the only way to a [`Config`]; the flags are in `args`. Environment variables are
//! read here, through clap, and nowhere else.

pub mod address;
mod args;
pub mod endpoint;
mod invalid;
mod kingpin;
pub mod listen;
mod switch;
mod understood;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::Shell;

use self::address::ServerAddress;
pub use self::invalid::Invalid;
pub use self::kingpin::Unreadable;
use crate::data::{DriverChoice, Limits, Passthrough, Scheduling};
use crate::intercept::command::{Action, Options};
use crate::intercept::rules::Rules;

/// What the program was asked to do.
#[derive(Debug)]
pub enum Task {
    /// Be the agent.
    Serve(Box<Config>),
    /// `kiam-agent intercept`.
    Rules(Box<RulesTask>),
    /// `kiam-agent completion`.
    Completion(Shell),
}

/// What to do with the interception rules.
#[derive(Debug)]
pub struct RulesTask {
    /// Install, remove, look or ask.
    pub action: Action,
    /// How.
    pub options: Options,
    /// What the rules are, and who installs them; `None` there is whoever can.
    pub intercept: Intercept,
    /// Where the agent is told.
    pub handover_dir: Option<PathBuf>,
    /// How to log meanwhile.
    pub log: Log,
}

/// The agent's configuration.
#[derive(Debug)]
pub struct Config {
    /// Reaching the server.
    pub server: Server,
    /// This node.
    pub node: Node,
    /// How pods are answered.
    pub pods: Pods,
    /// How their requests get here.
    pub intercept: Intercept,
    /// How much of the agent they may use.
    pub limits: Limits,
    /// What is written.
    pub log: Log,
    /// Flags of kiam's that were given and mean nothing here.
    pub ignored: Vec<&'static str>,
}

/// Reaching the server and proving who this is.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where the servers are.
    pub address: ServerAddress,
    /// The authorities that their certificate may come from.
    pub ca: PathBuf,
    /// The agent's own certificate; with none there is a token.
    pub identity: Option<Identity>,
    /// The agent's ServiceAccount token.
    pub token_file: Option<PathBuf>,
    /// For TCP and TLS, for each address.
    pub connect_timeout: Duration,
    /// From there to the first update.
    pub first_update_timeout: Duration,
    /// Pings.
    pub keepalive: Keepalive,
    /// Waits between attempts.
    pub reconnect: Reconnect,
}

/// A client certificate on disk.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The PEM file of the certificate and its chain.
    pub certificate: PathBuf,
    /// The PEM file of its key.
    pub key: PathBuf,
}

/// HTTP/2 pings.
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    /// How often a quiet connection is pinged.
    pub every: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// Waits between connection attempts: `0 < delay_min <= delay_max`.
#[derive(Debug, Clone, Copy)]
pub struct Reconnect {
    /// The longest first wait.
    pub delay_min: Duration,
    /// The longest wait of all.
    pub delay_max: Duration,
}

/// This node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name in Kubernetes.
    pub name: String,
    /// Where metrics and health are served, if anywhere.
    pub admin: Option<SocketAddr>,
    /// Where the next agent finds what this one knew.
    pub handover_dir: Option<PathBuf>,
    /// How long requests in flight may take to finish at the end.
    pub shutdown_grace: Duration,
}

/// How pods are answered.
#[derive(Debug, Clone)]
pub struct Pods {
    /// Where the metadata door is.
    pub listen: SocketAddr,
    /// The threads that answer.
    pub workers: Workers,
    /// Whether requests without a token are refused.
    pub imds_v2_only: bool,
    /// The hop limit of answers that carry a token; `None` is the kernel's default.
    pub token_hop_limit: Option<NonZeroU8>,
    /// Below this remaining life a metric is raised.
    pub min_remaining: Duration,
    /// The second door, if it is open.
    pub container: Option<ContainerDoor>,
    /// What is passed on to the real metadata service, if anything.
    pub passthrough: Option<Passthrough>,
    /// The answer to `placement/region`.
    pub region: Option<String>,
    /// The answer to `placement/availability-zone`.
    pub availability_zone: Option<String>,
    /// Whether a request may say which pod it comes from.
    pub allow_ip_query: bool,
    /// Whether each credential handed out is logged.
    pub audit_log: bool,
}

/// The threads that answer pods.
#[derive(Debug, Clone, Copy)]
pub struct Workers {
    /// How many: at most one per core.
    pub count: NonZeroUsize,
    /// Whether each keeps to a core of its own.
    pub pinned: bool,
    /// How they wait for the network.
    pub driver: DriverChoice,
    /// How the kernel schedules them.
    pub scheduling: Scheduling,
}

/// The container credentials door.
#[derive(Debug, Clone)]
pub struct ContainerDoor {
    /// Where; at least one.
    pub listen: Vec<SocketAddr>,
    /// What tokens must be for.
    pub audience: String,
}

/// How pods' requests get here.
#[derive(Debug, Clone)]
pub struct Intercept {
    /// Who installs the rules; `None` is someone else. With it `rules` is there.
    pub with: Option<Interceptor>,
    /// Whether the rules go when the agent stops.
    pub remove_at_exit: bool,
    /// What the rules are; `None` without `--host`.
    pub rules: Option<Rules>,
}

/// What installs the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interceptor {
    /// nftables where it can be used, else iptables.
    Auto,
    /// An nftables table of our own.
    Nftables,
    /// Rules in the chains of iptables.
    Iptables,
}

/// What is written.
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// JSON rather than text.
    pub json: bool,
    /// The least important messages written.
    pub level: Level,
}

/// How important a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Every request.
    Debug,
    /// What an operator wants to have read.
    Info,
    /// What may need attention.
    Warn,
    /// What does.
    Error,
}

/// What the command line, the first of `args` being the program's name, asks for. `cores` is how
/// many the machine lets this process use.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    cores: NonZeroUsize,
) -> Result<Task, Invalid> {
    args::parse(args, cores)
}

/// The script that completes our flags in `shell`.
pub fn completion(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "kiam-agent", &mut script);
    script
}
