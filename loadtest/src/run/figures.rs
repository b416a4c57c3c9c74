//! The named figures of a run: what gates, `--json` and comparisons know.

use std::time::Duration;

use super::slices::{Kind, Round, Slice};
use super::verdict;
use crate::gate::Named;
use crate::measure::{Figures, Latencies};
use crate::report::Report;

/// Every figure there can be. What a run did not measure it does not have.
pub(crate) const NAMES: &[&str] = &[
    "failures",
    "failures_of_known",
    "requests",
    "parked_share",
    "p50_ratio",
    "p99_ratio",
    "cpu_ratio",
    "request_p50_us",
    "request_p99_us",
    "request_p999_us",
    "request_max_us",
    "dialogue_p50_us",
    "dialogue_p99_us",
    "first_credential_min_ms",
    "first_credential_p50_ms",
    "first_credential_p99_ms",
    "push_applied_p50_ms",
    "push_applied_p99_ms",
    "pods_created",
    "agent_cpu_per_request_us",
    "agent_rss_mib",
    "server_rss_mib",
    "server_cpu_s",
    "sts_calls_per_role",
    "sts_calls_early",
    "null_request_p50_us",
    "null_request_p99_us",
    "null_request_p999_us",
    "null_cpu_per_request_us",
    "snapshots_per_second",
    "stirred_p50_ratio",
    "stirred_p99_ratio",
    "stirred_request_p50_us",
    "stirred_request_p99_us",
    "stirred_request_p999_us",
    "stirred_cpu_per_request_us",
    "hogged_p50_ratio",
    "hogged_p99_ratio",
    "hogged_request_p50_us",
    "hogged_request_p99_us",
    "hogged_request_p999_us",
    "hogged_cpu_per_request_us",
    "other_p50_ratio",
    "other_p99_ratio",
    "other_cpu_ratio",
    "other_request_p50_us",
    "other_request_p99_us",
    "other_request_p999_us",
    "other_cpu_per_request_us",
    "other_failures",
    "other_rss_mib",
    "other_first_credential_p50_ms",
    "other_first_credential_p99_ms",
    "other_first_credential_failures",
    "generator_lag_p50_us",
    "generator_lag_p99_us",
    "generator_late_share",
    "generator_waited_us",
    "stolen_share",
];

/// What is known of a run beside its slices.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    /// Everything but the ratios.
    pub report: &'a Report,
    /// Requests that had to wait for their pod, by the agent's own count.
    pub parked: f64,
    /// Snapshots that the agent published, by its own count.
    pub snapshots: f64,
    /// From a change to the agent's word that it is served, as the server saw it: p50 and p99, seconds.
    pub applied_s: Option<(f64, f64)>,
    /// How long all slices took together.
    pub elapsed: Duration,
    /// The share of the machine's time that the hypervisor gave to others.
    pub stolen: f64,
    /// Resident bytes of the other agent.
    pub other_resident_bytes: Option<u64>,
}

/// All figures of a run.
pub(crate) fn of(known: &Known<'_>, rounds: &[Round]) -> Named {
    let mut named = of_the_agent(known);
    named.append(&mut of_the_generator(known));
    named.append(&mut of_changes(known));
    for (kind, slices) in by_kind(rounds) {
        named.append(&mut of_kind(kind, &slices));
    }
    if let Some(bytes) = known.other_resident_bytes {
        named.insert("other_rss_mib", mebibytes(bytes));
    }
    named.append(&mut against(rounds));
    named
}

fn of_the_agent(known: &Known<'_>) -> Named {
    let report = known.report;
    let steady = &report.steady;
    let requests = float(report.requests());
    Named::from([
        ("failures", float(report.failures())),
        ("failures_of_known", float(report.failures_of_known())),
        ("requests", float(steady.requests.count())),
        ("parked_share", ratio(known.parked, requests)),
        ("request_p50_us", us(steady.requests.quantile(0.5))),
        ("request_p99_us", us(steady.requests.quantile(0.99))),
        ("request_p999_us", us(steady.requests.quantile(0.999))),
        ("request_max_us", us(steady.requests.max())),
        ("dialogue_p50_us", us(steady.dialogues.quantile(0.5))),
        ("dialogue_p99_us", us(steady.dialogues.quantile(0.99))),
        ("agent_rss_mib", mebibytes(report.agent.resident_bytes)),
        ("server_rss_mib", mebibytes(report.server.resident_bytes)),
        ("server_cpu_s", report.server.cpu.as_secs_f64()),
        (
            "sts_calls_per_role",
            ratio(float(report.sts_calls), float(length(report.sts_roles))),
        ),
        ("sts_calls_early", float(report.sts_early)),
        (
            "snapshots_per_second",
            ratio(known.snapshots, known.elapsed.as_secs_f64()),
        ),
    ])
}

