//! Flags about what the agent writes.

use clap::{Args, ValueEnum};

use crate::config::switch::{Switch, is_on};
use crate::config::{Level, Log};

/// What the operator typed about logs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logs")]
pub(crate) struct LogArgs {
    /// Write each log line as one JSON object.
    ///
    /// Logs go to standard error. Text lines are for people; with this flag each line has the
    /// keys timestamp, level, target and message, and one for each field.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    json_log: Option<Switch>,

    /// The least important messages to write.
    ///
    /// At debug there is a line for each request.
    #[arg(long, value_name = "LEVEL", value_enum, default_value = "info")]
    level: LevelWord,
}

/// The words of `--level`: kiam's, and no others.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LevelWord {
    Debug,
    Info,
    Warn,
    Error,
}

impl LogArgs {
    pub(crate) fn validate(self) -> Log {
        let Self { json_log, level } = self;
        Log {
            json: is_on(json_log),
            level: match level {
                LevelWord::Debug => Level::Debug,
                LevelWord::Info => Level::Info,
                LevelWord::Warn => Level::Warn,
                LevelWord::Error => Level::Error,
            },
        }
    }
}
