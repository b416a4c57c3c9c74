//! Whether the generator was in a state to judge latencies: each load by its own lateness.

use std::time::Duration;

use crate::measure::{Figures, Latencies};
use crate::report;

/// More than this share of a load started late by more than [`LATE`], and nothing can be said about
/// its latency.
const LATE_SHARE_MAX: f64 = 0.05;
/// A start this late is late: several times what a sleeping thread needs to wake up.
const LATE: Duration = Duration::from_millis(1);

/// The share of a load, from 0 to 1, that started late; of nothing, none.
pub(crate) fn late_share(lag: &Latencies) -> Option<f64> {
    lag.share_above(LATE)
}

/// How much of a load was late, in words, if it was too much; `what` was started late.
pub(crate) fn late(what: &str, lag: &Latencies) -> Option<String> {
    let late = late_share(lag)?;
    (late > LATE_SHARE_MAX).then(|| format!("{:.1} % of {what}", late * 100.0))
}

/// Why there is no verdict on latency when this was late; `None` when nothing was.
pub(crate) fn refusal(late: &[String]) -> Option<String> {
    (!late.is_empty()).then(|| {
        format!(
            "{} started more than {LATE:?} late, and {:.0} % may: this machine is too busy for a \
             verdict on their latency",
            late.join(", "),
            LATE_SHARE_MAX * 100.0
        )
    })
}

/// Why there is no verdict on the latency of this load, where it is the only one.
pub(crate) fn refusal_of(what: &str, lag: &Latencies) -> Option<String> {
    refusal(&[late(what, lag)?])
}

/// What the generator itself lacked, in words, for beside the verdict. `stolen` is the share of the
/// machine's time that the hypervisor gave to others, where it says.
pub(crate) fn generator(seen: &Figures, elapsed: Duration, stolen: Option<f64>) -> String {
    let percent = |share: Option<f64>| {
        share.map_or_else(|| "–".into(), |share| format!("{:.1}", share * 100.0))
    };
    let count = seen.lag.count();
    let waited = seen
        .waited
        .checked_div(u32::try_from(count).unwrap_or(u32::MAX));
    format!(
        "generator {} % of {count} dialogues late by more than {LATE:?}, {} of waiting for a core \
         each; {} % of {:.0} s stolen by the hypervisor",
        percent(late_share(&seen.lag)),
        report::time(waited.unwrap_or_default()),
        percent(stolen),
        elapsed.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(late: u32, of: u32, refused: bool) {
        let mut lag = Latencies::new();
        for number in 0..of {
            let us = if number < late { 5_000 } else { 100 };
            lag.record(Duration::from_micros(us));
        }
        let late_ones: Vec<_> = super::late("the dialogues", &lag).into_iter().collect();
        assert_eq!(refusal(&late_ones).is_some(), refused, "{late} of {of}");
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
            generator(&seen, Duration::from_secs(12), Some(0.034)),
            "generator 50.0 % of 2 dialogues late by more than 1ms, 150 µs of waiting for a core \
             each; 3.4 % of 12 s stolen by the hypervisor"
        );
        assert_eq!(
            generator(&Figures::new(), Duration::from_secs(1), None),
            "generator – % of 0 dialogues late by more than 1ms, 0 µs of waiting for a core each; \
             – % of 1 s stolen by the hypervisor"
        );
    }
}
