//! One line for each event, whatever is in it.
//!
//! Names of pods, messages of servers and answers of APIs end up in events, and whoever chooses them must not
//! be able to forge lines or to drive a terminal.

use std::io::{self, Write};

/// Writes what it is given, an event with the line feed at its end, as one line: control characters
/// in it are escaped.
#[derive(Debug)]
pub struct OneLine<W>(pub W);

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
