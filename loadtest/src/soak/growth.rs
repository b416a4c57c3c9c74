//! Whether something grows: a line through the samples of a program's last life, its beginning left
//! out, and what that line rises by from its first sample to its last.

use std::fmt;

use crate::numbers::{float, length as count_of};

/// What a program used when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct Use {
    /// Which life of the program.
    pub pid: u32,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Open file descriptors; `None` when the kernel will not say.
    pub open_files: Option<u64>,
    /// Threads.
    pub threads: u64,
    /// CPU time so far.
    pub cpu_s: f64,
}

/// One look at everything.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct Sample {
    /// Since the start.
    pub at_s: f64,
    /// Latency of the requests since the last sample; `None` when nobody asked.
    pub p50_ms: Option<f64>,
    /// As above.
    pub p99_ms: Option<f64>,
    /// `None` while it was dead.
    pub agent: Option<Use>,
    /// As above.
    pub server: Option<Use>,
}

impl Sample {
    /// In one line.
    pub(super) fn line(&self) -> String {
        let one = |used: Option<Use>| {
            used.map_or_else(
                || "dead".to_owned(),
                |used| {
                    let mib = float(used.rss_bytes) / MIB;
                    let (files, threads) = (used.open_files.unwrap_or(0), used.threads);
                    format!("{mib:.1} MiB, {files} files, {threads} threads")
                },
            )
        };
        format!("agent {}; server {}", one(self.agent), one(self.server))
    }
}

/// How much something grew.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(super) struct Growth {
    /// Whose and what: `agent memory`.
    pub what: String,
    /// In what it is counted.
    pub unit: &'static str,
    /// Over the samples judged.
    pub mean: f64,
    /// Of the line, per hour.
    pub per_hour: f64,
    /// What the line rises by from the first sample judged to the last.
    pub grew: f64,
    /// How much it may; `None` for what is only told.
    pub limit: Option<f64>,
    /// From the first sample judged to the last, in minutes.
    pub minutes: f64,
    /// Samples judged.
    pub samples: usize,
}

const MIB: f64 = 1_048_576.0;
/// The first quarter of a program's life: caches and allocators fill.
const WARM_UP: f64 = 0.25;
/// With fewer samples there is no line.
const SAMPLES_MIN: usize = 10;
/// Memory may rise by this, or by [`MEMORY_SHARE`] of its mean, whichever is more.
const MEMORY_MIB: f64 = 3.0;
const MEMORY_SHARE: f64 = 0.1;
/// Connections of the moment are open files.
const FILES: f64 = 8.0;
/// Threads for blocking work come and go.
const THREADS: f64 = 2.0;

/// What one of the programs used.
type UseOf = fn(&Sample) -> Option<Use>;

/// What grew, program by program.
pub(super) fn of(samples: &[Sample]) -> Vec<Growth> {
    let programs: [(&str, UseOf); 2] = [("agent", |one| one.agent), ("server", |one| one.server)];
    let mut all = Vec::new();
    for (program, used) in programs {
        let life = last_life(samples, used);
        let points = |value: fn(&Use) -> f64| -> Vec<(f64, f64)> {
            life.iter().map(|(at, used)| (*at, value(used))).collect()
        };
        let memory = points(|used| float(used.rss_bytes) / MIB);
        let limit = MEMORY_MIB.max(mean(&memory) * MEMORY_SHARE);
        all.push(growth(
            format!("{program} memory"),
            "MiB",
            &memory,
            Some(limit),
        ));
        let files = life.iter();
        let files = files.filter_map(|(at, used)| Some((*at, float(used.open_files?))));
        let files: Vec<_> = files.collect();
        // Where the kernel never says, a longer run would not know either.
        let limit = (life.is_empty() || !files.is_empty()).then_some(FILES);
        all.push(growth(format!("{program} open files"), "", &files, limit));
        let threads = points(|used| float(used.threads));
        all.push(growth(
            format!("{program} threads"),
            "",
            &threads,
            Some(THREADS),
        ));
        let cpu = points(|used| used.cpu_s);
        all.push(growth(format!("{program} CPU time"), "s", &cpu, None));
    }
    let latency = |of: fn(&Sample) -> Option<f64>| -> Vec<(f64, f64)> {
        let points = samples.iter().filter_map(|one| Some((one.at_s, of(one)?)));
        points.collect()
    };
    let (p50, p99) = (latency(|one| one.p50_ms), latency(|one| one.p99_ms));
    all.push(growth("request latency p50".into(), "ms", &p50, None));
    all.push(growth("request latency p99".into(), "ms", &p99, None));
    all
}

/// The samples of the process that was there last, its warm-up left out.
fn last_life(samples: &[Sample], used: UseOf) -> Vec<(f64, Use)> {
    let seen = || {
        samples
            .iter()
            .filter_map(|one| Some((one.at_s, used(one)?)))
    };
    let Some((end, last)) = seen().next_back() else {
        return Vec::new();
    };
    let life = || seen().filter(|(_at, used)| used.pid == last.pid);
    let start = life().next().map_or(end, |(at, _used)| at);
    let warm = start + (end - start) * WARM_UP;
    life().filter(|(at, _used)| *at >= warm).collect()
}

fn growth(what: String, unit: &'static str, points: &[(f64, f64)], limit: Option<f64>) -> Growth {
    let length = match (points.first(), points.last()) {
        (Some((first, _)), Some((last, _))) => last - first,
        (None, _) | (_, None) => 0.0,
    };
    let slope = slope(points);
    Growth {
        what,
        unit,
        mean: mean(points),
        per_hour: slope * 3600.0,
        grew: slope * length,
        limit,
        minutes: length / 60.0,
        samples: points.len(),
    }
}

