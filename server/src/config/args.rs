//! The command line, word for word.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use kiam_wire::go_duration;
use serde::{Serialize, Serializer};

use super::Invalid;
use crate::agent_auth::Mode;
pub use crate::logging::Level;

/// A duration as Go writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GoDuration(pub(super) Duration);

impl FromStr for GoDuration {
    type Err = go_duration::InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        go_duration::parse(text).map(Self)
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.subsec_nanos() == 0 {
            write!(f, "{}s", self.0.as_secs())
        } else {
            write!(f, "{}ms", self.0.as_millis())
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A duration as Go writes it, or a bare number of milliseconds: kiam's flags that end in `-ms` take
/// the former, and everyone who reads their names the latter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Millis(pub(super) Duration);

impl FromStr for Millis {
    type Err = go_duration::InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_bare = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if is_bare {
            let millis = text
                .parse()
                .map_err(|_overflow| go_duration::InvalidDuration::TooLong)?;
            return Ok(Self(Duration::from_millis(millis)));
        }
        go_duration::parse(text).map(Self)
    }
}

/// Gives each pod the credentials of its own IAM role: watches the cluster, fetches role sessions
/// from STS ahead of need, and pushes every node exactly what its pods may have.
#[derive(Debug, Parser)]
#[command(
    name = "kiam-server",
    version,
    args_override_self = true,
    args_conflicts_with_subcommands = true,
    after_help = "Durations are written as Go does: 15m, 1h30m, 500ms. Every flag without a value \
                  has a --no- form. An argument @FILE stands for the lines of FILE.\n\n\
                  Accepted as kiam has them, without effect but for a warning: \
                  --grpc-max-connection-idle-duration, --sync, --prefetch-buffer-size, \
                  --session-refresh, --prometheus-sync-interval, --pprof-listen-addr, --statsd, \
                  --statsd-prefix, --statsd-interval.\n\n\
                  Exit codes: 0 told to stop, 1 could not go on, 2 wrong usage.\n\n\
                  Environment: AWS credentials and endpoints as in every AWS SDK \
                  (AWS_ENDPOINT_URL_STS, AWS_WEB_IDENTITY_TOKEN_FILE, ...); RUST_LOG for the log \
                  of single parts."
)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) serve: Serve,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve; the same as no sub-command.
    Server(Box<Serve>),
    /// Ask a server whether it is well, as a liveness or readiness probe.
    Health(Health),
    /// Ask a server why a pod gets what it gets.
    Why(WhyArgs),
    /// Print a script that completes these flags.
    Completion {
        /// Whose script.
        shell: clap_complete::Shell,
    },
}

/// Flags without a value; each has a `--no-` form.
const SWITCHES: [&str; 10] = [
    "json-log",
    "role-base-arn-autodetect",
    "disable-strict-namespace-regexp",
    "service-account-roles",
    "session-tags",
    "legacy-agents",
    "dry-run",
    "print-config",
    "grpc-keepalive-permit-without-stream",
    "json",
];

