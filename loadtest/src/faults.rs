//! What goes wrong during a run, and when: `server-killed@3`, `sts-throttled@5+10`. What operators do
//! on purpose counts as well: upgrades and rotations.

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use kiam_sim::faults::Reach;

use crate::clock;
use crate::system::System;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    ServerKilled,
    /// Told to end, and started again.
    ServerStopped,
    AgentKilled,
    /// Another takes its place; needs a `--handover-dir`.
    AgentUpgraded,
    StsThrottled,
    StsDown,
    StsHanging,
    ApiDown,
    /// Every watch ends with 410 Gone and nothing older may be watched from.
    WatchesExpired,
    /// New certificates and keys of the same authority.
    CertificatesRotated,
    /// A new authority: trusted beside the old one while the fault lasts, alone after it.
    AuthorityRotated,
    /// The cluster signs ServiceAccount tokens with a new key.
    TokenKeysRotated,
}

/// By name.
pub(crate) const KINDS: [(&str, Kind); 12] = [
    ("server-killed", Kind::ServerKilled),
    ("server-stopped", Kind::ServerStopped),
    ("agent-killed", Kind::AgentKilled),
    ("agent-upgraded", Kind::AgentUpgraded),
    ("sts-throttled", Kind::StsThrottled),
    ("sts-down", Kind::StsDown),
    ("sts-hanging", Kind::StsHanging),
    ("api-down", Kind::ApiDown),
    ("watches-expired", Kind::WatchesExpired),
    ("certificates-rotated", Kind::CertificatesRotated),
    ("authority-rotated", Kind::AuthorityRotated),
    ("token-keys-rotated", Kind::TokenKeysRotated),
];

impl Kind {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        let named = KINDS.iter().find(|(_name, kind)| *kind == self);
        named.map_or("", |(name, _kind)| *name)
    }
}

/// A fault, when it begins, and how long it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    kind: Kind,
    at: Duration,
    lasts: Duration,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, at) = (self.kind.name(), self.at.as_secs_f64());
        write!(f, "{name}@{at}+{}", self.lasts.as_secs_f64())
    }
}

impl Fault {
    fn ends(&self) -> Duration {
        self.at + self.lasts
    }

    /// Whether pods are not answered while it lasts.
    pub(crate) fn leaves_no_agent(&self) -> bool {
        self.kind == Kind::AgentKilled
    }
}

/// How long a fault lasts when nothing is said.
const LASTS: Duration = Duration::from_secs(2);
/// No run is as long.
const TIME_MAX: Duration = Duration::from_hours(24 * 365);

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || {
            format!(
                "a fault is NAME@SECONDS or NAME@SECONDS+LENGTH, NAME one of {}",
                names()
            )
        };
        let (name, when) = text.split_once('@').ok_or_else(shape)?;
        let (_, kind) = KINDS
            .into_iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(shape)?;
        let seconds = |text: &str| {
            let seconds = text.parse::<f64>().ok();
            seconds
                .and_then(|s| Duration::try_from_secs_f64(s).ok())
                .filter(|time| *time <= TIME_MAX)
                .ok_or_else(shape)
        };
        let (at, lasts) = match when.split_once('+') {
            Some((at, lasts)) => (seconds(at)?, seconds(lasts)?),
            None => (seconds(when)?, LASTS),
        };
        Ok(Self { kind, at, lasts })
    }
}

fn names() -> String {
    KINDS.map(|(name, _kind)| name).join(", ")
}

/// What `--fault` says of itself.
pub(crate) fn help() -> String {
    format!(
        "Something that goes wrong during the run, as NAME@SECONDS or NAME@SECONDS+LENGTH ({} s \
         without); may be given several times, one to end before the next begins. Names: {}",
        LASTS.as_secs(),
        names()
    )
}

/// Refuses faults that could not happen as they are written in a run of this length, before anything
/// is run. A run whose fault did not happen has tested nothing, and its gates would be open.
pub(crate) fn check(
    faults: &[Fault],
    length: Duration,
    agent_flags: &[OsString],
) -> anyhow::Result<()> {
    let in_order = in_order(faults);
    for fault in &in_order {
        anyhow::ensure!(
            fault.ends() <= length,
            "--fault {fault}: it ends after {} s and the run after {} s; --seconds or --rounds make it \
             longer",
            fault.ends().as_secs_f64(),
            length.as_secs_f64()
        );
        let handover = agent_flags.iter().any(|flag| {
            let flag = flag.to_string_lossy();
            flag.starts_with("--handover-dir")
        });
        anyhow::ensure!(
            fault.kind != Kind::AgentUpgraded || handover,
            "--fault {fault}: an agent that takes another's place needs \
             --agent-flag=--handover-dir=DIR, DIR in memory, for example below /dev/shm"
        );
    }
    for (one, next) in in_order.iter().zip(in_order.iter().skip(1)) {
        anyhow::ensure!(
            one.ends() <= next.at,
            "--fault {next}: {one} has not ended when it begins, and one ends before the next begins"
        );
    }
    Ok(())
}

