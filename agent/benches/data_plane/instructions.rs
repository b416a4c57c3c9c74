//! Instructions of one answer, by callgrind: exact, and the same on a busy machine.
//!
//! The difference between 1,000 and 3,000 answers, so that starting up does not count. What libraries do
//! (httparse; ring and base64 for session tokens) is counted on its own, over the same bytes, and taken
//! away: what is left is ours, with the copying of the answer. By function, without a table:
//!
//! ```sh
//! valgrind --tool=callgrind BENCH count answer credentials 1000 && callgrind_annotate callgrind.out.*
//! ```

use std::io;
use std::process::{Command, ExitCode};

use crate::answers::KINDS;

/// The budget of design section 8 for our own part.
const OWN_MAX: u64 = 1_500;
const FEW: u64 = 1_000;
const MANY: u64 = 3_000;

pub(crate) fn report() -> ExitCode {
    match table() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("instructions cannot be counted: valgrind does not run: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether the kinds that there is a budget for are within it.
fn table() -> io::Result<bool> {
    println!(
        "{:16} {:>8} {:>10} {:>8} {:>8} {:>8}",
        "request", "all", "httparse", "ring", "base64", "own"
    );
    let mut within = true;
    for kind in KINDS {
        let all = each("answer", kind)?;
        let [httparse, ring, base64] = [
            each("httparse", kind)?,
            each("ring", kind)?,
            each("base64", kind)?,
        ];
        let own = all.saturating_sub(httparse + ring + base64);
        // The budget is for parsing, routing, looking up and choosing; the others make, check or
        // decode something besides.
        let over = matches!(kind, "list" | "credentials") && own > OWN_MAX;
        within &= !over;
        let verdict = if over { "  over the budget" } else { "" };
        println!("{kind:16} {all:>8} {httparse:>10} {ring:>8} {base64:>8} {own:>8}{verdict}");
    }
    println!("budget for our own part: {OWN_MAX}");
    Ok(within)
}

fn each(what: &str, kind: &str) -> io::Result<u64> {
    let (few, many) = (total(what, kind, FEW)?, total(what, kind, MANY)?);
    Ok(many.saturating_sub(few) / (MANY - FEW))
}

/// Runs this program once more, under callgrind.
fn total(what: &str, kind: &str, times: u64) -> io::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["count", what, kind, &times.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines()
        .find_map(|line| line.split("Collected : ").nth(1)?.trim().parse().ok())
        .ok_or_else(|| io::Error::other(text.into_owned()))
}