fn mean(points: &[(f64, f64)]) -> f64 {
    points.iter().map(|(_x, y)| y).sum::<f64>() / count(points).max(1.0)
}

/// Of the line with the least squares; 0 when there is none.
fn slope(points: &[(f64, f64)]) -> f64 {
    if points.len() < SAMPLES_MIN {
        return 0.0;
    }
    let mean_x = points.iter().map(|(x, _y)| x).sum::<f64>() / count(points);
    let mean_y = mean(points);
    let (mut both, mut squares) = (0.0, 0.0);
    for (x, y) in points {
        both += (x - mean_x) * (y - mean_y);
        squares += (x - mean_x).powi(2);
    }
    if squares > 0.0 { both / squares } else { 0.0 }
}

fn count(points: &[(f64, f64)]) -> f64 {
    count_of(points.len())
}

impl Growth {
    /// Why it is too much, if it is.
    pub(super) fn too_much(&self) -> Option<String> {
        let limit = self.limit?;
        (self.grew > limit).then(|| {
            format!(
                "{} grew by {:.1} {} in {:.1} minutes, {limit:.1} are allowed",
                self.what, self.grew, self.unit, self.minutes
            )
        })
    }
}

impl Growth {
    /// Why there is no judging it although it has a limit, if so.
    pub(super) fn not_judged(&self) -> Option<String> {
        let too_few = self.limit.is_some() && self.samples < SAMPLES_MIN;
        too_few.then(|| {
            format!(
                "{} was not judged: {} samples of its last life are too few, {SAMPLES_MIN} are needed; \
                 more --minutes or fewer --sample-seconds",
                self.what, self.samples
            )
        })
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<22} mean {:>9.2} {:<3} slope {:>+9.3} an hour, grew {:>+7.2} in {:.1} min",
            self.what, self.mean, self.unit, self.per_hour, self.grew, self.minutes
        )?;
        match self.limit {
            _ if self.samples == 0 => f.write_str(" (never seen)"),
            _ if self.samples < SAMPLES_MIN => f.write_str(" (too few samples to judge)"),
            Some(limit) => write!(f, " (allowed {limit:.1})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(pid: u32, bytes: impl Fn(f64) -> u64) -> Vec<Sample> {
        let sample = |n: u32| {
            let at_s = f64::from(n) * 5.0;
            let used = Use {
                pid,
                rss_bytes: bytes(at_s),
                open_files: Some(20),
                threads: 4,
                cpu_s: at_s / 100.0,
            };
            Sample {
                at_s,
                p50_ms: Some(1.0),
                p99_ms: Some(2.0),
                agent: Some(used),
                server: None,
            }
        };
        (0..200).map(sample).collect()
    }

    #[track_caller]
    fn check(samples: &[Sample], expected: Option<&str>) {
        let said: Vec<_> = of(samples).iter().filter_map(Growth::too_much).collect();
        assert_eq!(
            said.first().map(|why| why.split(" in ").next().unwrap()),
            expected
        );
    }

    #[test]
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bytes of a made-up program"
    )]
    fn what_grows_is_named_and_what_does_not_is_not() {
        let mib = |mib: f64| (mib * MIB) as u64;
        check(&samples(1, |_at| mib(20.0)), None);
        // A noise of a MiB is no growth.
        check(&samples(1, |at| mib(20.0 + at % 10.0 / 10.0)), None);
        // What grows while it warms up only is none.
        check(&samples(1, |at| mib(20.0 + at.min(200.0) / 10.0)), None);
        check(
            &samples(1, |at| mib(20.0 + at / 100.0)),
            Some("agent memory grew by 7.5 MiB"),
        );
    }

    #[test]
    fn an_earlier_life_does_not_count() {
        let mut all = samples(1, |_at| 1 << 20);
        let later = samples(2, |_at| 1 << 28);
        all.extend(later.into_iter().map(|one| Sample {
            at_s: one.at_s + 1_000.0,
            ..one
        }));
        check(&all, None);
    }

    #[test]
    fn too_few_samples_make_no_line() {
        let few = samples(1, |at| if at > 0.0 { 1 << 30 } else { 0 });
        let few = few.get(..8).unwrap();
        check(few, None);
        // But neither is it well.
        let said: Vec<_> = of(few).iter().filter_map(Growth::not_judged).collect();
        let said: Vec<_> = said
            .iter()
            .map(|why| why.split(" was").next().unwrap())
            .collect();
        assert_eq!(
            said,
            [
                "agent memory",
                "agent open files",
                "agent threads",
                "server memory",
                "server open files",
                "server threads",
            ]
        );
    }

    #[test]
    fn what_the_kernel_never_says_is_told_and_not_judged() {
        let mut all = samples(1, |_at| 1 << 20);
        let uses = all.iter_mut().filter_map(|one| one.agent.as_mut());
        uses.for_each(|used| used.open_files = None);
        let growth = of(&all);
        let said: Vec<_> = growth.iter().filter_map(Growth::not_judged).collect();
        assert!(!said.iter().any(|why| why.starts_with("agent")), "{said:?}");
        let files = growth.iter().find(|one| one.what == "agent open files");
        assert!(files.unwrap().to_string().ends_with("(never seen)"));
    }
}
