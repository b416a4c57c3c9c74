//! The named figures of a run: what gates, `--json` and comparisons know.
//!
//! Every quantile is of all requests of its kind of slice together, and CPU is theirs by their number,
//! so that what stands side by side was computed alike. A ratio is the median over the rounds of what
//! one slice says about its neighbour, with the lowest and the highest beside it.

use std::time::Duration;

use super::lateness::Lateness;
use super::pool::{Pool, Pools};
use super::slices::{Kind, Round, Slice};
use crate::gate::{self, Named};
use crate::measure::{Figures, Latencies};
use crate::numbers::{float, length, mebibytes, ms, ratio, spread, us};
use crate::report::Report;

/// Every figure there can be. What a run did not measure it does not have.
pub(crate) const NAMES: &[&str] = &[
    "failures",
    "failures_of_known",
    "requests",
    "parked_share",
    "p50_ratio",
    "p50_ratio_low",
    "p50_ratio_high",
    "p99_ratio",
    "p99_ratio_low",
    "p99_ratio_high",
    "cpu_ratio",
    "cpu_ratio_low",
    "cpu_ratio_high",
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
    "null_failures",
    "snapshots_per_second",
    "stirred_p50_ratio",
    "stirred_p50_ratio_low",
    "stirred_p50_ratio_high",
    "stirred_p99_ratio",
    "stirred_p99_ratio_low",
    "stirred_p99_ratio_high",
    "stirred_request_p50_us",
    "stirred_request_p99_us",
    "stirred_request_p999_us",
    "stirred_cpu_per_request_us",
    "stirred_failures",
    "hogged_p50_ratio",
    "hogged_p50_ratio_low",
    "hogged_p50_ratio_high",
    "hogged_p99_ratio",
    "hogged_p99_ratio_low",
    "hogged_p99_ratio_high",
    "hogged_request_p50_us",
    "hogged_request_p99_us",
    "hogged_request_p999_us",
    "hogged_cpu_per_request_us",
    "hogged_failures",
    "other_p50_ratio",
    "other_p50_ratio_low",
    "other_p50_ratio_high",
    "other_p99_ratio",
    "other_p99_ratio_low",
    "other_p99_ratio_high",
    "other_cpu_ratio",
    "other_cpu_ratio_low",
    "other_cpu_ratio_high",
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
    "first_late_share",
    "null_late_share",
    "stirred_late_share",
    "hogged_late_share",
    "other_late_share",
    "other_first_late_share",
    "stolen_share",
];

/// What is known of a run beside its slices.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    /// Everything but the ratios.
    pub report: &'a Report,
    /// How late each load was.
    pub lateness: &'a Lateness,
    /// Snapshots that the agent published, by its own count.
    pub snapshots: Option<f64>,
    /// From a change to the agent's word that it is served, as the server saw it: p50 and p99, seconds.
    pub applied_s: Option<(f64, f64)>,
    /// How long all slices took together.
    pub elapsed: Duration,
    /// The share of the machine's time that the hypervisor gave to others.
    pub stolen: Option<f64>,
    /// Resident bytes of the other agent.
    pub other_resident_bytes: Option<u64>,
}

/// All figures of a run.
pub(crate) fn of(known: &Known<'_>, pools: &Pools, rounds: &[Round]) -> Named {
    let mut named = of_the_system(known);
    named.append(&mut of_the_generator(known));
    named.append(&mut of_changes(known));
    for (kind, pool) in pools {
        named.append(&mut of_kind(*kind, pool));
    }
    named.append(&mut known.lateness.shares());
    named.append(&mut against(rounds));
    named
}