#[derive(Debug, clap::Args, Serialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "it is the command line, on which each of them is a word of its own"
)]
pub(super) struct Serve {
    /// Where agents connect, host:port.
    #[arg(long, default_value = "localhost:9610", help_heading = "Serving")]
    pub(super) bind: String,
    /// The server's certificate and its chain, PEM. Re-read when it changes.
    #[arg(long, value_name = "FILE", help_heading = "Serving")]
    pub(super) cert: Option<PathBuf>,
    /// The certificate's key, PEM.
    #[arg(long, value_name = "FILE", help_heading = "Serving")]
    pub(super) key: Option<PathBuf>,
    /// The authorities that sign agents' certificates, PEM. Not needed with --agent-auth token.
    #[arg(long, value_name = "FILE", help_heading = "Serving")]
    pub(super) ca: Option<PathBuf>,
    /// How agents prove which node they are on: by their ServiceAccount token, by a certificate
    /// that names the node (URI or DNS name kiam-node:NAME), or, weaker, by a certificate that all
    /// of them share: then one stolen certificate yields every pod's credentials.
    #[arg(
        long,
        value_enum,
        default_value = "certificate",
        help_heading = "Serving"
    )]
    #[serde(serialize_with = "mode")]
    pub(super) agent_auth: Mode,
    /// The agents' ServiceAccount, for --agent-auth token; may be given several times.
    #[arg(long, value_name = "NAMESPACE/NAME", help_heading = "Serving")]
    pub(super) agent_service_account: Vec<String>,
    /// Serve kiam's own agents, too (API kiam.KiamService), while moving a cluster. Each of them
    /// can ask for every pod's credentials, as with kiam.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true, hide_default_value = true, help_heading = "Serving")]
    pub(super) legacy_agents: bool,
    /// How often a silent agent is pinged.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "10s",
        help_heading = "Serving"
    )]
    pub(super) grpc_keepalive_time_duration: GoDuration,
    /// How long it may take to answer.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "2s",
        help_heading = "Serving"
    )]
    pub(super) grpc_keepalive_timeout_duration: GoDuration,
    /// How old a stream may become before its agent is asked to come back, perhaps to another
    /// replica; more or less a tenth.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "15m",
        help_heading = "Serving"
    )]
    pub(super) grpc_max_connection_age_duration: GoDuration,
    /// How long a connection of that age may take to end.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "15m",
        help_heading = "Serving"
    )]
    pub(super) grpc_max_connection_age_grace_duration: GoDuration,

    /// The API server's kubeconfig; without it, the pod's own ServiceAccount.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "",
        hide_default_value = true,
        help_heading = "Kubernetes"
    )]
    pub(super) kubeconfig: String,
    /// Let a ServiceAccount's annotations be its pods' defaults.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true, hide_default_value = true, help_heading = "Kubernetes")]
    pub(super) service_account_roles: bool,
    /// Let a namespace's rule match any part of a role's ARN instead of all of it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true, hide_default_value = true, help_heading = "Kubernetes")]
    pub(super) disable_strict_namespace_regexp: bool,
    /// Remove this taint from a node when its agent is ready.
    #[arg(long, value_name = "KEY", help_heading = "Kubernetes")]
    pub(super) startup_taint: Option<String>,

    /// What short role names are appended to, such as `arn:aws:iam::123456789012:role/`.
    #[arg(long, value_name = "ARN", help_heading = "AWS")]
    pub(super) role_base_arn: Option<String>,
    /// Find that out from the instance, or from STS.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true, hide_default_value = true, help_heading = "AWS")]
    pub(super) role_base_arn_autodetect: bool,
    /// A role to assume before all others.
    #[arg(
        long,
        value_name = "ROLE",
        default_value = "",
        hide_default_value = true,
        help_heading = "AWS"
    )]
    pub(super) assume_role_arn: String,
    /// The region whose STS is asked.
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        help_heading = "AWS"
    )]
    pub(super) region: String,
    /// The session name of pods that name none; kiam- is put before it.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "kiam",
        help_heading = "AWS"
    )]
    pub(super) session: String,
    /// How long sessions live, 15m to 12h. Renewed at half of it.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "1h",
        help_heading = "AWS"
    )]
    pub(super) session_duration: GoDuration,
    /// Put the six tags of EKS Pod Identity on every session. Each pod then has a session, and an
    /// STS call, of its own.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true, hide_default_value = true, help_heading = "AWS")]
    pub(super) session_tags: bool,
    /// The cluster's name, for --session-tags.
    #[arg(long, value_name = "NAME", help_heading = "AWS")]
    pub(super) cluster_name: Option<String>,
    /// The cluster's ARN, for --session-tags.
    #[arg(long, value_name = "ARN", help_heading = "AWS")]
    pub(super) cluster_arn: Option<String>,
    /// The source identity of every session; may name {namespace}, {service-account} and {pod}.
    #[arg(long, value_name = "TEMPLATE", help_heading = "AWS")]
    pub(super) source_identity: Option<String>,
    /// Calls to STS that may be under way at a time.
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "AWS")]
    pub(super) fetchers: usize,
    /// Calls to STS a second at most; fewer while STS throttles.
    #[arg(long, value_name = "N", default_value_t = 200.0, help_heading = "AWS")]
    pub(super) sts_rate: f64,

    /// Where operators connect: /metrics, /livez, /readyz, /why; off without it.
    #[arg(
        long,
        alias = "prometheus-listen-addr",
        value_name = "ADDRESS",
        help_heading = "Operating"
    )]
    pub(super) admin_listen_addr: Option<String>,
    /// Log JSON.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true, hide_default_value = true, help_heading = "Operating")]
    pub(super) json_log: bool,
    /// How much to log.
    #[arg(long, value_enum, default_value = "info", help_heading = "Operating")]
    pub(super) level: Level,
    /// Watch, decide and report in the log and at /why; fetch nothing and serve no agent.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true, hide_default_value = true, help_heading = "Operating")]
    pub(super) dry_run: bool,
    /// Print the configuration and stop.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true, hide_default_value = true, help_heading = "Operating")]
    pub(super) print_config: bool,

    #[command(flatten)]
    #[serde(skip)]
    pub(super) bygone: Bygone,
}

