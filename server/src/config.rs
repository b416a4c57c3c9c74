//! What the operator asked for.
//!
//! Two steps: [`args`] is what was typed, kiam's flags under kiam's names; [`Config`] is what the
//! program may rely on. Whatever contradicts itself is refused with a sentence that says what to
//! change; what kiam had and has no meaning here is accepted with one warning.
//!
//! Defaults that differ from kiam's, and why: `--session-duration` is 1h, because SDKs that see less
//! than about 25 minutes left ask at every call. `--agent-auth` is `certificate`: it needs no more
//! files than kiam did, and a certificate that all nodes share is refused with a word of advice
//! instead of being worth every pod's credentials.

mod args;
mod validate;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub use args::{Health, Level, WhyArgs, shell_completion};

use crate::agent_auth::{Account, Mode};
use crate::arn::BaseArn;
use crate::nodes::Kind;
use crate::pods::Source;
use crate::policy::{ClusterTags, Matching, SourceIdentity};
use crate::sts::schedule::Limits;
use crate::tls::{Clients, Files};

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Serve.
    Serve(Box<Config>),
    /// Print the configuration that would be served with.
    PrintConfig(String),
    /// Ask a server whether it is well.
    Health(Health),
    /// Ask a server why a pod gets what it gets.
    Why(WhyArgs),
    /// Print what completes our flags in a shell.
    Completion(clap_complete::Shell),
}

/// What the program may rely on.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent wish of the operator"
)]
pub struct Config {
    /// Where agents come, `host:port`.
    pub bind: String,
    /// Where operators come; `None`: nowhere.
    pub admin: Option<String>,
    /// The API server.
    pub kubernetes: Source,
    /// What is watched.
    pub kinds: Vec<Kind>,
    /// Certificates; `None` in a dry run that was given none.
    pub tls: Option<Files>,
    /// Whether clients show certificates.
    pub clients: Clients,
    /// How agents prove where they are.
    pub agent_auth: Mode,
    /// Whose tokens are agents'.
    pub agent_accounts: Vec<Account>,
    /// Where short role names belong.
    pub base: Base,
    /// The role the server assumes first, as written.
    pub assume_role: Option<String>,
    /// STS' region.
    pub region: Option<String>,
    /// The default session name.
    pub session_name: String,
    /// The default session's life: 15 minutes to 12 hours.
    pub session_duration: Duration,
    /// Whether `ServiceAccount`s carry defaults.
    pub service_account_roles: bool,
    /// The tags of EKS Pod Identity.
    pub session_tags: Option<ClusterTags>,
    /// The source identity.
    pub source_identity: Option<SourceIdentity>,
    /// How much of an ARN a namespace's rule must match.
    pub matching: Matching,
    /// The budget of calls to STS.
    pub limits: Limits,
    /// The taint to remove.
    pub startup_taint: Option<String>,
    /// Whether kiam's agents are served.
    pub legacy_agents: bool,
    /// Watch, decide and report only.
    pub dry_run: bool,
    /// How streams and connections are kept.
    pub keeping: Keeping,
    /// How much is logged.
    pub level: Level,
    /// As JSON.
    pub json_log: bool,
    /// Remarks for the log.
    pub warnings: Vec<String>,
    /// The flags as understood, as JSON. No secret is among them.
    pub shown: String,
}

/// Where short role names belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Here.
    Given(BaseArn),
    /// In the account the server runs in.
    Autodetect,
}

/// How streams and connections are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// How often a silent agent is pinged.
    pub ping_every: Duration,
    /// How long it may take to answer.
    pub ping_timeout: Duration,
    /// How old a stream may become, more or less a tenth.
    pub age_max: Duration,
    /// How long a connection may take to end after that.
    pub age_grace: Duration,
}

/// The command line makes no sense. Its text says what to change.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// The parser's own message, which is also how help and version are asked for.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    /// A flag's file of arguments cannot be read.
    #[error("@{path}: {source}")]
    ArgumentFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A contradiction.
    #[error("{0}")]
    Contradiction(String),
}

/// Reads a command line, the first of `args` being the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Task, Invalid> {
    let parsed = args::read(args)?;
    validate::validate(parsed)
}

#[cfg(test)]
mod tests;
