//! Conditions on named figures that decide the exit code: `failures=0`, `p99_ratio<=1.25`.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

/// A figure's name and value. Only figures that were measured are in the map.
pub(crate) type Named = BTreeMap<&'static str, f64>;

/// The figures that have a value.
pub(crate) fn measured(figures: impl IntoIterator<Item = (&'static str, Option<f64>)>) -> Named {
    let figures = figures.into_iter();
    figures
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

/// A condition on one figure, or on what became of it since the baseline that `--compare` names:
/// `change.p99_ratio<=1.1`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gate {
    change: bool,
    name: String,
    relation: Relation,
    bound: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    AtMost,
    AtLeast,
    Below,
    Above,
    Equal,
}

/// Longer words first: `<=` begins with `<`.
const RELATIONS: [(&str, Relation); 5] = [
    ("<=", Relation::AtMost),
    (">=", Relation::AtLeast),
    ("<", Relation::Below),
    (">", Relation::Above),
    ("=", Relation::Equal),
];

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, relation) = RELATIONS
            .into_iter()
            .find(|(word, _)| text.contains(word))
            .ok_or("a gate is a figure, one of <= >= < > =, and a number")?;
        let (name, bound) = text.split_once(word).unwrap_or_default();
        let bound = bound.trim().parse::<f64>();
        let bound = bound.map_err(|error| format!("the bound of the gate: {error}"))?;
        if !bound.is_finite() {
            return Err("the bound of a gate is a finite number".into());
        }
        let name = name.trim();
        let (change, name) = match name.strip_prefix(CHANGE) {
            Some(name) => (true, name),
            None => (false, name),
        };
        Ok(Self {
            change,
            name: name.to_owned(),
            relation,
            bound,
        })
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = RELATIONS
            .iter()
            .find(|(_, relation)| *relation == self.relation);
        write!(
            f,
            "{}{}{}{}",
            if self.change { CHANGE } else { "" },
            self.name,
            word.map_or("?", |(word, _)| word),
            self.bound
        )
    }
}

impl Gate {
    /// Whether it judges how long something took, which a late generator cannot say.
    pub(crate) fn is_on_latency(&self) -> bool {
        let of_time = ["_us", "_ms"].iter().any(|unit| self.name.ends_with(unit));
        let of_cpu = self.name.contains("cpu");
        // The fastest of many was not late.
        let of_fastest = self.name.contains("_min_");
        (of_time || self.name.contains("_ratio")) && !of_cpu && !of_fastest
    }

    /// Why this gate is shut; `None` when it is open. A figure that was not measured shuts it.
    pub(crate) fn shut(&self, figures: &Named) -> Option<String> {
        let Some(value) = figures.get(self.name.as_str()) else {
            return Some(format!("{self}: it was not measured in this run"));
        };
        let open = match self.relation {
            Relation::AtMost => *value <= self.bound,
            Relation::AtLeast => *value >= self.bound,
            Relation::Below => *value < self.bound,
            Relation::Above => *value > self.bound,
            Relation::Equal => (*value - self.bound).abs() < f64::EPSILON,
        };
        (!open).then(|| format!("{self}: it is {value:.3}"))
    }
}

/// The gates, and one that `figure` is 0 unless there is a gate on it already: what must never be needs
/// no asking for.
pub(crate) fn with_none_of(gates: &[Gate], figure: Option<&str>) -> Vec<Gate> {
    let stated = |figure: &str| gates.iter().any(|gate| !gate.change && gate.name == figure);
    let implied = figure.filter(|figure| !stated(figure)).map(|figure| Gate {
        change: false,
        name: figure.to_owned(),
        relation: Relation::Equal,
        bound: 0.0,
    });
    gates.iter().cloned().chain(implied).collect()
}

/// What a gate on a change begins with.
const CHANGE: &str = "change.";

/// Refuses gates on figures that no run has, before anything is run. `baseline`: whether there is one
/// to have changed from.
pub(crate) fn check(gates: &[Gate], known: &[&str], baseline: bool) -> anyhow::Result<()> {
    for gate in gates {
        anyhow::ensure!(
            known.contains(&gate.name.as_str()),
            "--gate {gate}: there is no figure {}; there are\n{}",
            gate.name,
            in_lines(known)
        );
        anyhow::ensure!(
            baseline || !gate.change,
            "--gate {gate}: a change needs a baseline; name it with --compare"
        );
    }
    Ok(())
}

