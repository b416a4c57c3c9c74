//! Durations as Go writes them: `15m`, `1h30m`, `1.5h`, `100ms`, `0s`.
//!
//! Not part of the protocol, but shared as well: kiam's flags and annotations, and every chart
//! written for it, use this form, so both programs take it, and take exactly the same. What Go reads
//! is read, but for a minus sign: no duration of ours is negative. It is exact integer arithmetic:
//! nothing here can round a limit to zero.

use std::time::Duration;

/// Why a text is no duration. The text itself is in clap's message already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// Nothing there, or a part without digits.
    #[error("expected a number and a unit, such as 15m, 1h30m or 100ms")]
    NoNumber,
    /// `10` alone.
    #[error("the unit is missing: write 10s for ten seconds, 100ms for a tenth of one")]
    NoUnit,
    /// `10d`, for example.
    #[error("unknown unit: use ns, us, ms, s, m or h")]
    UnknownUnit,
    /// Time does not run backwards here.
    #[error("must not be negative")]
    Negative,
    /// More than Go can hold, about 292 years.
    #[error("is too long")]
    TooLong,
}

/// Reads a duration in Go's syntax.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text.starts_with('-') {
        return Err(InvalidDuration::Negative);
    }
    // The one number that needs no unit.
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut nanos = 0_u64;
    loop {
        let (part, after) = leading_part(rest)?;
        nanos = nanos.checked_add(part).ok_or(InvalidDuration::TooLong)?;
        if i64::try_from(nanos).is_err() {
            return Err(InvalidDuration::TooLong);
        }
        if after.is_empty() {
            return Ok(Duration::from_nanos(nanos));
        }
        rest = after;
    }
}

/// The first number and unit of `text` in nanoseconds, and what follows.
fn leading_part(text: &str) -> Result<(u64, &str), InvalidDuration> {
    let (whole, rest) = split_digits(text);
    let (fraction, rest) = rest.strip_prefix('.').map_or(("", rest), split_digits);
    if whole.is_empty() && fraction.is_empty() {
        return Err(InvalidDuration::NoNumber);
    }
    let end = rest
        .find(|c: char| c.is_ascii_digit() || c == '.')
        .unwrap_or(rest.len());
    let (unit, rest) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let unit = nanos_per(unit)?;
    let whole = if whole.is_empty() {
        0
    } else {
        whole
            .parse::<u64>()
            .map_err(|_too_many_digits| InvalidDuration::TooLong)?
    };
    let nanos = whole
        .checked_mul(unit)
        .and_then(|nanos| nanos.checked_add(fraction_of(unit, fraction)))
        .ok_or(InvalidDuration::TooLong)?;
    Ok((nanos, rest))
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

fn nanos_per(unit: &str) -> Result<u64, InvalidDuration> {
    Ok(match unit {
        "" => return Err(InvalidDuration::NoUnit),
        "ns" => 1,
        // Go takes both code points for micro.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3_600 * 1_000_000_000,
        _ => return Err(InvalidDuration::UnknownUnit),
    })
}

/// `0.digits` of `unit`, rounded down to the nanosecond.
fn fraction_of(unit: u64, digits: &str) -> u64 {
    // Eighteen digits are finer than a nanosecond of an hour; what follows changes nothing.
    let (mut numerator, mut denominator) = (0_u128, 1_u128);
    for digit in digits.bytes().take(18) {
        numerator = numerator * 10 + u128::from(digit - b'0');
        denominator *= 10;
    }
    u64::try_from(u128::from(unit) * numerator / denominator).unwrap_or(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = parse(text).map_or_else(|error| error.to_string(), |time| format!("{time:?}"));
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn what_go_accepts_is_accepted() {
        check("15m", "900s");
        check("1h30m", "5400s");
        check("100ms", "100ms");
        check("1.5h", "5400s");
        check(".5s", "500ms");
        check("2.s", "2s");
        check("0s", "0ns");
        check("0", "0ns");
        check("+5s", "5s");
        check("1h2m3s4ms5us6ns", "3723.004005006s");
        check("1\u{b5}s", "1\u{b5}s");
        check("1\u{3bc}s", "1\u{b5}s");
        check("1.123456789s", "1.123456789s");
        check("1.1234567899999s", "1.123456789s");
        check("0.25m", "15s");
        check("1m1m", "120s");
        check("1000000ns", "1ms");
        check("2562047h47m16.854775807s", "9223372036.854775807s");
    }

    #[test]
    fn what_go_refuses_is_refused_in_words() {
        let number = InvalidDuration::NoNumber.to_string();
        let unit = InvalidDuration::NoUnit.to_string();
        let unknown = InvalidDuration::UnknownUnit.to_string();
        check("", &number);
        check("s", &number);
        check(".s", &number);
        check(" 1s", &number);
        check("10", &unit);
        check("1h30", &unit);
        check("10d", &unknown);
        check("10 s", &unknown);
        check("10S", &unknown);
        check("1 h", &unknown);
        check("1h ", &unknown);
        check("1hh", &unknown);
        check("1h\u{e9}", &unknown);
        check("m", &number);
        check(".", &number);
        check("15", &unit);
        check("-1s", "must not be negative");
        check("99999999999h", "is too long");
        check("9999999h", "is too long");
        check("3000000h", "is too long");
        check("99999999999999999999h", "is too long");
        check("2562047h47m16.854775808s", "is too long");
    }

    proptest! {
        #[test]
        fn every_number_of_nanoseconds_survives(nanos in 0..=u64::MAX / 2) {
            prop_assert_eq!(parse(&format!("{nanos}ns")), Ok(Duration::from_nanos(nanos)));
        }

        #[test]
        fn fractions_of_a_second_are_exact(seconds in 0_u64..1_000_000, nanos in 0_u32..1_000_000_000) {
            prop_assert_eq!(
                parse(&format!("{seconds}.{nanos:09}s")),
                Ok(Duration::new(seconds, nanos))
            );
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _either = parse(&text);
        }
    }
}
