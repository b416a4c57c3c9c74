//! What `--json` writes.

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

/// Writes `what` to this file as JSON for people and scripts.
pub(crate) fn write(path: &Path, what: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(what)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