/// Why gates are shut, each in a line. `changes` is what each figure is by that of the baseline; `late`
/// is why the latency with this name may not be judged, if so: no verdict is not a good one.
pub(crate) fn judge(
    gates: &[Gate],
    figures: &Named,
    changes: Option<&Named>,
    late: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let none = Named::new();
    let shut = gates.iter().filter_map(|gate| {
        if gate.is_on_latency()
            && let Some(why) = late(&gate.name)
        {
            return Some(format!("{gate}: no verdict: {why}"));
        }
        let of = if gate.change {
            changes.unwrap_or(&none)
        } else {
            figures
        };
        gate.shut(of)
    });
    shut.collect()
}

/// Names in lines of a terminal's width.
fn in_lines(names: &[&str]) -> String {
    let mut lines = String::new();
    let mut width = 0;
    for name in names {
        if width + name.len() > 90 {
            lines.push('\n');
            width = 0;
        }
        // Writing to a string cannot fail.
        let _written = write!(lines, "{}{name}", if width == 0 { "  " } else { " " });
        width += name.len() + 1;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(gate: &str, expected: &str) {
        let figures = Named::from([("failures", 0.0), ("p99_ratio", 1.2)]);
        let got = match gate.parse::<Gate>() {
            Ok(gate) => gate.shut(&figures).unwrap_or_else(|| "open".into()),
            Err(error) => error,
        };
        assert_eq!(got, expected, "for {gate:?}");
    }

    #[test]
    fn gates_open_and_shut() {
        check("failures=0", "open");
        check("failures = 0", "open");
        check("p99_ratio<=1.25", "open");
        check("p99_ratio<=1.1", "p99_ratio<=1.1: it is 1.200");
        check("p99_ratio>1", "open");
        check("p99_ratio<1.2", "p99_ratio<1.2: it is 1.200");
        check("p99_ratio>=1.3", "p99_ratio>=1.3: it is 1.200");
    }

    #[test]
    fn gates_on_latency_are_known() {
        let on_latency = |gate: &str| gate.parse::<Gate>().unwrap().is_on_latency();
        assert!(on_latency("p99_ratio<=1.25") && on_latency("first_credential_p99_ms<=25"));
        assert!(on_latency("p99_ratio_high<=1.5") && !on_latency("cpu_ratio_high<=1.5"));
        assert!(!on_latency("failures=0") && !on_latency("cpu_ratio<=1.2"));
        assert!(!on_latency("first_credential_min_ms<=2"));
        assert!(!on_latency("agent_cpu_per_request_us<=90"));
    }

    #[test]
    fn gates_on_changes_look_at_changes() {
        let gates = ["change.failures<=1.1", "failures=0"].map(|gate| gate.parse().unwrap());
        let figures = Named::from([("failures", 0.0)]);
        let changes = Named::from([("failures", 2.0)]);
        assert_eq!(
            judge(&gates, &figures, Some(&changes), |_| None),
            ["change.failures<=1.1: it is 2.000"]
        );
        assert_eq!(judge(&gates, &figures, None, |_| None).len(), 1);
    }

    #[test]
    fn what_must_never_be_is_a_gate_unless_another_is_stated() {
        let gates = |stated: &[&str]| {
            let stated: Vec<Gate> = stated.iter().map(|gate| gate.parse().unwrap()).collect();
            let all = with_none_of(&stated, Some("failures"));
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(gates(&[]), ["failures=0"]);
        assert_eq!(gates(&["requests>1"]), ["requests>1", "failures=0"]);
        assert_eq!(gates(&["failures<=5"]), ["failures<=5"]);
        let change = "change.failures<=2";
        assert_eq!(gates(&[change]), [change, "failures=0"]);
        assert!(with_none_of(&[], None).is_empty());
    }

    #[test]
    fn a_gate_on_nothing_is_refused_and_told_what_there_is() {
        let refuse = |gate: &str, baseline| {
            let gates = [gate.parse().unwrap()];
            let known = ["failures", "p99_ratio"];
            super::check(&gates, &known, baseline).map_err(|error| error.to_string())
        };
        assert_eq!(refuse("p99_ratio<=1", false), Ok(()));
        assert_eq!(refuse("change.p99_ratio<=1", true), Ok(()));
        assert_eq!(
            refuse("p99ratio<=1", false).unwrap_err(),
            "--gate p99ratio<=1: there is no figure p99ratio; there are\n  failures p99_ratio"
        );
        assert!(
            refuse("change.p99_ratio<=1", false)
                .unwrap_err()
                .contains("--compare")
        );
    }

    #[test]
    fn a_gate_that_cannot_be_judged_is_shut_or_refused() {
        check("p50=1", "p50=1: it was not measured in this run");
        check(
            "failures",
            "a gate is a figure, one of <= >= < > =, and a number",
        );
        check(
            "failures=none",
            "the bound of the gate: invalid float literal",
        );
        check("failures<=inf", "the bound of a gate is a finite number");
    }
}
