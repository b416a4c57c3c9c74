//! Conditions on named figures that decide the exit code: `failures=0`, `p99_ratio<=1.25`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A figure's name and value. Only figures that were measured are in the map.
pub(crate) type Named = BTreeMap<&'static str, f64>;

/// A condition on one figure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gate {
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
        Ok(Self {
            name: name.trim().to_owned(),
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
            "{}{}{}",
            self.name,
            word.map_or("?", |(word, _)| word),
            self.bound
        )
    }
}

impl Gate {
    /// Whether it judges how long something took, which a late generator cannot say.
    pub(crate) fn is_on_latency(&self) -> bool {
        ["p50_ratio", "p99_ratio"].contains(&self.name.as_str())
            || ["_us", "_ms"].iter().any(|unit| self.name.ends_with(unit))
    }

    /// Why this gate is shut; `None` when it is open. A figure that was not measured shuts it.
    pub(crate) fn shut(&self, figures: &Named) -> Option<String> {
        let Some(value) = figures.get(self.name.as_str()) else {
            let known: Vec<_> = figures.keys().copied().collect();
            return Some(format!(
                "{self}: no such figure; there are {}",
                known.join(", ")
            ));
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
        assert!(!on_latency("failures=0") && !on_latency("cpu_ratio<=1.2"));
    }

    #[test]
    fn a_gate_that_cannot_be_judged_is_shut_or_refused() {
        check(
            "p50=1",
            "p50=1: no such figure; there are failures, p99_ratio",
        );
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
