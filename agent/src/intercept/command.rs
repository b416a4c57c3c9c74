//! `kiam-agent intercept install|remove|status|probe`: what each does, says and exits with.
//!
//! Exit codes: 0 done, or in place; 1 it failed; 3 the rules are not in place, or a probe met the
//! node's own metadata service. 2, wrong usage, is decided where flags are parsed.

use std::fmt;
use std::net::IpAddr;
use std::process::ExitCode;

use kiam_wire::UnixSeconds;
use serde_json::{Value, json};

use super::probe::{Outcome, ask, from_namespace};
use super::record::Record;
use super::rules::{METADATA_V4, METADATA_V6, Rules};
use super::{Backend, InterceptError, Placement, choose, install, iptables, remove, status};
use crate::handover::directory::Directory;

/// Beside `--host`, `--port`, `--host-interface` and `--intercept`, which are the agent's own.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Options {
    /// Say it in JSON.
    #[arg(long)]
    pub json: bool,

    /// With remove: take away rules that the Go project kiam left, and leave ours alone.
    #[arg(long)]
    pub kiam_leftovers: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Put the rules in place.
    Install,
    /// Take them away.
    Remove,
    /// Say whether they are in place.
    Status,
    /// Ask the metadata addresses who answers; meant to be run in a pod.
    Probe,
}

/// What to work on.
#[derive(Debug)]
pub struct Setting<'a> {
    /// What the rules should be; a probe needs none.
    pub rules: Option<&'a Rules>,
    /// `None`: nftables where it can be used, else iptables.
    pub backend: Option<Backend>,
    /// Where an installer leaves its record for the agent, with the present boot's id.
    pub handover: Option<(&'a Directory, &'a str)>,
    /// Now.
    pub now: UnixSeconds,
}

/// What is printed, and the exit code.
#[derive(Debug)]
pub struct Answer {
    code: u8,
    text: String,
    json: Value,
    as_json: bool,
}

impl Answer {
    /// For `main`.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    /// 0, 1 or 3.
    pub const fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.as_json {
            write!(f, "{}", self.json)
        } else {
            f.write_str(&self.text)
        }
    }
}

const DONE: u8 = 0;
const FAILED: u8 = 1;
const NOT_IN_PLACE: u8 = 3;

/// Does it. Never fails: a failure is an answer too.
pub async fn run(action: Action, setting: &Setting<'_>, options: Options) -> Answer {
    let answered = match (action, setting.rules) {
        (Action::Probe, _) => Ok(probe()),
        (Action::Remove, _) if options.kiam_leftovers => remove_leftovers().await,
        (Action::Install | Action::Remove | Action::Status, None) => Ok((
            FAILED,
            "--host is needed: the node's address".to_owned(),
            json!({"error": "--host is needed"}),
        )),
        (Action::Install, Some(rules)) => put_in_place(rules, setting).await,
        (Action::Remove, Some(rules)) => take_away(rules, setting).await,
        (Action::Status, Some(rules)) => look(rules, setting).await,
    };
    let (code, text, json) = answered.unwrap_or_else(|error| {
        let text = chain(&error);
        let json = json!({"error": text});
        (FAILED, text, json)
    });
    Answer {
        code,
        text,
        json,
        as_json: options.json,
    }
}

type Said = Result<(u8, String, Value), InterceptError>;

async fn put_in_place(rules: &Rules, setting: &Setting<'_>) -> Said {
    let backend = backend(setting).await?;
    let installed = install(backend, rules, setting.now).await?;
    if let Placement::Altered(how) = status(backend, rules).await? {
        let text = format!("installed, but the kernel lists something else: {how}");
        return Ok((FAILED, text.clone(), json!({"error": text})));
    }
    let probed = probe_and_record(rules, setting).await;
    let leaks = probed.iter().any(|(_, outcome)| *outcome == Outcome::Leak);
    let leftovers = leftovers().await;
    let mut said = vec![format!("installed with {}", backend.name())];
    said.push(match &installed.cut {
        Ok(cut) => format!("{cut} earlier connections cut"),
        Err(error) => format!("WARNING: earlier connections were not looked for: {error}"),
    });
    said.extend(
        probed
            .iter()
            .map(|(metadata, outcome)| format!("probe of {metadata}: {}", outcome.sentence())),
    );
    if leftovers > 0 {
        said.push(format!(
            "{leftovers} rule(s) of the Go project kiam are still there and have no effect, \
             `intercept remove --kiam-leftovers` takes them away"
        ));
    }
    let json = json!({
        "installed": backend.name(),
        "connections_cut": installed.cut.as_ref().ok(),
        "probed": outcomes(&probed),
        "kiam_leftovers": leftovers,
    });
    let code = if leaks { NOT_IN_PLACE } else { DONE };
    Ok((code, said.join("; "), json))
}

