//! Where log lines go and what they look like.
//!
//! Standard error, one event a line whatever is in it.

use std::io;

use kiam_wire::process::one_line::{Lines, OneLine};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Level, Log};

/// Starts logging. Fails when the process already logs, as it does when the load test plays this
/// role; the lines then go where it wants them.
pub fn start(log: Log) -> Result<(), TryInitError> {
    let level = match log.level {
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    };
    let kind = if log.json { Lines::Json } else { Lines::Text };
    let lines = tracing_subscriber::fmt()
        .with_writer(move || OneLine::new(io::stderr().lock(), kind))
        .with_ansi(false)
        .with_max_level(level);
    if log.json {
        lines.json().flatten_event(true).finish().try_init()
    } else {
        lines.finish().try_init()
    }
}
