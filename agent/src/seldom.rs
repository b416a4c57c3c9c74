//! Says the same thing seldom.
//!
//! What goes wrong may go wrong a thousand times a second, or every other time; nobody reads that, and
//! the log has no room for anything else then. A metric has the number.

use std::time::{Duration, Instant};

/// Between two times of saying it.
const PAUSE: Duration = Duration::from_mins(1);

/// When it was last said.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether to say it now; then it counts as said.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let due = self
            .0
            .is_none_or(|said| now.saturating_duration_since(said) >= PAUSE);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{later, monotonic};

    #[test]
    fn it_is_said_at_once_and_then_seldom() {
        let (mut seldom, start) = (Seldom::default(), monotonic());
        let mut said = |after_s| seldom.is_due(later(start, Duration::from_secs(after_s)));
        let said: Vec<bool> = [0, 0, 1, 59, 60, 61, 119, 120].map(&mut said).into();
        assert_eq!(said, [true, false, false, false, true, false, false, true]);
    }
}
