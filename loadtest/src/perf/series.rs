//! The standard series: command lines of this program, run as they are printed on the page.

use clap::Parser as _;

use super::record::Taken;
use crate::cli::{Args, Command};
use crate::progress::Progress;

/// One run of the series.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// What it is called in the record.
    pub name: &'static str,
    /// What follows `kiam-loadtest`.
    pub words: Vec<String>,
}

/// Sizes of the simulated cluster, with the names of their runs: nodes, pods, roles. The last two, with
/// few pods or few nodes, tell a pod's memory from a connection's.
pub(crate) const SIZES: [(&str, u32, u32, u32); 6] = [
    ("scale500", 500, 15_000, 200),
    ("scale1000", 1_000, 30_000, 400),
    ("scale2500", 2_500, 75_000, 1_000),
    ("scale5000", 5_000, 150_000, 2_000),
    ("scale_nodes", 5_000, 5_000, 200),
    ("scale_pods", 500, 150_000, 200),
];

/// Pods on the agent's node, with the names of the runs.
pub(crate) const NODE_SIZES: [(&str, u32); 3] =
    [("pods110", 110), ("pods250", 250), ("pods1000", 1_000)];

/// The whole series. `other` is another agent's URL and the command that starts it.
pub(crate) fn standard(quick: bool, other: Option<(&str, &str)>) -> Vec<Entry> {
    let mut all = latency(quick);
    all.extend(node_sizes(quick));
    all.push(faults(quick));
    if let Some((url, command)) = other {
        let words = format!(
            "run {} --dialogues-per-second 200 --no-null --dialogue v1 --agent-url {url}",
            long(quick)
        );
        let mut entry = entry("other", &words);
        entry
            .words
            .extend(["--agent-command".into(), command.into()]);
        all.push(entry);
    }
    all.extend(scales(quick));
    all
}

fn entry(name: &'static str, words: &str) -> Entry {
    Entry {
        name,
        words: words.split_whitespace().map(str::to_owned).collect(),
    }
}

/// Rounds and seconds of a run that is about latency.
fn long(quick: bool) -> &'static str {
    if quick {
        "--rounds 1 --seconds 1"
    } else {
        "--rounds 5 --seconds 5"
    }
}

fn latency(quick: bool) -> Vec<Entry> {
    let run = |name, flags: &str| entry(name, &format!("run {} {flags}", long(quick)));
    let quiet = "--pods-per-second 0";
    let alone = "--pods-per-second 0 --no-null";
    let (uring, epoll) = (
        "--agent-flag=--driver=io_uring",
        "--agent-flag=--driver=epoll",
    );
    let rr = "--agent-flag=--scheduling=rr";
    vec![
        run(
            "quiet500",
            &format!("{quiet} --dialogues-per-second 500 {uring}"),
        ),
        run(
            "quiet500_epoll",
            &format!("{quiet} --dialogues-per-second 500 {epoll}"),
        ),
        run(
            "quiet2000",
            &format!("{quiet} --dialogues-per-second 2000 {uring}"),
        ),
        run(
            "quiet2000_epoll",
            &format!("{quiet} --dialogues-per-second 2000 {epoll}"),
        ),
        run(
            "keepalive",
            &format!("{quiet} --dialogues-per-second 100 --dialogue keep-alive"),
        ),
        run("churn500", "--pods 250 --dialogues-per-second 500"),
        run(
            "stirred500",
            &format!("{alone} --dialogues-per-second 500 --snapshots-per-second 50"),
        ),
        run(
            "hogs_other",
            &format!("{alone} --dialogues-per-second 300 --hogs 3"),
        ),
        run(
            "hogs_rr",
            &format!("{alone} --dialogues-per-second 300 --hogs 3 {rr}"),
        ),
    ]
}

fn node_sizes(quick: bool) -> Vec<Entry> {
    let sizes = if quick {
        &NODE_SIZES[..1]
    } else {
        &NODE_SIZES[..]
    };
    let run = |(name, pods): &(&'static str, u32)| {
        let flags = "--rounds 1 --seconds 2 --no-null --pods-per-second 0";
        entry(name, &format!("run --pods {pods} {flags}"))
    };
    sizes.iter().map(run).collect()
}

