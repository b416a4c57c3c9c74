//! What became of each figure since an earlier run.

use crate::report::push;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;

use crate::gate::Named;

/// An earlier run's figures, as `--json` wrote them.
#[derive(Debug, Clone)]
pub(crate) struct Baseline(BTreeMap<String, f64>);

impl Baseline {
    /// Reads them.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("--compare: cannot read {}", path.display()))?;
        let figures = serde_json::from_str(&text)
            .with_context(|| format!("--compare: {} is not what --json writes", path.display()))?;
        Ok(Self(figures))
    }

    /// Each figure by its baseline. What was nothing and is something has grown without measure.
    pub(crate) fn changes(&self, figures: &Named) -> Named {
        let changes = figures.iter().filter_map(|(name, now)| {
            let then = *self.0.get(*name)?;
            let same = (now - then).abs() < f64::EPSILON;
            Some((*name, if same { 1.0 } else { now / then }))
        });
        changes.collect()
    }

    /// A table of both and the change.
    pub(crate) fn table(&self, figures: &Named) -> String {
        let changes = self.changes(figures);
        let mut table = format!("{:<32}{:>14}{:>14}{:>10}", "", "baseline", "now", "change");
        for (name, now) in figures {
            let then = self.0.get(*name);
            let then = then.map_or_else(|| "-".into(), |then| format!("{then:.3}"));
            let change = changes.get(name);
            let change = change.map_or_else(|| "-".into(), |change| format!("{change:.2} ×"));
            push(
                &mut table,
                format_args!("\n{name:<32}{then:>14}{now:>14.3}{change:>10}"),
            );
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline() -> Baseline {
        let figures = [("failures", 0.0), ("p99_ratio", 1.0), ("gone", 1.0)];
        Baseline(figures.map(|(name, value)| (name.to_owned(), value)).into())
    }

    #[test]
    fn changes_are_ratios() {
        let now = Named::from([("failures", 0.0), ("p99_ratio", 1.5), ("new", 1.0)]);
        let expected = Named::from([("failures", 1.0), ("p99_ratio", 1.5)]);
        assert_eq!(baseline().changes(&now), expected);
        let worse = baseline().changes(&Named::from([("failures", 2.0)]));
        assert!(worse["failures"].is_infinite());
    }

    #[test]
    fn the_table_has_every_figure_of_now() {
        let table = baseline().table(&Named::from([("new", 1.0), ("p99_ratio", 1.5)]));
        let words: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(words[0], ["baseline", "now", "change"]);
        assert_eq!(words[1], ["new", "-", "1.000", "-"]);
        assert_eq!(words[2], ["p99_ratio", "1.000", "1.500", "1.50", "×"]);
    }
}