fn in_order(faults: &[Fault]) -> Vec<Fault> {
    let mut faults = faults.to_vec();
    faults.sort_unstable_by_key(|fault| fault.at);
    faults
}

/// Lets the faults happen, in order, counting from now. They have been checked.
pub(crate) fn happen(faults: &[Fault], system: &System) -> anyhow::Result<()> {
    let start = clock::now();
    for fault in in_order(faults) {
        clock::sleep_until(start + fault.at);
        begin(fault.kind, system)?;
        clock::sleep_until(start + fault.at + fault.lasts);
        end(fault.kind, system)?;
    }
    Ok(())
}

/// Makes it go wrong.
pub(crate) fn begin(kind: Kind, system: &System) -> anyhow::Result<()> {
    let simulation = system.simulation();
    let (cluster, sts) = (simulation.cluster(), simulation.sts());
    match kind {
        Kind::ServerKilled => system.kill_server()?,
        Kind::ServerStopped => system.stop_server()?,
        Kind::AgentKilled => system.kill_agent()?,
        Kind::AgentUpgraded => system.upgrade_agent()?,
        Kind::StsThrottled => sts.throttle_share(1.0),
        Kind::StsDown => sts.faults().set_reach(Reach::Down),
        Kind::StsHanging => sts.faults().set_reach(Reach::Hanging),
        Kind::ApiDown => cluster.faults().set_reach(Reach::Down),
        Kind::WatchesExpired => {
            cluster.compact();
            cluster.faults().expire_watches();
        }
        Kind::CertificatesRotated => simulation.rotate_certificates()?,
        Kind::AuthorityRotated => {
            simulation.introduce_authority()?;
            simulation.rotate_certificates()?;
        }
        Kind::TokenKeysRotated => cluster.rotate_signing_key()?,
    }
    Ok(())
}

/// Makes it well again.
pub(crate) fn end(kind: Kind, system: &System) -> anyhow::Result<()> {
    let simulation = system.simulation();
    match kind {
        Kind::ServerKilled | Kind::ServerStopped => system.restart_server()?,
        Kind::AgentKilled => system.restart_agent()?,
        Kind::StsThrottled => simulation.sts().throttle_share(0.0),
        Kind::StsDown | Kind::StsHanging => simulation.sts().faults().set_reach(Reach::Up),
        Kind::ApiDown => simulation.cluster().faults().set_reach(Reach::Up),
        Kind::AuthorityRotated => simulation.retire_authority()?,
        Kind::AgentUpgraded
        | Kind::WatchesExpired
        | Kind::CertificatesRotated
        | Kind::TokenKeysRotated => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(Kind, u64, u64)>) {
        let expected = expected.map(|(kind, at, lasts)| Fault {
            kind,
            at: Duration::from_millis(at),
            lasts: Duration::from_millis(lasts),
        });
        assert_eq!(text.parse::<Fault>().ok(), expected, "for {text:?}");
    }

    #[test]
    fn every_fault_has_one_name() {
        for (name, kind) in KINDS {
            assert_eq!(kind.name(), name);
        }
    }

    #[test]
    fn faults_are_read() {
        check("server-killed@3", Some((Kind::ServerKilled, 3_000, 2_000)));
        check(
            "sts-throttled@0.5+10",
            Some((Kind::StsThrottled, 500, 10_000)),
        );
        check("meteor@3", None);
        check("sts-down", None);
        check("sts-down@-1", None);
        check("sts-down@1+x", None);
        check("sts-down@1e18+1e18", None);
    }

    #[track_caller]
    fn refused(faults: &[&str], agent_flags: &[&str], expected: Option<&str>) {
        let faults: Vec<Fault> = faults.iter().map(|fault| fault.parse().unwrap()).collect();
        let flags: Vec<OsString> = agent_flags.iter().map(Into::into).collect();
        let got = super::check(&faults, Duration::from_secs(24), &flags);
        let got = got.err().map(|error| error.to_string());
        let begins = got.as_deref().map(|why| why.split(": ").next().unwrap());
        assert_eq!(begins, expected, "{got:?}");
    }

    #[test]
    fn faults_that_cannot_happen_as_written_are_refused() {
        refused(
            &["server-killed@3+3", "api-down@16+8", "sts-throttled@9+4"],
            &[],
            None,
        );
        refused(&["server-killed@3+3", "sts-down@6"], &[], None);
        let overlap = ["sts-down@5", "server-killed@3+10"];
        refused(&overlap, &[], Some("--fault sts-down@5+2"));
        refused(&["sts-down@23"], &[], Some("--fault sts-down@23+2"));
        refused(&["sts-down@60+1"], &[], Some("--fault sts-down@60+1"));
        let upgrade = ["agent-upgraded@3"];
        refused(
            &upgrade,
            &["--workers=2"],
            Some("--fault agent-upgraded@3+2"),
        );
        refused(&upgrade, &["--handover-dir=/dev/shm/x"], None);
    }

    #[test]
    fn the_help_names_every_fault() {
        for (name, _kind) in KINDS {
            assert!(help().contains(name), "{name}");
        }
    }
}