fn of_the_system(known: &Known<'_>) -> Named {
    let report = known.report;
    let calls = ratio(float(report.sts_calls), length(report.sts_roles));
    let snapshots = known.snapshots;
    gate::measured([
        ("failures", Some(float(report.failures()))),
        ("failures_of_known", Some(float(report.failures_of_known()))),
        (
            "agent_rss_mib",
            Some(mebibytes(report.agent.resident_bytes)),
        ),
        (
            "server_rss_mib",
            Some(mebibytes(report.server.resident_bytes)),
        ),
        (
            "server_cpu_s",
            report.server.cpu.map(|cpu| cpu.as_secs_f64()),
        ),
        ("sts_calls_per_role", calls),
        ("sts_calls_early", Some(float(report.sts_early))),
        (
            "snapshots_per_second",
            snapshots.and_then(|count| ratio(count, known.elapsed.as_secs_f64())),
        ),
        ("other_rss_mib", known.other_resident_bytes.map(mebibytes)),
    ])
}

fn of_the_generator(known: &Known<'_>) -> Named {
    let steady = &known.report.steady;
    let lag = &steady.lag;
    gate::measured([
        ("generator_lag_p50_us", lag.quantile(0.5).map(us)),
        ("generator_lag_p99_us", lag.quantile(0.99).map(us)),
        (
            "generator_waited_us",
            ratio(us(steady.waited), float(lag.count())),
        ),
        ("stolen_share", known.stolen),
    ])
}

fn of_changes(known: &Known<'_>) -> Named {
    let changes = &known.report.changes;
    let first = &changes.first.dialogues;
    let other = changes.other_first.as_ref();
    let at = |latencies: &Latencies, share| latencies.quantile(share).map(ms);
    let of_other = |share| other.and_then(|other| at(&other.dialogues, share));
    let (p50_s, p99_s) = known.applied_s.unzip();
    gate::measured([
        ("pods_created", Some(float(changes.churned.created))),
        ("first_credential_min_ms", first.min().map(ms)),
        ("first_credential_p50_ms", at(first, 0.5)),
        ("first_credential_p99_ms", at(first, 0.99)),
        (
            "other_first_credential_failures",
            other.map(|other| float(other.failed())),
        ),
        ("other_first_credential_p50_ms", of_other(0.5)),
        ("other_first_credential_p99_ms", of_other(0.99)),
        ("push_applied_p50_ms", p50_s.map(|s| s * 1e3)),
        ("push_applied_p99_ms", p99_s.map(|s| s * 1e3)),
    ])
}

/// All slices of one kind together: the names of their p50, p99, p99.9 and CPU, and the rest.
fn of_kind(kind: Kind, pool: &Pool) -> Named {
    let Figures {
        requests,
        dialogues,
        ..
    } = &pool.figures;
    let failed = Some(float(pool.figures.failed()));
    let (names, failures) = match kind {
        Kind::Agent => (
            [
                "request_p50_us",
                "request_p99_us",
                "request_p999_us",
                "agent_cpu_per_request_us",
            ],
            None,
        ),
        Kind::Null => (
            [
                "null_request_p50_us",
                "null_request_p99_us",
                "null_request_p999_us",
                "null_cpu_per_request_us",
            ],
            Some("null_failures"),
        ),
        Kind::Stirred => (
            [
                "stirred_request_p50_us",
                "stirred_request_p99_us",
                "stirred_request_p999_us",
                "stirred_cpu_per_request_us",
            ],
            Some("stirred_failures"),
        ),
        Kind::Hogged => (
            [
                "hogged_request_p50_us",
                "hogged_request_p99_us",
                "hogged_request_p999_us",
                "hogged_cpu_per_request_us",
            ],
            Some("hogged_failures"),
        ),
        Kind::Other => (
            [
                "other_request_p50_us",
                "other_request_p99_us",
                "other_request_p999_us",
                "other_cpu_per_request_us",
            ],
            Some("other_failures"),
        ),
    };
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| requests.quantile(share).map(us));
    let values = [p50, p99, p999, pool.cpu_per_request().map(us)];
    let mut named = gate::measured(names.into_iter().zip(values));
    named.append(&mut gate::measured(failures.map(|name| (name, failed))));
    if kind == Kind::Agent {
        named.append(&mut gate::measured([
            ("requests", Some(float(requests.count()))),
            ("request_max_us", requests.max().map(us)),
            ("dialogue_p50_us", dialogues.quantile(0.5).map(us)),
            ("dialogue_p99_us", dialogues.quantile(0.99).map(us)),
            ("parked_share", pool.parked_share()),
        ]));
    }
    named
}

