//! What is run: how many pods, how they come and go, and how hard the agent is asked.

use std::net::SocketAddr;
use std::time::Duration;

use crate::churn::{Churn, Profile};
use crate::dialogue::{self, Answers, Mix, Weighted};
use crate::load::Load;

/// The cluster and the load.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Plan {
    /// Seconds of load on the agent, while pods come and go. Whatever else takes its turn in a round of
    /// `run` has as many.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    #[command(flatten)]
    pub crowd: Crowd,
    /// Pods created each second, on average; each is asked for during two seconds and deleted two
    /// seconds later.
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = rate)]
    pub pods_per_second: f64,
    /// SDK dialogues started each second. A dialogue asks for a token, the role list, and the
    /// credentials, as the SDK whose shape it has.
    #[arg(long, value_name = "N", default_value_t = 200.0, value_parser = rate)]
    pub dialogues_per_second: f64,
}

/// The pods, whatever is done with them and for how long.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Crowd {
    /// Pods that run from the start.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pods: u32,
    /// How pods come and go.
    #[arg(long, value_name = "PROFILE", value_enum, default_value_t = Profile::Steady)]
    pub profile: Profile,
    /// Roles, shared out among the pods.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub roles: u32,
    /// How SDKs ask, as NAME or NAME=WEIGHT; may be given several times. --help lists them.
    #[arg(long = "dialogue", alias = "shape", value_name = "NAME[=WEIGHT]", long_help = dialogue::help())]
    pub dialogues: Vec<Weighted>,
    /// Same seed, same arrivals.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// A number of things a second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=100_000.0).contains(&rate) {
        Ok(rate)
    } else {
        Err("must be from 0 to 100000 a second".into())
    }
}

/// A number of things a second, and not none.
pub(crate) fn positive_rate(text: &str) -> Result<f64, String> {
    match rate(text)? {
        rate if rate > 0.0 => Ok(rate),
        _ => Err("must be more than 0 a second".into()),
    }
}

impl Plan {
    /// The plan in one line.
    pub(crate) fn title(&self) -> String {
        format!(
            "{} pods of {} roles, {} pods/s come and go ({}), {} SDK dialogues/s for {} s",
            self.crowd.pods,
            self.crowd.roles,
            self.pods_per_second,
            clap::ValueEnum::to_possible_value(&self.crowd.profile)
                .map_or_else(String::new, |value| value.get_name().to_owned()),
            self.dialogues_per_second,
            self.seconds
        )
    }

    /// How long one slice of load lasts.
    pub(crate) const fn slice(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// The load on `target` in slice number `slice`.
    pub(crate) fn load(&self, target: SocketAddr, answers: Answers, slice: u64) -> Load {
        Load {
            target,
            answers,
            dialogues_per_s: self.dialogues_per_second,
            duration: self.slice(),
            mix: Mix::new(&self.crowd.dialogues),
            seed: self.crowd.seed.wrapping_add(slice),
        }
    }

    /// The churn beside `duration` of load.
    pub(crate) fn churn(&self, duration: Duration) -> Churn {
        Churn {
            profile: self.crowd.profile,
            pods_per_s: self.pods_per_second,
            duration,
            roles: self.crowd.roles,
            first: self.crowd.pods,
            seed: self.crowd.seed,
        }
    }
}