fn of_the_generator(known: &Known<'_>) -> Named {
    let lag = &known.report.steady.lag;
    let waited = us(known.report.steady.waited);
    Named::from([
        ("generator_lag_p50_us", us(lag.quantile(0.5))),
        ("generator_lag_p99_us", us(lag.quantile(0.99))),
        (
            "generator_late_share",
            verdict::late_share(&known.report.steady),
        ),
        ("generator_waited_us", ratio(waited, float(lag.count()))),
        ("stolen_share", known.stolen),
    ])
}

fn of_changes(known: &Known<'_>) -> Named {
    let changes = &known.report.changes;
    let mut named = Named::from([("pods_created", float(changes.churned.created))]);
    let first = |figures: &Figures| {
        let latencies = &figures.dialogues;
        let ms = |share: f64| us(latencies.quantile(share)) / 1e3;
        (latencies.count() > 0).then(|| (ms(0.5), ms(0.99)))
    };
    if let Some((p50, p99)) = first(&changes.first) {
        let min = us(changes.first.dialogues.min()) / 1e3;
        named.extend([
            ("first_credential_min_ms", min),
            ("first_credential_p50_ms", p50),
            ("first_credential_p99_ms", p99),
        ]);
    }
    if let Some(other) = &changes.other_first {
        named.insert("other_first_credential_failures", float(other.failed()));
        if let Some((p50, p99)) = first(other) {
            named.extend([
                ("other_first_credential_p50_ms", p50),
                ("other_first_credential_p99_ms", p99),
            ]);
        }
    }
    if let Some((p50, p99)) = known.applied_s {
        named.extend([
            ("push_applied_p50_ms", p50 * 1e3),
            ("push_applied_p99_ms", p99 * 1e3),
        ]);
    }
    named
}

/// Medians over the rounds of one kind of slice.
fn of_kind(kind: Kind, slices: &[&Slice]) -> Named {
    let over = |of: &dyn Fn(&Slice) -> f64| median(slices.iter().map(|slice| of(slice)));
    let failed = slices.iter().map(|slice| slice.figures.failed()).sum();
    let [p50_us, p99_us, p999_us] =
        [0.5, 0.99, 0.999].map(|share| over(&|slice| request_us(slice, share)));
    match kind {
        Kind::Agent => Named::from([("agent_cpu_per_request_us", over(&cpu_us))]),
        Kind::Null => Named::from([
            ("null_request_p50_us", p50_us),
            ("null_request_p99_us", p99_us),
            ("null_request_p999_us", p999_us),
            ("null_cpu_per_request_us", over(&cpu_us)),
        ]),
        Kind::Stirred => Named::from([
            ("stirred_request_p50_us", p50_us),
            ("stirred_request_p99_us", p99_us),
            ("stirred_request_p999_us", p999_us),
            ("stirred_cpu_per_request_us", over(&cpu_us)),
        ]),
        Kind::Hogged => Named::from([
            ("hogged_request_p50_us", p50_us),
            ("hogged_request_p99_us", p99_us),
            ("hogged_request_p999_us", p999_us),
            ("hogged_cpu_per_request_us", over(&cpu_us)),
        ]),
        Kind::Other => Named::from([
            ("other_request_p50_us", p50_us),
            ("other_request_p99_us", p99_us),
            ("other_request_p999_us", p999_us),
            ("other_cpu_per_request_us", over(&cpu_us)),
            ("other_failures", float(failed)),
        ]),
    }
}

/// Medians over the rounds of what one slice says about its neighbour: the agent by the null server,
/// and the agent under stress, or another agent, by the agent left alone.
fn against(rounds: &[Round]) -> Named {
    let compare = |above: Kind, below: Kind, of: &dyn Fn(&Slice) -> f64| {
        let ratios: Vec<f64> = rounds
            .iter()
            .filter_map(|round| Some(ratio(of(round.get(&above)?), of(round.get(&below)?))))
            .collect();
        (!ratios.is_empty()).then(|| median(ratios.into_iter()))
    };
    let p50 = |slice: &Slice| request_us(slice, 0.5);
    let p99 = |slice: &Slice| request_us(slice, 0.99);
    let (agent, null) = (Kind::Agent, Kind::Null);
    let ratios = [
        ("p50_ratio", compare(agent, null, &p50)),
        ("p99_ratio", compare(agent, null, &p99)),
        ("cpu_ratio", compare(agent, null, &cpu_us)),
        ("stirred_p50_ratio", compare(Kind::Stirred, agent, &p50)),
        ("stirred_p99_ratio", compare(Kind::Stirred, agent, &p99)),
        ("hogged_p50_ratio", compare(Kind::Hogged, agent, &p50)),
        ("hogged_p99_ratio", compare(Kind::Hogged, agent, &p99)),
        ("other_p50_ratio", compare(Kind::Other, agent, &p50)),
        ("other_p99_ratio", compare(Kind::Other, agent, &p99)),
        ("other_cpu_ratio", compare(Kind::Other, agent, &cpu_us)),
    ];
    let measured = ratios
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    measured.collect()
}

