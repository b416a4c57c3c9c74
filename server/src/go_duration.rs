//! Durations as Go writes them: `15m`, `1h30m`, `1.5h`, `100ms`.
//!
//! Pure. kiam's flags and annotations are written so. What Go accepts is accepted, but for a sign:
//! no duration of ours is negative.

use std::time::Duration;

/// Not a duration, or longer than Go can hold (about 292 years).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a duration such as 15m, 1h30m or 500ms")]
pub struct NotADuration;

/// Reads a sequence of decimal numbers, each with a unit: `ns`, `us`, `ms`, `s`, `m`, `h`. A bare
/// `0` needs none.
pub fn parse(text: &str) -> Result<Duration, NotADuration> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(NotADuration);
    }
    let mut nanos: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (part, after) = next_part(rest)?;
        nanos = nanos.checked_add(part).ok_or(NotADuration)?;
        rest = after;
    }
    if i64::try_from(nanos).is_err() {
        return Err(NotADuration);
    }
    Ok(Duration::from_nanos(nanos))
}

/// One number and its unit in nanoseconds, and what follows.
fn next_part(text: &str) -> Result<(u64, &str), NotADuration> {
    let (whole, rest) = digits(text);
    let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), digits);
    if whole.is_empty() && fraction.is_empty() {
        return Err(NotADuration);
    }
    let unit_len = rest
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (unit, rest) = rest.split_at_checked(unit_len).ok_or(NotADuration)?;
    let unit: u64 = match unit {
        "ns" => 1,
        // The micro sign and the Greek letter, as in Go.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(NotADuration),
    };
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_overflow| NotADuration)?
    };
    // Digits beyond a nanosecond of the largest unit change nothing.
    let mut part = 0_u128;
    let mut scale = 1_u128;
    for digit in fraction.bytes().take(18) {
        part = part * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    let part = u64::try_from(part * u128::from(unit) / scale).map_err(|_overflow| NotADuration)?;
    let nanos = whole
        .checked_mul(unit)
        .and_then(|nanos| nanos.checked_add(part))
        .ok_or(NotADuration)?;
    Ok((nanos, rest))
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected_ms: Option<u64>) {
        assert_eq!(
            parse(text).ok(),
            expected_ms.map(Duration::from_millis),
            "for {text:?}"
        );
    }

    #[test]
    fn what_go_reads_is_read() {
        check("15m", Some(900_000));
        check("1h30m", Some(5_400_000));
        check("1.5h", Some(5_400_000));
        check(".5s", Some(500));
        check("5.s", Some(5_000));
        check("100ms", Some(100));
        check("0", Some(0));
        check("0s", Some(0));
        check("1m1m", Some(120_000));
        check("1000000ns", Some(1));
        check("1000\u{b5}s", Some(1));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "15",
            "m",
            "-5m",
            "+5m",
            "1 h",
            "1h ",
            "1d",
            ".",
            ".s",
            "1hh",
            "3000000h",
            "99999999999999999999h",
            "1h\u{e9}",
        ] {
            check(text, None);
        }
    }
}
