//! How long to wait before the next attempt, so that a thousand agents do not come back together.
//!
//! Pure: the dice are thrown by the caller.

use std::time::Duration;

use crate::config::Reconnect;

/// Full jitter: evenly between nothing and `delay_min`, doubled for each failure before this one,
/// at most `delay_max`. `dice` is uniform in `[0, 1)`.
pub fn delay(reconnect: Reconnect, failures_before: u32, dice: f64) -> Duration {
    let longest = 1_u32
        .checked_shl(failures_before)
        .and_then(|times| reconnect.delay_min.checked_mul(times))
        .map_or(reconnect.delay_max, |delay| delay.min(reconnect.delay_max));
    longest.mul_f64(dice.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RECONNECT: Reconnect = Reconnect {
        delay_min: Duration::from_millis(500),
        delay_max: Duration::from_secs(15),
    };

    #[track_caller]
    fn check(failures: u32, dice: f64, expected_ms: u64) {
        assert_eq!(
            delay(RECONNECT, failures, dice),
            Duration::from_millis(expected_ms)
        );
    }

    #[test]
    fn the_longest_wait_doubles_up_to_the_maximum() {
        check(0, 1.0, 500);
        check(1, 1.0, 1_000);
        check(4, 1.0, 8_000);
        check(5, 1.0, 15_000);
        check(u32::MAX, 1.0, 15_000);
    }

    #[test]
    fn the_dice_decide_within_it() {
        check(3, 0.0, 0);
        check(3, 0.25, 1_000);
        check(3, 0.5, 2_000);
    }

    proptest! {
        #[test]
        fn a_wait_is_never_longer_than_the_maximum(
            min_ns in 1_u64..u64::MAX / 2,
            more_ns in 0_u64..u64::MAX / 2,
            failures in any::<u32>(),
            dice in 0.0_f64..1.0,
        ) {
            let reconnect = Reconnect {
                delay_min: Duration::from_nanos(min_ns),
                delay_max: Duration::from_nanos(min_ns + more_ns),
            };
            prop_assert!(delay(reconnect, failures, dice) <= reconnect.delay_max);
        }

        #[test]
        fn more_failures_never_mean_a_shorter_longest_wait(failures in 0_u32..80) {
            let longest = |failures| delay(RECONNECT, failures, 1.0);
            prop_assert!(longest(failures) <= longest(failures + 1));
        }
    }
}