/// The slices of each kind, over all rounds.
pub(crate) fn by_kind(rounds: &[Round]) -> std::collections::BTreeMap<Kind, Vec<&Slice>> {
    let mut kinds = std::collections::BTreeMap::<Kind, Vec<&Slice>>::new();
    for (kind, slice) in rounds.iter().flatten() {
        kinds.entry(*kind).or_default().push(slice);
    }
    kinds
}

/// All requests of these slices together.
pub(crate) fn requests(slices: &[&Slice]) -> Latencies {
    let mut all = Latencies::new();
    for slice in slices {
        all.add(&slice.figures.requests);
    }
    all
}

fn request_us(slice: &Slice, share: f64) -> f64 {
    us(slice.figures.requests.quantile(share))
}

fn cpu_us(slice: &Slice) -> f64 {
    ratio(us(slice.cpu), float(slice.figures.requests.count()))
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn mebibytes(bytes: u64) -> f64 {
    float(bytes) / f64::from(1 << 20)
}

/// The middle one; of an even number the lower of the two.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
        .get(values.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

fn ratio(above: f64, below: f64) -> f64 {
    if below > 0.0 { above / below } else { 0.0 }
}

fn float(count: u64) -> f64 {
    #[expect(
        clippy::as_conversions,
        clippy::cast_precision_loss,
        reason = "counts below 2^52"
    )]
    let float = count as f64;
    float
}

fn length(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::churn::Churned;
    use crate::report::Usage;
    use crate::session::Changes;

    #[test]
    fn the_median_is_a_value_that_was_seen() {
        assert!((median([3.0, 1.0, 2.0].into_iter()) - 2.0).abs() < f64::EPSILON);
        assert!((median([4.0, 1.0].into_iter()) - 1.0).abs() < f64::EPSILON);
        assert!(median(std::iter::empty()).is_nan());
    }

    fn slice(us: u64) -> Slice {
        let mut figures = Figures::new();
        figures.requests.record(Duration::from_micros(us));
        Slice {
            figures,
            cpu: Duration::from_micros(us / 2),
        }
    }

    /// Figures of one round in which every kind took part.
    fn figures() -> Named {
        let kinds = [
            (Kind::Agent, 200),
            (Kind::Null, 100),
            (Kind::Stirred, 220),
            (Kind::Hogged, 400),
            (Kind::Other, 600),
        ];
        let round: Round = kinds.map(|(kind, us)| (kind, slice(us))).into();
        let mut first = Figures::new();
        first.dialogues.record(Duration::from_millis(3));
        let report = Report {
            title: String::new(),
            changes: Changes {
                churned: Churned::default(),
                other_first: Some(first.clone()),
                first,
            },
            steady: slice(200).figures,
            agent: Usage::default(),
            server: Usage::default(),
            sts_calls: 4,
            sts_roles: 2,
            sts_early: 1,
            generator: String::new(),
            broken: vec![],
        };
        let known = Known {
            report: &report,
            parked: 1.0,
            snapshots: 20.0,
            applied_s: Some((0.001, 0.002)),
            elapsed: Duration::from_secs(2),
            stolen: 0.25,
            other_resident_bytes: Some(1 << 20),
        };
        of(&known, &[round])
    }

    #[test]
    fn names_and_figures_are_the_same() {
        let figures = figures();
        let measured: std::collections::BTreeSet<_> = figures.keys().copied().collect();
        assert_eq!(measured, NAMES.iter().copied().collect());
    }

    #[track_caller]
    fn check(name: &str, expected: f64) {
        let got = figures()[name];
        assert!((got - expected).abs() < 0.01, "{name} is {got}");
    }

    #[test]
    fn ratios_are_of_neighbours() {
        check("p99_ratio", 2.0);
        check("cpu_ratio", 2.0);
        check("stirred_p99_ratio", 1.1);
        check("hogged_p50_ratio", 2.0);
        check("other_cpu_ratio", 3.0);
        check("sts_calls_per_role", 2.0);
        check("sts_calls_early", 1.0);
        check("snapshots_per_second", 10.0);
        check("push_applied_p99_ms", 2.0);
        check("stolen_share", 0.25);
    }
}
