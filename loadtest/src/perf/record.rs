//! Everything that was measured, in a file that can be kept.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use crate::clock;

/// What the series measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The day on which it was begun, as YYYY-MM-DD in UTC.
    pub taken: String,
    /// Whether the runs were short: good for seeing that it works, and not for judging.
    pub quick: bool,
    /// What it ran on.
    pub machine: Machine,
    /// By name.
    pub runs: BTreeMap<String, Taken>,
    /// The data plane by itself.
    pub bench: Option<Bench>,
}

/// One run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Taken {
    /// What repeats it.
    pub command: String,
    /// By the names that gates know.
    pub figures: BTreeMap<String, f64>,
    /// Distributions: latency in microseconds, and the share of all that did not exceed it.
    pub curves: BTreeMap<String, Vec<(f64, f64)>>,
    /// Why the generator had nothing to say about latency, if so.
    pub no_verdict: Option<String>,
}

/// What the benchmark of the data plane said.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bench {
    /// Its own words.
    pub text: String,
    /// Instructions for each request, by kind; empty where they could not be counted.
    pub instructions: BTreeMap<String, f64>,
}

impl Record {
    /// Nothing yet, on this machine, today.
    pub(crate) fn new(quick: bool) -> Self {
        Self {
            taken: clock::today(),
            quick,
            machine: Machine::read(),
            runs: BTreeMap::new(),
            bench: None,
        }
    }

    /// Reads one that was kept.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a record of a report", path.display()))
    }

    /// Keeps it.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A figure of a run, if both are there.
    pub(crate) fn figure(&self, run: &str, figure: &str) -> Option<f64> {
        self.runs.get(run)?.figures.get(figure).copied()
    }

    /// A distribution of a run, if both are there.
    pub(crate) fn curve(&self, run: &str, curve: &str) -> Option<&[(f64, f64)]> {
        Some(self.runs.get(run)?.curves.get(curve)?)
    }
}