/// An installer that cannot probe is no failure: pods' own requests will tell.
async fn probe_and_record(rules: &Rules, setting: &Setting<'_>) -> Vec<(IpAddr, Outcome)> {
    let probed = from_namespace(rules).await.unwrap_or_else(|error| {
        tracing::info!(%error, "not probed");
        Vec::new()
    });
    if let Some((directory, boot_id)) = setting.handover {
        let record = Record::new(rules, boot_id, worst(&probed));
        if let Err(error) = record.write(directory) {
            tracing::warn!(%error, "no record for the agent could be left in the hand-over directory");
        }
    }
    probed
}

/// Of the outcomes of both families, the one that says most against the rules.
fn worst(probed: &[(IpAddr, Outcome)]) -> Option<Outcome> {
    let outcomes = || probed.iter().map(|(_, outcome)| *outcome);
    [
        Outcome::Leak,
        Outcome::Stranger,
        Outcome::Silent,
        Outcome::Refused,
        Outcome::Agent,
    ]
    .into_iter()
    .find(|bad| outcomes().any(|outcome| outcome == *bad))
}

fn outcomes(probed: &[(IpAddr, Outcome)]) -> Value {
    probed
        .iter()
        .map(|(ip, outcome)| json!({"address": ip, "outcome": outcome}))
        .collect()
}

async fn leftovers() -> usize {
    // Without iptables on the node there can be none.
    iptables::leftovers().await.map_or(0, |found| found.len())
}

async fn take_away(rules: &Rules, setting: &Setting<'_>) -> Said {
    remove(rules).await?;
    if let Some((directory, _boot_id)) = setting.handover
        && let Err(error) = Record::remove(directory.path())
    {
        tracing::warn!(%error, "the installer's record could not be removed");
    }
    Ok((
        DONE,
        "removed: pods reach the node's own metadata service now".to_owned(),
        json!({"removed": true}),
    ))
}

async fn look(rules: &Rules, setting: &Setting<'_>) -> Said {
    let backend = backend(setting).await?;
    let leftovers = leftovers().await;
    let (code, state, detail) = match status(backend, rules).await? {
        Placement::InPlace => (DONE, "in place", "in place".to_owned()),
        Placement::Absent => (NOT_IN_PLACE, "absent", "not in place".to_owned()),
        Placement::Altered(how) => (NOT_IN_PLACE, "altered", format!("altered: {how}")),
    };
    let json = json!({
        "state": state, "detail": detail, "backend": backend.name(), "kiam_leftovers": leftovers,
    });
    let mut said = vec![format!("{}: {detail}", backend.name())];
    if leftovers > 0 {
        said.push(format!(
            "{leftovers} rule(s) of the Go project kiam are there as well"
        ));
    }
    Ok((code, said.join("; "), json))
}

async fn remove_leftovers() -> Said {
    let removed = iptables::remove_leftovers().await?;
    let rules: Vec<String> = removed.iter().map(|rule| rule.join(" ")).collect();
    let mut said = vec![format!(
        "{} rule(s) of the Go project kiam removed",
        rules.len()
    )];
    said.extend(rules.iter().map(|rule| format!("  iptables -t nat {rule}")));
    Ok((
        DONE,
        said.join("\n"),
        json!({"kiam_leftovers_removed": rules}),
    ))
}

/// A family that is silent or unreachable here is ordinary; a leak in either is not.
fn probe() -> (u8, String, Value) {
    let probed: [(IpAddr, Outcome); 2] =
        [METADATA_V4.into(), METADATA_V6.into()].map(|ip| (ip, ask(ip)));
    let leaks = probed.iter().any(|(_, outcome)| *outcome == Outcome::Leak);
    let text = probed
        .iter()
        .map(|(ip, outcome)| format!("{ip}: {}", outcome.sentence()))
        .collect::<Vec<_>>()
        .join("\n");
    let code = if leaks { NOT_IN_PLACE } else { DONE };
    (code, text, outcomes(&probed))
}

async fn backend(setting: &Setting<'_>) -> Result<Backend, InterceptError> {
    match setting.backend {
        Some(backend) => Ok(backend),
        None => choose().await,
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
