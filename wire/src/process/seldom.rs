//! Says the same thing seldom.
//!
//! What goes wrong may go wrong a thousand times a second, or every other time; nobody reads that, and
//! the log has no room for anything else then. A metric has the number.

use std::mem::take;
use std::time::Duration;

/// Between two times of saying it.
const PAUSE: Duration = Duration::from_mins(1);

/// When it may be said again, in the program's own time, and how often it happened unsaid.
#[derive(Debug)]
pub struct Seldom<T> {
    again_at: Option<T>,
    untold: u64,
}

impl<T> Default for Seldom<T> {
    fn default() -> Self {
        Self {
            again_at: None,
            untold: 0,
        }
    }
}

impl<T: Copy + PartialOrd> Seldom<T> {
    /// It happened. How often it did since it was said, when it is to be said now; `later` adds to a
    /// time.
    pub fn happened(&mut self, now: T, later: impl FnOnce(T, Duration) -> T) -> Option<u64> {
        self.untold += 1;
        let is_due = self.again_at.is_none_or(|at| now >= at);
        is_due.then(|| {
            self.again_at = Some(later(now, PAUSE));
            take(&mut self.untold)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_all_the_time_is_told_once_a_minute() {
        let mut seldom = Seldom::default();
        let told: Vec<(u64, u64)> = (0..150)
            .filter_map(|second| {
                let now = Duration::from_secs(second);
                Some((second, seldom.happened(now, |now, pause| now + pause)?))
            })
            .collect();
        assert_eq!(told, [(0, 1), (60, 60), (120, 60)]);
    }

    #[test]
    fn what_happens_now_and_then_is_told_each_time() {
        let mut seldom = Seldom::default();
        let mut told = |after_s| {
            let now = Duration::from_secs(after_s);
            seldom.happened(now, |now, pause| now + pause)
        };
        let told: Vec<Option<u64>> = [0, 0, 1, 59, 60, 61, 119, 120].map(&mut told).into();
        assert_eq!(
            told,
            [Some(1), None, None, None, Some(4), None, None, Some(3)]
        );
    }
}