/// What is compared of two slices.
type Of = fn(&Slice) -> Option<f64>;

/// What one slice says about its neighbour in each round: the agent by the null server, and the agent
/// under stress, or another agent, by the agent left alone. Medians, the lowest, the highest.
fn against(rounds: &[Round]) -> Named {
    let p50: Of = |slice| slice.figures.requests.quantile(0.5).map(us);
    let p99: Of = |slice| slice.figures.requests.quantile(0.99).map(us);
    let cpu: Of = |slice| slice.cpu_per_request().map(us);
    let compare = |above: Kind, below: Kind, of: Of, names: [&'static str; 3]| {
        let ratios = rounds.iter().filter_map(|round| {
            let [above, below] = [round.get(&above)?, round.get(&below)?].map(of);
            ratio(above?, below?)
        });
        let spread = spread(ratios);
        gate::measured(names.into_iter().zip([
            spread.map(|spread| spread.median),
            spread.map(|spread| spread.low),
            spread.map(|spread| spread.high),
        ]))
    };
    /// A ratio's name, and those of its lowest and highest.
    macro_rules! names {
        ($name:literal) => {
            [$name, concat!($name, "_low"), concat!($name, "_high")]
        };
    }
    let (agent, null) = (Kind::Agent, Kind::Null);
    let all = [
        compare(agent, null, p50, names!("p50_ratio")),
        compare(agent, null, p99, names!("p99_ratio")),
        compare(agent, null, cpu, names!("cpu_ratio")),
        compare(Kind::Stirred, agent, p50, names!("stirred_p50_ratio")),
        compare(Kind::Stirred, agent, p99, names!("stirred_p99_ratio")),
        compare(Kind::Hogged, agent, p50, names!("hogged_p50_ratio")),
        compare(Kind::Hogged, agent, p99, names!("hogged_p99_ratio")),
        compare(Kind::Other, agent, p50, names!("other_p50_ratio")),
        compare(Kind::Other, agent, p99, names!("other_p99_ratio")),
        compare(Kind::Other, agent, cpu, names!("other_cpu_ratio")),
    ];
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::churn::Churned;
    use crate::dialogue::Failure;
    use crate::report::Used;
    use crate::run::pool;
    use crate::run::slices::Counted;
    use crate::session::Changes;

    fn slice(us: u64) -> Slice {
        let mut figures = Figures::new();
        for latencies in [&mut figures.requests, &mut figures.dialogues] {
            latencies.record(Duration::from_micros(us));
        }
        figures.lag.record(Duration::ZERO);
        Slice {
            figures,
            cpu: Some(Duration::from_micros(us / 2)),
            counted: Some(Counted {
                parked: 1.0,
                served: 4.0,
            }),
        }
    }

    /// A round in which every kind took part.
    fn round() -> Round {
        let kinds = [
            (Kind::Agent, 200),
            (Kind::Null, 100),
            (Kind::Stirred, 220),
            (Kind::Hogged, 400),
            (Kind::Other, 600),
        ];
        kinds.map(|(kind, us)| (kind, slice(us))).into()
    }

    fn figures_of(rounds: &[Round]) -> Named {
        let mut first = Figures::new();
        first.dialogues.record(Duration::from_millis(3));
        first.lag.record(Duration::ZERO);
        let pools = pool::of(rounds);
        let used = Used {
            cpu: Some(Duration::from_secs(1)),
            resident_bytes: 1 << 20,
        };
        let report = Report {
            title: String::new(),
            changes: Changes {
                churned: Churned::default(),
                other_first: Some(first.clone()),
                first,
            },
            steady: pool::all(&pools, &[Kind::Agent]),
            stressed: pool::all(&pools, &[Kind::Stirred, Kind::Hogged]),
            agent: used,
            agent_cpu_per_request: None,
            server: used,
            sts_calls: 4,
            sts_roles: 2,
            sts_early: 1,
            generator: String::new(),
            broken: vec![],
        };
        let known = Known {
            report: &report,
            lateness: &Lateness::of(&report.changes, &pools),
            snapshots: Some(20.0),
            applied_s: Some((0.001, 0.002)),
            elapsed: Duration::from_secs(2),
            stolen: Some(0.25),
            other_resident_bytes: Some(1 << 20),
        };
        of(&known, &pools, rounds)
    }

    #[test]
    fn names_and_figures_are_the_same() {
        let figures = figures_of(&[round()]);
        let measured: std::collections::BTreeSet<_> = figures.keys().copied().collect();
        assert_eq!(measured, NAMES.iter().copied().collect());
    }

    #[track_caller]
    fn check(figures: &Named, name: &str, expected: f64) {
        let got = figures[name];
        assert!((got - expected).abs() < 0.01, "{name} is {got}");
    }

    #[test]
    fn ratios_are_of_neighbours() {
        let figures = figures_of(&[round()]);
        check(&figures, "p99_ratio", 2.0);
        check(&figures, "cpu_ratio", 2.0);
        check(&figures, "stirred_p99_ratio", 1.1);
        check(&figures, "hogged_p50_ratio", 2.0);
        check(&figures, "other_cpu_ratio", 3.0);
        check(&figures, "sts_calls_per_role", 2.0);
        check(&figures, "sts_calls_early", 1.0);
        check(&figures, "snapshots_per_second", 10.0);
        check(&figures, "push_applied_p99_ms", 2.0);
        check(&figures, "stolen_share", 0.25);
        check(&figures, "parked_share", 0.25);
    }

    #[test]
    fn a_failure_under_stress_is_the_agents_too() {
        let mut round = round();
        let mut fail = |kind, times: u32| {
            let slice = round.get_mut(&kind).unwrap();
            (0..times).for_each(|_| slice.figures.fail(Failure::TimedOut));
        };
        fail(Kind::Hogged, 2);
        fail(Kind::Stirred, 3);
        fail(Kind::Null, 5);
        fail(Kind::Other, 7);
        let figures = figures_of(&[round]);
        check(&figures, "failures", 5.0);
        check(&figures, "failures_of_known", 5.0);
        check(&figures, "hogged_failures", 2.0);
        check(&figures, "stirred_failures", 3.0);
        check(&figures, "null_failures", 5.0);
        check(&figures, "other_failures", 7.0);
    }

    #[test]
    fn quantiles_of_every_kind_are_of_all_rounds_together() {
        let quick = round();
        let slow = quick.keys().map(|kind| (*kind, slice(9_000))).collect();
        let figures = figures_of(&[quick, slow, round()]);
        for prefix in ["", "null_", "stirred_", "hogged_", "other_"] {
            let p99 = figures[&*format!("{prefix}request_p99_us")];
            assert!((p99 - 9_000.0).abs() < 10.0, "{prefix}: {p99}");
        }
        // And the ratio is the median of the rounds', with the one that stands out beside it.
        check(&figures, "p99_ratio", 2.0);
        check(&figures, "p99_ratio_low", 1.0);
        check(&figures, "p99_ratio_high", 2.0);
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let mut blind = round();
        blind.get_mut(&Kind::Agent).unwrap().cpu = None;
        blind.get_mut(&Kind::Agent).unwrap().counted = None;
        blind.get_mut(&Kind::Hogged).unwrap().figures = Figures::new();
        let figures = figures_of(&[blind]);
        for absent in [
            "agent_cpu_per_request_us",
            "parked_share",
            "cpu_ratio",
            "other_cpu_ratio",
            "hogged_request_p99_us",
            "hogged_p99_ratio",
            "hogged_late_share",
        ] {
            assert!(!figures.contains_key(absent), "{absent}");
        }
        // A round that could not be seen leaves the others as they were.
        let mut blind = round();
        blind.get_mut(&Kind::Agent).unwrap().cpu = None;
        let figures = figures_of(&[blind, round()]);
        check(&figures, "cpu_ratio", 2.0);
        check(&figures, "agent_cpu_per_request_us", 100.0);
    }
}
