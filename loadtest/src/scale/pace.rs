//! Changes that are made when they are due, whether or not earlier ones were in time.

use std::time::{Duration, Instant};

use crate::clock;
use crate::measure::Latencies;

/// What was made.
#[derive(Debug)]
pub(crate) struct Paced {
    /// Changes.
    pub made: u32,
    /// How late each was begun.
    pub lag: Latencies,
}

/// Makes `rate` changes a second for `length`, and takes that long even if there are none. `change` is
/// told the number of each, from 0, and when it was due: how long it took counts from there.
pub(crate) fn pace(
    rate: u32,
    length: Duration,
    mut change: impl FnMut(u32, Instant) -> anyhow::Result<()>,
) -> anyhow::Result<Paced> {
    let start = clock::now();
    let mut paced = Paced {
        made: 0,
        lag: Latencies::new(),
    };
    // With no rate there is no first change either.
    while let Some(offset) = Duration::from_secs(paced.made.into()).checked_div(rate)
        && offset < length
    {
        let due = start + offset;
        paced.lag.record(clock::sleep_until(due));
        change(paced.made, due)?;
        paced.made += 1;
    }
    clock::sleep_until(start + length);
    Ok(paced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_changes_the_time_passes_too() {
        let length = Duration::from_millis(60);
        let start = clock::now();
        let paced = pace(0, length, |_number, _due| Ok(())).unwrap();
        assert_eq!((paced.made, paced.lag.count()), (0, 0));
        assert!(clock::now() >= start + length);
    }

    #[test]
    fn a_change_that_takes_long_makes_later_ones_late_and_not_later_due() {
        let mut due = Vec::new();
        let slow = Duration::from_millis(50);
        let paced = pace(1_000, Duration::from_millis(20), |number, at| {
            if number == 0 {
                clock::sleep_until(clock::now() + slow);
            }
            due.push(at);
            Ok(())
        });
        let paced = paced.unwrap();
        assert_eq!((paced.made, due.len()), (20, 20));
        let gaps = due.windows(2).map(|two| two[1] - two[0]);
        assert!(gaps.into_iter().all(|gap| gap == Duration::from_millis(1)));
        // The second was due after a millisecond and begun after fifty.
        assert!(paced.lag.max().unwrap() >= Duration::from_millis(45));
    }
}
