//! What the two programs say about themselves on their admin ports, in the Prometheus text format.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One reading of all metrics of a program.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics(String);

/// Metrics are a few dozen KiB.
const METRICS_BYTES_MAX: u64 = 4 << 20;

impl Metrics {
    /// Asks the admin port of a program; `None` when it does not answer.
    pub(crate) fn of(address: SocketAddr) -> Option<Self> {
        Self::ask(address).ok()
    }

    fn ask(address: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        // 1.0, so that the answer is not sent in chunks.
        stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        let mut text = String::new();
        stream.take(METRICS_BYTES_MAX).read_to_string(&mut text)?;
        Ok(Self(text))
    }

    /// The sum over all series of `name`.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.series(name).map(|(_labels, value)| value).sum()
    }

    /// Each series of `name`: its labels and its value.
    fn series(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let whole = labels.is_empty() || labels.starts_with('{');
            whole.then(|| Some((labels, value.parse().ok()?)))?
        })
    }

    /// The value that this share of what a histogram of seconds counted since `earlier` did not
    /// exceed, read off its buckets with a straight line inside the one it falls into.
    pub(crate) fn quantile_since(&self, earlier: &Self, name: &str, share: f64) -> Option<f64> {
        let bucket = format!("{name}_bucket");
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for ((labels, now), (_same, then)) in self
            .series(&bucket)
            .zip(earlier.series(&bucket).chain(std::iter::repeat(("", 0.0))))
        {
            let bound = labels.split_once("le=\"")?.1.split('"').next()?;
            let bound = bound.replace("+Inf", "inf").parse().ok()?;
            buckets.push((bound, now - then));
        }
        let total = buckets.last()?.1;
        let wanted = total * share;
        let (mut below, mut counted) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= wanted && count > 0.0 {
                if bound.is_infinite() {
                    return Some(below);
                }
                let inside = (wanted - counted) / (count - counted);
                return Some(below + (bound - below) * inside);
            }
            (below, counted) = (bound, count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# TYPE parked counter
parked_total 3
updates_total{outcome=\"applied\"} 5
updates_total{outcome=\"gap\"} 2
updates_total_more 100
latency_seconds_bucket{le=\"0.001\"} 50
latency_seconds_bucket{le=\"0.002\"} 100
latency_seconds_bucket{le=\"+Inf\"} 100
";

    #[test]
    fn series_of_a_name_add_up() {
        let metrics = Metrics(TEXT.into());
        assert!((metrics.sum("parked_total") - 3.0).abs() < 1e-9);
        assert!((metrics.sum("updates_total") - 7.0).abs() < 1e-9);
        assert!(metrics.sum("absent").abs() < 1e-9);
    }

    #[test]
    fn quantiles_lie_inside_their_bucket() {
        let metrics = Metrics(TEXT.into());
        let quantile =
            |share| metrics.quantile_since(&Metrics::default(), "latency_seconds", share);
        assert!((quantile(0.75).unwrap() - 0.0015).abs() < 1e-9);
        assert!((quantile(0.5).unwrap() - 0.001).abs() < 1e-9);
        assert_eq!(
            metrics.quantile_since(&metrics, "latency_seconds", 0.5),
            None
        );
        assert_eq!(
            metrics.quantile_since(&Metrics::default(), "absent", 0.5),
            None
        );
    }
}
