//! The benchmark of the data plane by itself: its own words, and instructions for each request.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::record::Bench;

/// Columns of the benchmark's table before the one that is our own part: all, and three libraries'.
const COLUMNS_BEFORE: usize = 4;

/// Runs it: times, and instructions where valgrind is installed.
pub(crate) fn take(program: &Path) -> anyhow::Result<Bench> {
    let run = |words: &[&str]| {
        let output = Command::new(program)
            .args(words)
            .output()
            .with_context(|| format!("--bench: cannot run {}", program.display()))?;
        Ok::<_, anyhow::Error>((
            output.status,
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ))
    };
    let (status, times) = run(&["--bench"])?;
    anyhow::ensure!(
        status.success(),
        "--bench: {} ended with {status}",
        program.display()
    );
    // It fails beyond its budget or without valgrind, and says so: that belongs on the page.
    let (_status, counts) = run(&["instructions"])?;
    Ok(Bench {
        instructions: own_parts(&counts),
        text: format!("{times}\n{counts}"),
    })
}

/// Of each request, the instructions in our own code.
fn own_parts(said: &str) -> BTreeMap<String, f64> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let kind = words.next()?.to_owned();
        let numbers: Vec<f64> = words.map_while(|word| word.parse().ok()).collect();
        Some((kind, *numbers.get(COLUMNS_BEFORE)?))
    };
    said.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_column_of_the_benchmarks_table_is_its_own_part() {
        let said = "request   all  httparse  ring  base64  own\n\
                    list      2204     1314     0       0  890\n\
                    credentials 2542 1343 0 0 1700  over the budget\n\
                    budget for our own part: 1500\n";
        let own = own_parts(said);
        assert_eq!(own.len(), 2);
        assert_eq!(own.get("list"), Some(&890.0));
        assert_eq!(own.get("credentials"), Some(&1_700.0));
        assert!(own_parts("instructions cannot be counted: no valgrind").is_empty());
    }
}
