//! One line for each event, whatever is in it.
//!
//! Names of pods, messages of servers and answers of APIs end up in events, and whoever chooses them must not
//! be able to forge lines or to drive a terminal.

use std::io::{self, Write};

/// What the lines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// For people.
    Text,
    /// A JSON object each.
    Json,
}

/// Writes what it is given, an event with the line feed at its end, as one line: control characters
/// in it are escaped.
#[derive(Debug)]
pub struct OneLine<W> {
    out: W,
    lines: Lines,
}

impl<W> OneLine<W> {
    /// Writes to `out`.
    pub const fn new(out: W, lines: Lines) -> Self {
        Self { out, lines }
    }
}

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (line, end) = match event.split_last() {
            Some((b'\n', line)) => (line, &b"\n"[..]),
            _ => (event, &b""[..]),
        };
        if line.iter().any(u8::is_ascii_control) {
            let escaped = line.iter().flat_map(|byte| escape(*byte, self.lines));
            let escaped: Vec<u8> = escaped.chain(end.iter().copied()).collect();
            self.out.write_all(&escaped)?;
        } else {
            self.out.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn escape(byte: u8, lines: Lines) -> Vec<u8> {
    match lines {
        _ if !byte.is_ascii_control() => vec![byte],
        Lines::Text => byte.escape_ascii().collect(),
        // Of these a JSON writer leaves only DEL as it is.
        Lines::Json => format!("\\u{byte:04x}").into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(event: &str, lines: Lines) -> String {
        let mut line = Vec::new();
        let mut out = OneLine::new(&mut line, lines);
        out.write_all(event.as_bytes()).unwrap();
        String::from_utf8(line).unwrap()
    }

    #[track_caller]
    fn check(event: &str, expected: &str) {
        assert_eq!(written(event, Lines::Text), expected);
    }

    #[test]
    fn a_line_of_json_stays_json() {
        assert_eq!(written("\"a\x7fb\"\n", Lines::Json), "\"a\\u007fb\"\n");
        assert_eq!(written("{}\n", Lines::Json), "{}\n");
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