/// Five hundred pods a minute come and go, and everything they depend on fails in turn.
fn faults(quick: bool) -> Entry {
    let (seconds, faults) = if quick {
        (
            10,
            "--fault server-killed@2+1 --fault sts-throttled@4+2 --fault api-down@7+2",
        )
    } else {
        (
            40,
            "--fault server-killed@5+4 --fault sts-throttled@14+8 --fault api-down@27+6",
        )
    };
    let load = "--no-null --rounds 1 --pods-per-second 8.34 --dialogues-per-second 100";
    let gate = "--gate failures_of_known=0";
    entry(
        "faults",
        &format!("run {load} --seconds {seconds} {faults} {gate}"),
    )
}

fn scales(quick: bool) -> Vec<Entry> {
    let load = "--changes-per-second 500 --seconds 10";
    let run = |(name, nodes, pods, roles): &(&'static str, u32, u32, u32)| {
        let size = format!("--nodes {nodes} --pods {pods} --roles {roles}");
        entry(name, &format!("scale {size} {load}"))
    };
    let refresh = "scale --nodes 100 --pods 3000 --roles 50 --changes-per-second 0 \
                   --sts-lifetime-seconds 20 --seconds 25";
    if quick {
        return vec![
            entry(
                "scale500",
                "scale --nodes 50 --pods 1500 --roles 20 --seconds 2",
            ),
            entry(
                "scale1000",
                "scale --nodes 100 --pods 3000 --roles 40 --seconds 2",
            ),
        ];
    }
    let sizes = SIZES.iter().map(run);
    sizes.chain([entry("refresh", refresh)]).collect()
}

impl Entry {
    /// The command that repeats it.
    pub(crate) fn command(&self) -> String {
        let quoted = self.words.iter().map(|word| {
            if word.contains([' ', '$', '"', ';', '&']) {
                format!("'{word}'")
            } else {
                word.clone()
            }
        });
        format!("kiam-loadtest {}", quoted.collect::<Vec<_>>().join(" "))
    }

    /// Runs it. Gates that are shut end it, a late generator does not: the page says so.
    pub(crate) fn take(&self, progress: &Progress) -> anyhow::Result<Taken> {
        let words = std::iter::once("kiam-loadtest").chain(self.words.iter().map(String::as_str));
        let taken = Taken {
            command: self.command(),
            ..Taken::default()
        };
        let own = |figures: crate::gate::Named| {
            let figures = figures.into_iter();
            figures
                .map(|(name, value)| (name.to_owned(), value))
                .collect()
        };
        let (figures, shut, taken) = match Args::try_parse_from(words)?.command {
            Some(Command::Run(run)) => {
                let outcome = run.run(progress)?;
                let curves = outcome.curves.into_iter();
                let taken = Taken {
                    curves: curves
                        .map(|(name, curve)| (name.to_owned(), curve))
                        .collect(),
                    no_verdict: outcome.no_verdict,
                    ..taken
                };
                (outcome.figures, outcome.shut, taken)
            }
            Some(Command::Scale(scale)) => {
                let outcome = scale.run(progress)?;
                let taken = Taken {
                    no_verdict: outcome.no_verdict,
                    ..taken
                };
                (outcome.figures, outcome.shut, taken)
            }
            _ => anyhow::bail!("the series is of `run` and `scale`"),
        };
        anyhow::ensure!(shut.is_empty(), "gates are shut: {}", shut.join("; "));
        Ok(Taken {
            figures: own(figures),
            ..taken
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_run_of_the_series_can_be_said() {
        for quick in [false, true] {
            let other = Some(("http://127.0.0.1:8181", "sh start"));
            let series = standard(quick, other);
            for entry in &series {
                let words = std::iter::once("kiam-loadtest".to_owned());
                let parsed = Args::try_parse_from(words.chain(entry.words.iter().cloned()));
                assert!(parsed.is_ok(), "{}: {:?}", entry.name, parsed.err());
            }
            let names: BTreeSet<_> = series.iter().map(|entry| entry.name).collect();
            assert_eq!(names.len(), series.len(), "each has a name of its own");
        }
    }

    #[test]
    fn commands_are_as_a_shell_takes_them() {
        let series = standard(true, Some(("http://127.0.0.1:8181", "sh start")));
        let other = series.iter().find(|entry| entry.name == "other").unwrap();
        assert!(other.command().ends_with("--agent-command 'sh start'"));
    }
}
