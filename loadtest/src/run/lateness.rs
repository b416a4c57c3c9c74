//! How late the generator was, load by load: a figure is judged by the lateness of the loads that it is
//! of, and of no other.

use std::collections::BTreeMap;

use super::pool::Pools;
use super::slices::Kind;
use crate::gate::{self, Named};
use crate::measure::Latencies;
use crate::session::Changes;
use crate::verdict;

/// A load with a lateness of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    /// Slices of this kind.
    Slices(Kind),
    /// First dialogues of pods that have just started.
    First,
    /// Theirs with another agent.
    OtherFirst,
}

/// How late each load of a run was.
#[derive(Debug)]
pub(crate) struct Lateness(BTreeMap<Load, Latencies>);

impl Load {
    /// What was started late, and the figure that says how often.
    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Slices(Kind::Agent) => ("the dialogues", "generator_late_share"),
            Self::Slices(Kind::Null) => ("the dialogues with the null server", "null_late_share"),
            Self::Slices(Kind::Stirred) => ("the dialogues beside snapshots", "stirred_late_share"),
            Self::Slices(Kind::Hogged) => ("the dialogues beside hogs", "hogged_late_share"),
            Self::Slices(Kind::Other) => ("the dialogues with the other agent", "other_late_share"),
            Self::First => ("the pods' first dialogues", "first_late_share"),
            Self::OtherFirst => (
                "the pods' first dialogues with the other agent",
                "other_first_late_share",
            ),
        }
    }
}

/// The loads that a figure on latency is of; none when the generator had no part in it.
fn loads(figure: &str) -> Vec<Load> {
    if let Some(rest) = figure.strip_prefix("other_")
        && rest.starts_with("first_")
    {
        return vec![Load::OtherFirst];
    }
    let kinds = [
        ("null_", Kind::Null),
        ("stirred_", Kind::Stirred),
        ("hogged_", Kind::Hogged),
        ("other_", Kind::Other),
    ];
    let of_kind = kinds
        .into_iter()
        .find_map(|(prefix, kind)| Some((kind, figure.strip_prefix(prefix)?)));
    let (kind, rest) = of_kind.unwrap_or((Kind::Agent, figure));
    if rest.contains("_ratio") {
        let beside = if kind == Kind::Agent {
            Kind::Null
        } else {
            Kind::Agent
        };
        return vec![Load::Slices(kind), Load::Slices(beside)];
    }
    if rest.starts_with("request_") || rest.starts_with("dialogue_") {
        return vec![Load::Slices(kind)];
    }
    if rest.starts_with("first_") {
        return vec![Load::First];
    }
    // What the server saw by itself, and the generator's own figures.
    Vec::new()
}

impl Lateness {
    /// Of the slices and of what happened beside them.
    pub(crate) fn of(changes: &Changes, pools: &Pools) -> Self {
        let slices = pools.iter();
        let slices = slices.map(|(kind, pool)| (Load::Slices(*kind), pool.figures.lag.clone()));
        let first = [(Load::First, changes.first.lag.clone())];
        let other = changes.other_first.as_ref();
        let other = other.map(|other| (Load::OtherFirst, other.lag.clone()));
        Self(slices.chain(first).chain(other).collect())
    }

    /// Why a figure on latency may not be judged, if so.
    pub(crate) fn refusal(&self, figure: &str) -> Option<String> {
        self.refusal_of(loads(figure))
    }

    /// Why there is no verdict on some of the latencies, if so.
    pub(crate) fn refusals(&self) -> Option<String> {
        self.refusal_of(self.0.keys().copied())
    }

    fn refusal_of(&self, loads: impl IntoIterator<Item = Load>) -> Option<String> {
        let late = |load: Load| verdict::late(load.words().0, self.0.get(&load)?);
        let late: Vec<_> = loads.into_iter().filter_map(late).collect();
        verdict::refusal(&late)
    }

    /// The share of each load that was late.
    pub(crate) fn shares(&self) -> Named {
        let shares = self.0.iter();
        gate::measured(shares.map(|(load, lag)| (load.words().1, verdict::late_share(lag))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::run::figures::NAMES;

    #[test]
    fn every_latency_of_the_generator_has_a_load() {
        for name in NAMES {
            let gate: gate::Gate = format!("{name}<=1").parse().unwrap();
            let own = name.starts_with("generator_") || name.starts_with("push_applied_");
            if gate.is_on_latency() && !own {
                assert!(!loads(name).is_empty(), "{name}");
            }
        }
    }

    #[track_caller]
    fn check(late: Load, gate: &str, shut: bool) {
        let lag = |load: Load| {
            let mut lag = Latencies::new();
            lag.record(Duration::from_millis(if load == late { 5 } else { 0 }));
            (load, lag)
        };
        let loads = [
            Load::Slices(Kind::Agent),
            Load::Slices(Kind::Null),
            Load::Slices(Kind::Hogged),
            Load::First,
        ];
        let lateness = Lateness(loads.map(lag).into());
        let gates = [gate.parse().unwrap()];
        let name = gate.split('<').next().unwrap();
        let name = NAMES.iter().find(|known| **known == name).unwrap();
        let figures = Named::from([(*name, 0.0)]);
        let judged = gate::judge(&gates, &figures, None, |figure| lateness.refusal(figure));
        assert_eq!(!judged.is_empty(), shut, "{late:?}: {judged:?}");
        assert!(lateness.refusals().is_some());
    }

    #[test]
    fn a_gate_looks_at_the_lateness_of_its_own_load() {
        check(Load::First, "first_credential_p99_ms<=25", true);
        check(Load::First, "p99_ratio<=1.25", false);
        check(Load::Slices(Kind::Null), "p99_ratio<=1.25", true);
        check(Load::Slices(Kind::Null), "request_p99_us<=9", false);
        check(Load::Slices(Kind::Hogged), "hogged_p99_ratio<=2", true);
        check(Load::Slices(Kind::Agent), "hogged_p99_ratio<=2", true);
        check(
            Load::Slices(Kind::Agent),
            "first_credential_p99_ms<=25",
            false,
        );
        // Neither of these is about how long something took to be asked.
        check(Load::Slices(Kind::Agent), "cpu_ratio<=2", false);
        check(Load::First, "first_credential_min_ms<=2", false);
        check(Load::First, "push_applied_p99_ms<=2", false);
    }
}