/// Flags of kiam without a meaning here.
#[derive(Debug, clap::Args)]
pub(super) struct Bygone {
    #[arg(long, hide = true)]
    pub(super) prefetch_buffer_size: Option<usize>,
    #[arg(long, hide = true)]
    pub(super) sync: Option<GoDuration>,
    #[arg(long, hide = true)]
    pub(super) session_refresh: Option<GoDuration>,
    #[arg(long, hide = true)]
    pub(super) prometheus_sync_interval: Option<GoDuration>,
    #[arg(long, hide = true)]
    pub(super) pprof_listen_addr: Option<String>,
    #[arg(long, hide = true)]
    pub(super) grpc_max_connection_idle_duration: Option<GoDuration>,
    #[arg(long, hide = true)]
    pub(super) grpc_keepalive_time_ms: Option<Millis>,
    #[arg(long, hide = true)]
    pub(super) grpc_keepalive_timeout_ms: Option<Millis>,
    #[arg(long, hide = true)]
    pub(super) statsd: Option<String>,
    #[arg(long, hide = true)]
    pub(super) statsd_prefix: Option<String>,
    #[arg(long, hide = true)]
    pub(super) statsd_interval: Option<GoDuration>,
}

/// A probe.
#[derive(Debug, clap::Args)]
pub struct Health {
    /// The server, host:port.
    #[arg(long, default_value = "localhost:9610")]
    pub(crate) server_address: String,
    /// A certificate to show, where the server asks for one.
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// The authority of the server's certificate.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: PathBuf,
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "1s",
        help = "How long to try"
    )]
    pub(crate) timeout: GoDuration,
    #[arg(long, value_name = "DURATION", default_value = "1s", hide = true)]
    pub(crate) gateway_timeout_creation: GoDuration,
    #[arg(long, hide = true)]
    pub(crate) server_address_refresh: Option<GoDuration>,
    #[arg(long, hide = true)]
    pub(crate) grpc_keepalive_time_duration: Option<GoDuration>,
    #[arg(long, hide = true)]
    pub(crate) grpc_keepalive_timeout_duration: Option<GoDuration>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub(crate) grpc_keepalive_permit_without_stream: Option<bool>,
    #[arg(long, value_enum, default_value = "info", hide = true)]
    pub(crate) level: Level,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub(crate) json_log: Option<bool>,
}

impl Health {
    /// How long to try.
    pub const fn timeout(&self) -> Duration {
        self.timeout.0
    }
}

/// A question.
#[derive(Debug, clap::Args)]
pub struct WhyArgs {
    /// The pod.
    #[arg(value_name = "NAMESPACE/POD")]
    pub pod: String,
    /// The server's admin port, host:port.
    ///
    /// The chart tells the server's container its own, so that nobody has to know it.
    #[arg(
        long,
        env = "KIAM_ADMIN_ADDRESS",
        value_name = "HOST:PORT",
        default_value = "localhost:9620"
    )]
    pub admin_address: String,
    /// Answer in JSON.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    pub json: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
fn mode<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    use clap::ValueEnum;
    let value = mode.to_possible_value();
    serializer.serialize_str(value.as_ref().map_or("", |value| value.get_name()))
}

fn command() -> clap::Command {
    Args::command()
}

/// The script that completes our flags in `shell`.
pub fn shell_completion(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "kiam-server", &mut script);
    script
}

pub(super) fn read(args: impl IntoIterator<Item = OsString>) -> Result<Args, Invalid> {
    let mut words = Vec::new();
    for (at, word) in args.into_iter().enumerate() {
        match word.to_str() {
            Some(text) if at > 0 => push(text, &mut words)?,
            Some(_) | None => words.push(word),
        }
    }
    let matches = command().try_get_matches_from(words)?;
    Ok(Args::from_arg_matches(&matches)?)
}

/// kingpin's ways: `--no-switch`, and `@file` for the lines of a file.
fn push(word: &str, words: &mut Vec<OsString>) -> Result<(), Invalid> {
    if let Some(path) = word.strip_prefix('@').filter(|path| !path.is_empty()) {
        let text = std::fs::read_to_string(path).map_err(|source| Invalid::ArgumentFile {
            path: path.into(),
            source,
        })?;
        words.extend(text.lines().map(|line| negated(line).into()));
    } else {
        words.push(negated(word).into());
    }
    Ok(())
}

fn negated(word: &str) -> String {
    match word.strip_prefix("--no-") {
        Some(switch) if SWITCHES.contains(&switch) => format!("--{switch}=false"),
        Some(_) | None => word.to_owned(),
    }
}
