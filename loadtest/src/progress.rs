//! What is happening, while it happens: a bar in a terminal, plain lines anywhere else.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock;

/// Tells what is happening on the standard error output.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
}

/// How often a bar moves.
const FRAME: Duration = Duration::from_millis(100);
/// How often a log gets a line.
const LINE: Duration = Duration::from_secs(5);

impl Progress {
    /// A bar when the standard error output is a terminal, lines otherwise.
    pub(crate) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Tells what comes next.
    pub(crate) fn step(&self, what: &str) {
        let mark = if self.terminal { "\u{25b8} " } else { "" };
        // Nobody may be listening; that is no reason to stop.
        drop(writeln!(std::io::stderr(), "{mark}{what} …"));
    }

    /// Follows a load of this length until `over`; `done` counts its dialogues, and `what` says what
    /// the load is on.
    pub(crate) fn watch(&self, what: &str, length: Duration, done: &AtomicU64, over: &AtomicBool) {
        let start = clock::now();
        let bar = self.bar(what, length);
        let mut next_line = LINE;
        while !over.load(Ordering::Relaxed) {
            clock::sleep_until(clock::now() + FRAME);
            let elapsed = clock::now().saturating_duration_since(start);
            let dialogues = done.load(Ordering::Relaxed);
            bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
            bar.set_message(format!("{dialogues} dialogues"));
            if !self.terminal && elapsed >= next_line {
                self.step(&format!(
                    "{what}: {} s, {dialogues} dialogues",
                    elapsed.as_secs()
                ));
                next_line += LINE;
            }
        }
        // Short loads still leave a line in a log: what is not seen to move seems to hang.
        if !self.terminal && next_line == LINE {
            let dialogues = done.load(Ordering::Relaxed);
            self.step(&format!("{what}: {dialogues} dialogues"));
        }
        bar.finish_and_clear();
    }

    fn bar(&self, what: &str, length: Duration) -> ProgressBar {
        let target = if self.terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(millis), target);
        match ProgressStyle::with_template("  {prefix:24} {elapsed:>4} {wide_bar} {msg}") {
            Ok(style) => bar
                .with_style(style.progress_chars("\u{2501}\u{2578}\u{2500}"))
                .with_prefix(what.to_owned()),
            Err(_template) => bar,
        }
    }
}
