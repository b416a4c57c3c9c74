//! Whether what was seen may be judged at all.

use std::time::Duration;

use crate::measure::Figures;

/// More than this share of the dialogues started late by more than [`LATE`], and the generator has
/// nothing to say about latency.
const LATE_SHARE_MAX: f64 = 0.05;
/// A start this late is late: several times what a sleeping thread needs to wake up.
const LATE: Duration = Duration::from_millis(1);

/// The share of the dialogues, from 0 to 1, that started late.
pub(crate) fn late_share(seen: &Figures) -> f64 {
    seen.lag.share_above(LATE)
}

/// Why there is no verdict on latency, if there is none.
pub(crate) fn refusal(seen: &Figures) -> Option<String> {
    let late = late_share(seen);
    (late > LATE_SHARE_MAX).then(|| {
        format!(
            "{:.1} % of the dialogues started more than {LATE:?} late, and {:.0} % may: this machine \
             is too busy for a verdict on latency",
            late * 100.0,
            LATE_SHARE_MAX * 100.0
        )
    })
}

/// What the generator itself lacked, in words, for beside the verdict.
pub(crate) fn generator(seen: &Figures, elapsed: Duration, stolen: f64) -> String {
    let count = seen.lag.count();
    let waited = seen
        .waited
        .checked_div(u32::try_from(count).unwrap_or(u32::MAX));
    format!(
        "generator {:.1} % of {count} dialogues late by more than {LATE:?}, {} of waiting for a core \
         each; {:.1} % of {:.0} s stolen by the hypervisor",
        late_share(seen) * 100.0,
        crate::report::time(waited.unwrap_or_default()),
        stolen * 100.0,
        elapsed.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(late: u32, of: u32, refused: bool) {
        let mut seen = Figures::new();
        for number in 0..of {
            let lag = if number < late { 5_000 } else { 100 };
            seen.lag.record(Duration::from_micros(lag));
        }
        assert_eq!(refusal(&seen).is_some(), refused, "{late} of {of}");
    }

    #[test]
    fn a_late_generator_has_no_verdict() {
        check(0, 0, false);
        check(0, 100, false);
        check(4, 100, false);
        check(6, 100, true);
        check(100, 100, true);
    }

    #[test]
    fn what_the_generator_lacked_is_told() {
        let mut seen = Figures::new();
        seen.lag.record(Duration::from_millis(2));
        seen.lag.record(Duration::from_micros(90));
        seen.waited = Duration::from_micros(300);
        assert_eq!(
            generator(&seen, Duration::from_secs(12), 0.034),
            "generator 50.0 % of 2 dialogues late by more than 1ms, 150 µs of waiting for a core \
             each; 3.4 % of 12 s stolen by the hypervisor"
        );
    }
}
