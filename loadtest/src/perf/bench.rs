//! The benchmark of the data plane by itself: its own words, and instructions for each request.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::record::Bench;

/// Kinds of request that the benchmark counts, with their names on the page.
const KINDS: [(&str, &str); 3] = [
    ("list", "role list"),
    ("credentials", "credentials"),
    ("token", "token"),
];
/// Requests of the shorter and of the longer count; what both spend on starting cancels out.
const COUNTS: [u32; 2] = [1_000, 2_000];

/// Runs it.
pub(crate) fn take(program: &Path) -> anyhow::Result<Bench> {
    let output = Command::new(program)
        .arg("--bench")
        .output()
        .with_context(|| format!("--bench: cannot run {}", program.display()))?;
    anyhow::ensure!(
        output.status.success(),
        "--bench: {} ended with {}",
        program.display(),
        output.status
    );
    let mut instructions = BTreeMap::new();
    for (kind, name) in KINDS {
        if let Some(count) = instructions_each(program, kind) {
            instructions.insert(name.to_owned(), count);
        }
    }
    Ok(Bench {
        text: String::from_utf8_lossy(&output.stdout).into_owned(),
        instructions,
    })
}

/// Instructions for one request; `None` without valgrind, or when the benchmark has no such kind.
fn instructions_each(program: &Path, kind: &str) -> Option<f64> {
    let [fewer, more] = COUNTS;
    let count = |times: u32| -> Option<f64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(program)
            .args(["count", kind, &times.to_string()])
            .output()
            .ok()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then(|| collected(&said))?
    };
    Some((count(more)? - count(fewer)?) / f64::from(more - fewer))
}

/// The sum in callgrind's last words: `Collected : 123456`.
fn collected(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callgrinds_last_words_are_read() {
        let said = "==7== Events    : Ir\n==7== Collected : 2900123\n==7==\n";
        assert_eq!(collected(said), Some(2_900_123.0));
        assert_eq!(collected("nothing"), None);
    }
}
