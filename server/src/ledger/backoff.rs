//! How long to wait after an error.
//!
//! Pure: the dice are an argument. Full jitter, because what fails for one role mostly fails for
//! all of them at the same moment, and they must not come back together.

use std::time::Duration;

use crate::sts::Retry;

/// Doubles from `first` to `most`.
#[derive(Debug, Clone, Copy)]
struct Backoff {
    first: Duration,
    most: Duration,
}

/// An outage may be over any moment, and the old credentials are running out.
const SOON: Backoff = Backoff {
    first: Duration::from_secs(1),
    most: Duration::from_secs(30),
};
/// The schedule has lowered its rate already, so this only has to break up the crowd.
const IN_TURN: Backoff = Backoff {
    first: Duration::from_secs(2),
    most: Duration::from_mins(1),
};
/// Someone is editing a trust policy, or nobody is.
const RARELY: Backoff = Backoff {
    first: Duration::from_secs(10),
    most: Duration::from_mins(5),
};

/// How long to wait after the `failures`th error in a row. `dice` is uniform in `[0, 1)`.
pub(super) fn delay(retry: Retry, failures: u32, dice: f64) -> Duration {
    match retry {
        Retry::Soon => SOON.ceiling(failures).mul_f64(dice),
        Retry::InTurn => IN_TURN.ceiling(failures).mul_f64(dice),
        // A refusal asked about again at once is a call wasted: never less than half.
        Retry::Rarely => RARELY.ceiling(failures).mul_f64(f64::midpoint(dice, 1.0)),
    }
}

impl Backoff {
    fn ceiling(self, failures: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
        self.first.saturating_mul(doubled).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(retry: Retry, failures: u32, expected_s: (u64, u64)) {
        let (least, most) = expected_s;
        assert_eq!(delay(retry, failures, 0.0), Duration::from_secs(least));
        let longest = delay(retry, failures, 0.999_999_999);
        let most = Duration::from_secs(most);
        assert!(
            longest <= most && longest > most.mul_f64(0.99),
            "{longest:?}"
        );
    }

    #[test]
    fn waits_double_up_to_a_ceiling() {
        check(Retry::Soon, 1, (0, 1));
        check(Retry::Soon, 4, (0, 8));
        check(Retry::Soon, u32::MAX, (0, 30));
        check(Retry::InTurn, 2, (0, 4));
        check(Retry::Rarely, 1, (5, 10));
        check(Retry::Rarely, 3, (20, 40));
        check(Retry::Rarely, 100, (150, 300));
    }
}
