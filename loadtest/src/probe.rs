//! Asks an agent that is already running, as the pod this runs in.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;

use crate::dialogue::{self, Answers, Asker, Mix, Patience, Shape, Weighted};
use crate::gate::{self, Gate, Named};
use crate::load::{self, Load};
use crate::measure::Figures;
use crate::numbers::{float, us};
use crate::population::{Issuer, Population, Target};
use crate::progress::Progress;
use crate::verdict;

/// Asks an agent that is already running, from inside a pod, and judges the answers.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Probe {
    /// The metadata service, as pods see it.
    #[arg(long, value_name = "URL", default_value = "http://169.254.169.254")]
    target: String,
    /// The address to ask from, when this machine has several.
    #[arg(long, value_name = "IP")]
    source: Option<IpAddr>,
    /// SDK dialogues started each second.
    #[arg(long, value_name = "N", default_value_t = 5.0, value_parser = crate::plan::positive_rate)]
    dialogues_per_second: f64,
    /// Seconds to ask for.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// How SDKs ask, as NAME or NAME=WEIGHT; may be given several times. --help lists them.
    #[arg(long = "dialogue", alias = "shape", value_name = "NAME[=WEIGHT]", long_help = dialogue::help())]
    dialogues: Vec<Weighted>,
    /// A condition on a figure, for example 'request_p99_us<=5000'; may be given several times. If one
    /// does not hold the exit code is 1, and also if one is on latency and this program itself was late.
    /// Failed dialogues always make it 1.
    #[arg(long = "gate", value_name = "GATE")]
    gates: Vec<Gate>,
}

/// What a probe ended with.
#[derive(Debug)]
pub(crate) struct Probed {
    /// The role that the pod has.
    pub role: String,
    /// What was seen.
    pub figures: Figures,
    /// Gates that are shut, and why.
    pub shut: Vec<String>,
}

/// Which role a key is for only STS knows, and it is not asked: the list's word is taken.
struct Trusting(String);

impl Issuer for Trusting {
    fn role_of(&self, _access_key_id: &str) -> Option<String> {
        Some(self.0.clone())
    }
}

impl Probe {
    /// Asks once to learn the role, then under load.
    pub(crate) fn run(&self, progress: &Progress) -> anyhow::Result<Probed> {
        gate::check(&self.gates, FIGURES, false)?;
        let target = resolve(&self.target)?;
        progress.step(&format!("asking {target} for {} s", self.seconds));
        let first = Asker {
            target,
            source: self.source,
            shape: Shape::Boto3,
            answers: Answers::Matter,
            patience: Patience::Sdk,
        };
        let role = match first.ask(|_took| {}) {
            Ok(obtained) => obtained.role,
            Err(failure) => anyhow::bail!("the first dialogue with {target} failed: {failure}"),
        };
        let load = Load {
            target,
            answers: Answers::Matter,
            dialogues_per_s: self.dialogues_per_second,
            duration: Duration::from_secs(self.seconds),
            mix: Mix::new(&self.dialogues),
            seed: u64::from(std::process::id()),
        };
        let population = Population::default();
        population.insert(Target {
            ip: self.source,
            role: role.as_str().into(),
        });
        let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let issuer = Trusting(role.clone());
        let figures = std::thread::scope(|scope| {
            scope.spawn(|| progress.watch("the agent", load.duration, &done, &over));
            let figures = load::run(&load, &population, &issuer, &done);
            over.store(true, Ordering::Relaxed);
            figures
        });
        let named = named(&figures);
        // There is one load, so every latency is its.
        let late = verdict::refusal_of("the dialogues", &figures.lag);
        let shut = gate::judge(&self.gates, &named, None, |_figure| late.clone());
        Ok(Probed {
            role,
            figures,
            shut,
        })
    }
}

/// Every figure of a probe.
const FIGURES: &[&str] = &[
    "failures",
    "request_p50_us",
    "request_p99_us",
    "request_p999_us",
    "dialogue_p99_us",
];

fn named(figures: &Figures) -> Named {
    let requests = |share| figures.requests.quantile(share).map(us);
    gate::measured([
        ("failures", Some(float(figures.failed()))),
        ("request_p50_us", requests(0.5)),
        ("request_p99_us", requests(0.99)),
        ("request_p999_us", requests(0.999)),
        ("dialogue_p99_us", figures.dialogues.quantile(0.99).map(us)),
    ])
}

/// The address behind `http://HOST[:PORT]`.
fn resolve(url: &str) -> anyhow::Result<SocketAddr> {
    let host = url
        .strip_prefix("http://")
        .context("--target begins with http://: the metadata service speaks nothing else")?
        .trim_end_matches('/');
    // What follows the last `]` decides: the colons of an IPv6 address are inside brackets.
    let after_brackets = host.rsplit(']').next().unwrap_or(host);
    let with_port = if after_brackets.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let mut addresses = with_port
        .to_socket_addrs()
        .with_context(|| format!("--target {url}"))?;
    addresses
        .next()
        .with_context(|| format!("--target {url} has no address"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn nobody_who_asked_was_fast() {
        let named = named(&Figures::new());
        assert_eq!(named.keys().collect::<Vec<_>>(), [&"failures"]);
        let gate = |text: &str| text.parse::<Gate>().unwrap();
        assert!(gate("request_p99_us<=5000").shut(&named).is_some());
    }

    #[test]
    fn a_probe_that_would_ask_nothing_is_refused() {
        let parse = |rate: &str| {
            let words = ["kiam-loadtest", "probe", "--dialogues-per-second", rate];
            crate::cli::Args::try_parse_from(words).is_ok()
        };
        assert!(parse("0.5") && !parse("0"));
    }

    #[track_caller]
    fn check(url: &str, expected: Option<&str>) {
        let got = resolve(url).ok().map(|address| address.to_string());
        assert_eq!(got.as_deref(), expected, "for {url}");
    }

    #[test]
    fn targets_have_a_port_or_80() {
        check("http://169.254.169.254", Some("169.254.169.254:80"));
        check("http://169.254.169.254/", Some("169.254.169.254:80"));
        check("http://127.0.0.1:3100", Some("127.0.0.1:3100"));
        check("http://[fd00:ec2::254]", Some("[fd00:ec2::254]:80"));
        check("http://[::1]:3100", Some("[::1]:3100"));
        check("https://169.254.169.254", None);
    }
}
