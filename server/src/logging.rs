//! Log lines on standard error, as text or as JSON, one event a line whatever is in it.

use std::io;

use kiam_wire::process::one_line::{Lines, OneLine};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

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

/// Begins to log. An error means that someone in this process does so already.
pub fn start(level: Level, json: bool) -> Result<(), TryInitError> {
    // The libraries' own lines are for those who ask for them with RUST_LOG. What the watches meet
    // is said by us, in fewer words.
    let default = format!("warn,kube_runtime=error,kiam_server={}", level.as_str());
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new(default));
    let kind = if json { Lines::Json } else { Lines::Text };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || OneLine::new(io::stderr().lock(), kind))
        .with_target(false);
    if json {
        lines.json().flatten_event(true).finish().try_init()
    } else {
        lines.with_ansi(false).finish().try_init()
    }
}
