//! Counts, times and sizes as the numbers that figures are, and what can be said of several.
//!
//! Of nothing there is no ratio and no median: what was not measured is `None`, so that a run leaves it
//! out of its figures. A 0 in its place would open every gate with an upper bound.

use std::time::Duration;

/// A count.
pub(crate) fn float(count: u64) -> f64 {
    #[expect(
        clippy::as_conversions,
        clippy::cast_precision_loss,
        reason = "counts below 2^52"
    )]
    let float = count as f64;
    float
}

/// The length of a list.
pub(crate) fn length(count: usize) -> f64 {
    float(u64::try_from(count).unwrap_or(u64::MAX))
}

/// Microseconds.
pub(crate) fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// MiB.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    float(bytes) / f64::from(1 << 20)
}

/// One by the other; by nothing there is none.
pub(crate) fn ratio(above: f64, below: f64) -> Option<f64> {
    (below > 0.0).then(|| above / below)
}

/// The same value of several rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    /// The lowest.
    pub low: f64,
    /// The middle one; of an even number the lower of the two, so that it is one that was seen.
    pub median: f64,
    /// The highest.
    pub high: f64,
}

/// How these values lie; of nothing there is none.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> Option<Spread> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    Some(Spread {
        low: *values.first()?,
        median: *values.get((values.len() - 1) / 2)?,
        high: *values.last()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_value_that_was_seen() {
        let spread = |values: &[f64]| spread(values.iter().copied());
        let expected = Spread {
            low: 1.0,
            median: 2.0,
            high: 3.0,
        };
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(expected));
        assert!((spread(&[4.0, 1.0]).unwrap().median - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn of_nothing_there_is_nothing() {
        assert_eq!(spread(std::iter::empty()), None);
        assert_eq!(ratio(1.0, 0.0), None);
        assert_eq!(ratio(0.0, 2.0), Some(0.0));
    }
}
