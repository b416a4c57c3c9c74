//! Log lines on standard error, as text or as JSON.

use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::clock::Moment;

/// How much is logged. kiam's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Everything.
    Debug,
    /// What an operator wants to know.
    Info,
    /// What may need attention.
    Warn,
    /// What does.
    Error,
}

impl Level {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// How often what may happen all the time is told.
const SELDOM: Duration = Duration::from_mins(1);

/// Something that may happen all the time and is told once a minute.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    told_at: Option<Moment>,
    untold: u64,
}

impl Seldom {
    /// It happened. How often it did since it was told, when it is to be told now.
    pub(crate) fn happened(&mut self, now: Moment) -> Option<u64> {
        self.untold += 1;
        let is_due = self.told_at.is_none_or(|at| now.since(at) >= SELDOM);
        is_due.then(|| {
            self.told_at = Some(now);
            std::mem::take(&mut self.untold)
        })
    }
}

/// Begins to log. An error means that someone in this process does so already.
pub fn start(level: Level, json: bool) -> Result<(), TryInitError> {
    // The libraries' own lines are for those who ask for them with RUST_LOG. What the watches meet
    // is said by us, in fewer words.
    let default = format!("warn,kube_runtime=error,kiam_server={}", level.as_str());
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new(default));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    if json {
        lines.json().flatten_event(true).finish().try_init()
    } else {
        lines.with_ansi(false).finish().try_init()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_all_the_time_is_told_once_a_minute() {
        let mut seldom = Seldom::default();
        let told: Vec<(u64, u64)> = (0..150)
            .filter_map(|second| {
                let now = Moment::new(Duration::from_secs(second));
                Some((second, seldom.happened(now)?))
            })
            .collect();
        assert_eq!(told, [(0, 1), (60, 60), (120, 60)]);
    }
}
