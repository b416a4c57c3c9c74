//! Where log lines go and what they look like.
//!
//! Standard error, one event a line. Names of pods and messages of servers end up in events, and
//! whoever chooses them must not be able to forge lines or to drive a terminal: [`OneLine`] writes
//! each event as one line whatever is in it.

use std::io::{self, Write};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
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
    let lines = tracing_subscriber::fmt()
        .with_writer(Stderr)
        .with_ansi(false)
        .with_max_level(level);
    if log.json {
        lines.json().flatten_event(true).finish().try_init()
    } else {
        lines.finish().try_init()
    }
}

#[derive(Debug, Clone, Copy)]
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = OneLine<io::StderrLock<'a>>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine(io::stderr().lock())
    }
}

/// Writes what it is given, an event with the line feed at its end, as one line: control characters
/// in it are escaped.
#[derive(Debug)]
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (line, end) = match event.split_last() {
            Some((b'\n', line)) => (line, &b"\n"[..]),
            _ => (event, &b""[..]),
        };
        if line.iter().any(u8::is_ascii_control) {
            let escaped: Vec<u8> = line.iter().copied().flat_map(escape).collect();
            self.0.write_all(&[&escaped, end].concat())?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn escape(byte: u8) -> Vec<u8> {
    if byte.is_ascii_control() {
        byte.escape_ascii().collect()
    } else {
        vec![byte]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(event: &str, expected: &str) {
        let mut line = Vec::new();
        OneLine(&mut line).write_all(event.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        check("plain\n", "plain\n");
        check("unfinished", "unfinished");
        check("a\nINFO forged\n", "a\\nINFO forged\n");
        check("\x1b[2Jcleared\r\n", "\\x1b[2Jcleared\\r\n");
        check("na\u{ef}ve\n", "na\u{ef}ve\n");
        check("\n", "\n");
    }
}
