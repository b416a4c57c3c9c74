//! What time it is, as a worker tells it: read on every tick, not on every request.
//!
//! Expiry and dates are whole seconds, so half a second of age does not matter to them; what does
//! need a clock of its own (latency, the time a request may be parked) reads the monotonic one.

use std::io::Write as _;

use jiff::Timestamp;
use jiff::tz::Offset;
use kiam_wire::UnixSeconds;

use super::token::TokenTime;
use crate::clock::Now;
use crate::response::DATE_BYTES;

/// A worker's idea of now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    started: Now,
    pub(super) now: Now,
    /// For the `Date` header.
    pub(super) date: [u8; DATE_BYTES],
    /// What tokens are measured with.
    pub(super) token_time: TokenTime,
}

impl Moment {
    pub(super) fn new(now: Now) -> Self {
        Self {
            started: now,
            now,
            date: date(now.wall),
            token_time: TokenTime {
                wall: now.wall,
                steady: now.wall,
            },
        }
    }

    /// Moves on.
    pub(super) fn advance(&mut self, now: Now) {
        if now.wall != self.now.wall {
            self.date = date(now.wall);
        }
        let elapsed = now
            .monotonic
            .saturating_duration_since(self.started.monotonic);
        self.token_time = TokenTime {
            wall: now.wall,
            steady: self.started.wall.after(elapsed),
        };
        self.now = now;
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn date(wall: UnixSeconds) -> [u8; DATE_BYTES] {
    let mut date = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let Ok(time) = Timestamp::from_second(wall.get()) else {
        return date;
    };
    let time = Offset::UTC.to_datetime(time);
    let weekday = match time.weekday() {
        jiff::civil::Weekday::Monday => "Mon",
        jiff::civil::Weekday::Tuesday => "Tue",
        jiff::civil::Weekday::Wednesday => "Wed",
        jiff::civil::Weekday::Thursday => "Thu",
        jiff::civil::Weekday::Friday => "Fri",
        jiff::civil::Weekday::Saturday => "Sat",
        jiff::civil::Weekday::Sunday => "Sun",
    };
    let month = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ]
    .into_iter()
    .zip(1..)
    .find_map(|(name, number)| (number == time.month()).then_some(name))
    .unwrap_or("Jan");
    let mut place = date.as_mut_slice();
    // 29 bytes for every year of four digits, which is every year a UnixSeconds can be in.
    write!(
        place,
        "{weekday}, {:02} {month} {:04} {:02}:{:02}:{:02} GMT",
        time.day(),
        time.year(),
        time.hour(),
        time.minute(),
        time.second(),
    )
    .unwrap_or_default();
    date
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_as_http_has_them() {
        for (wall, expected) in [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
        ] {
            let date = date(UnixSeconds::new(wall));
            assert_eq!(std::str::from_utf8(&date).unwrap(), expected);
        }
    }
}
