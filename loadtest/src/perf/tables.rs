//! The tables of the page. A figure that misses its budget is bold; what was not measured is a dash.

use super::memory::{self, Model};
use super::record::Record;
use super::rows::{AGAINST_NULL, BESIDE, CHURN, FAULTS, Row, SCALE, STRESS};
use super::series::{NODE_SIZES, SIZES};
use super::unit::{Unit, thousands};
use crate::report::push;

/// A table with a column for each run that was taken, and the budgets if any row has one.
fn by_run(record: &Record, runs: &[(&str, String)], rows: &[Row]) -> String {
    let runs: Vec<_> = runs
        .iter()
        .filter(|(run, _)| record.runs.contains_key(*run))
        .collect();
    let budgets = rows.iter().any(|row| row.3.is_some());
    let heads = runs
        .iter()
        .map(|(run, title)| format!(" {title}{} |", late(record, run)));
    let heads: String = heads.collect();
    let mut table = format!(
        "| |{heads}{}\n|---|",
        if budgets { " budget |" } else { "" }
    );
    table.push_str(&"---:|".repeat(runs.len() + usize::from(budgets)));
    for Row(name, figure, unit, budget) in rows {
        let cells = runs.iter().map(|(run, _)| {
            let value = cell(record.figure(run, figure), *unit, *budget);
            format!(" {value}{} |", spread(record, run, figure, *unit))
        });
        let cells: String = cells.collect();
        push(&mut table, format_args!("\n| {name} |{cells}"));
        if budgets {
            let budget = budget.map_or("–".into(), |most| format!("≤ {}", unit.text(most)));
            push(&mut table, format_args!(" {budget} |"));
        }
    }
    explained(table)
}

/// Whether the generator was late in a run, so that it says nothing about latency.
fn late(record: &Record, run: &str) -> &'static str {
    let run = record.runs.get(run);
    if run.is_some_and(|run| run.no_verdict.is_some()) {
        " †"
    } else {
        ""
    }
}

/// What the mark of a late run means, below a table that has one.
fn explained(mut table: String) -> String {
    if table.contains('†') {
        table.push_str(
            "\n\n† The generator was late in this run, so its latencies are the machine's and not the program's.",
        );
    }
    table
}

/// The lowest and the highest of the rounds, behind what is the median of several.
fn spread(record: &Record, run: &str, figure: &str, unit: Unit) -> String {
    let of = |end: &str| {
        record
            .figure(run, &format!("{figure}_{end}"))
            .map(|value| unit.text(value))
    };
    let ends = of("low").zip(of("high"));
    // Of one round both are the median.
    let ends = ends.filter(|(low, high)| low != high);
    ends.map_or_else(String::new, |(low, high)| format!(" ({low}–{high})"))
}

fn cell(value: Option<f64>, unit: Unit, budget: Option<f64>) -> String {
    match (value, budget) {
        (None, _) => "–".into(),
        // Judged as it is shown: 1.2049 is 1.20.
        (Some(value), Some(most)) if value > most && unit.text(value) != unit.text(most) => {
            format!("**{}**", unit.text(value))
        }
        (Some(value), _) => unit.text(value),
    }
}

/// The table with this name.
pub(crate) fn named(record: &Record, name: &str, other: &str) -> Option<String> {
    Some(match name {
        "against-null" => against_null(record),
        "stress" => stress(record),
        "churn" => churn(record),
        "node-sizes" => node_sizes(record),
        "scale" => scale(record),
        "faults" => faults(record),
        "other" => beside(record, other),
        "cost" => cost(record),
        "instructions" => instructions(record),
        "readme" => readme(record),
        "commands" => commands(record),
        _ => return None,
    })
}

fn against_null(record: &Record) -> String {
    let runs = [
        ("quiet500", "500/s io_uring"),
        ("quiet500_epoll", "500/s epoll"),
        ("quiet2000", "2,000/s io_uring"),
        ("quiet2000_epoll", "2,000/s epoll"),
        ("churn500", "500/s, churn"),
        ("keepalive", "kept connections"),
    ];
    by_run(
        record,
        &runs.map(|(run, title)| (run, title.to_owned())),
        &AGAINST_NULL,
    )
}

fn stress(record: &Record) -> String {
    let mut table = String::from(
        "| | p50 | p99 | p99.9 | p99 by the quiet slices of the run | budget |\n|---|---:|---:|---:|---:|---:|",
    );
    for (title, run, kind, budget) in STRESS {
        let us = |share: &str| {
            let value = record.figure(run, &format!("{kind}request_{share}_us"));
            cell(value, Unit::Micros, None)
        };
        let name = format!("{kind}p99_ratio");
        let ratio = if kind.is_empty() {
            cell(None, Unit::Ratio, None)
        } else {
            cell(record.figure(run, &name), Unit::Ratio, budget)
                + &spread(record, run, &name, Unit::Ratio)
        };
        push(
            &mut table,
            format_args!(
                "\n| {title}{} | {} | {} | {} | {} | {} |",
                late(record, run),
                us("p50"),
                us("p99"),
                us("p999"),
                ratio,
                budget.map_or("–".into(), |most| format!("≤ {most:.2}"))
            ),
        );
    }
    explained(table)
}

fn churn(record: &Record) -> String {
    let runs = [("churn500", "10 pods/s come and go".to_owned())];
    by_run(record, &runs, &CHURN)
}

fn node_sizes(record: &Record) -> String {
    let runs = NODE_SIZES.map(|(run, pods)| (run, format!("{pods} pods")));
    let rows = [Row(
        "agent memory",
        "agent_rss_mib",
        Unit::Mebibytes,
        Some(24.0),
    )];
    by_run(record, &runs, &rows)
}

fn scale(record: &Record) -> String {
    let runs = SIZES.map(|(run, nodes, pods, _)| {
        let (nodes, pods) = (thousands(nodes.into()), thousands(pods.into()));
        (run, format!("{nodes} nodes, {pods} pods"))
    });
    by_run(record, &runs, &SCALE)
}

fn faults(record: &Record) -> String {
    let runs = [("faults", "500 pods/min, faults in turn".to_owned())];
    by_run(record, &runs, &FAULTS)
}

fn beside(record: &Record, other: &str) -> String {
    let late = late(record, "other");
    let mut table = format!("| | kiam{late} | {other}{late} | ratio |\n|---|---:|---:|---:|");
    for (name, ours, theirs, unit) in BESIDE {
        let [ours, theirs] = [ours, theirs].map(|figure| record.figure("other", figure));
        let ratio = ours.zip(theirs).filter(|(ours, _)| *ours > 0.0);
        push(
            &mut table,
            format_args!(
                "\n| {name} | {} | {} | {} |",
                cell(ours, unit, None),
                cell(theirs, unit, None),
                ratio.map_or("–".into(), |(ours, theirs)| format!(
                    "{:.1} ×",
                    theirs / ours
                ))
            ),
        );
    }
    explained(table)
}

fn cost(record: &Record) -> String {
    let figure = |run, figure, unit| cell(record.figure(run, figure), unit, None);
    let model = memory::model(record);
    let kib = |of: fn(Model) -> f64| cell(model.map(of), Unit::Kibibytes, None);
    let rows = [
        (
            "a request of a new connection, agent CPU",
            figure("quiet500", "agent_cpu_per_request_us", Unit::Micros),
            "requests",
        ),
        (
            "a request on a kept connection, agent CPU",
            figure("keepalive", "agent_cpu_per_request_us", Unit::Micros),
            "requests",
        ),
        (
            "a pod of the node, agent memory",
            agent_kib_per_pod(record),
            "pods on the node",
        ),
        (
            "a pod of the cluster, server memory",
            kib(|model| model.pod_kib),
            "pods",
        ),
        (
            "a node, server memory",
            kib(|model| model.node_kib),
            "connected nodes",
        ),
        (
            "an empty server, memory",
            kib(|model| model.empty_kib),
            "nothing",
        ),
        (
            "a pod that is replaced, server CPU",
            figure("scale5000", "cpu_per_change_us", Unit::Micros),
            "changes",
        ),
        (
            "a pod that is replaced, bytes to its node",
            figure("scale5000", "bytes_per_change", Unit::Bytes),
            "changes",
        ),
        (
            "a refreshed session, bytes to each node that has it",
            figure("refresh", "bytes_per_refresh", Unit::Bytes),
            "sessions on the node",
        ),
        (
            "a session, STS calls each half of its life",
            "1".to_owned(),
            "distinct sessions, not pods or nodes",
        ),
    ];
    let mut table = String::from("| | cost | grows with |\n|---|---:|---|");
    for (what, cost, grows) in rows {
        push(&mut table, format_args!("\n| {what} | {cost} | {grows} |"));
    }
    table
}

/// The slope between the smallest and the largest node that was run.
fn agent_kib_per_pod(record: &Record) -> String {
    let measured = NODE_SIZES
        .iter()
        .filter_map(|(run, pods)| Some((f64::from(*pods), record.figure(run, "agent_rss_mib")?)));
    let measured: Vec<_> = measured.collect();
    match (measured.first(), measured.last()) {
        (Some(few), Some(many)) if many.0 > few.0 => {
            Unit::Kibibytes.text((many.1 - few.1) * 1024.0 / (many.0 - few.0))
        }
        _ => "–".into(),
    }
}

fn instructions(record: &Record) -> String {
    let mut table = String::from("| request | instructions in our own code |\n|---|---:|");
    for (kind, count) in record.bench.iter().flat_map(|bench| &bench.instructions) {
        push(
            &mut table,
            format_args!("\n| {kind} | {} |", thousands(*count)),
        );
    }
    table
}

fn readme(record: &Record) -> String {
    let figure = |run, figure, unit| cell(record.figure(run, figure), unit, None);
    let rows = [
        (
            "a request, p50 and p99 by those of the barest server there can be",
            format!(
                "{} and {}",
                figure("quiet500", "p50_ratio", Unit::Ratio),
                figure("quiet500", "p99_ratio", Unit::Ratio)
            ),
        ),
        (
            "first credentials of a new pod, p50 and p99",
            format!(
                "{} and {}",
                figure("churn500", "first_credential_p50_ms", Unit::Millis),
                figure("churn500", "first_credential_p99_ms", Unit::Millis)
            ),
        ),
        (
            "memory of an agent with 250 pods",
            figure("pods250", "agent_rss_mib", Unit::Mebibytes),
        ),
        (
            "memory of a server with 5,000 nodes and 150,000 pods",
            figure("scale5000", "server_rss_mib", Unit::Mebibytes),
        ),
        (
            "its cold start, until every node is served",
            figure("scale5000", "cold_start_s", Unit::Seconds),
        ),
        (
            "failed requests of granted pods while the server is killed, STS throttles and the API restarts",
            figure("faults", "failures_of_known", Unit::Count),
        ),
    ];
    let mut table = String::from("| | |\n|---|---:|");
    for (what, value) in rows {
        push(&mut table, format_args!("\n| {what} | {value} |"));
    }
    table
}

fn commands(record: &Record) -> String {
    let commands = record.runs.values().map(|run| run.command.as_str());
    let mut commands: Vec<_> = commands.collect();
    commands.sort_unstable();
    commands.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_has_its_ends_beside_it() {
        let mut record = Record::new(true);
        let taken = crate::perf::record::Taken {
            figures: [
                ("p99_ratio", 1.41),
                ("p99_ratio_low", 0.9),
                ("p99_ratio_high", 3.2),
                ("p50_ratio", 1.0),
                ("cpu_ratio", 1.3),
                ("cpu_ratio_low", 1.3),
                ("cpu_ratio_high", 1.3),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
            ..Default::default()
        };
        record.runs.insert("quiet500".into(), taken);
        let table = against_null(&record);
        assert!(table.contains("| **1.41** (0.90–3.20) |"), "{table}");
        // A record of a single value shows that alone, and so does a run of one round.
        assert!(table.contains("| 1.00 |"), "{table}");
        assert!(table.contains("| **1.30** |"), "{table}");
    }

    #[test]
    fn a_late_run_is_marked_in_every_table_of_latencies() {
        let mut record = Record::new(true);
        for run in ["quiet500", "hogs_rr", "other", "scale500"] {
            let taken = crate::perf::record::Taken {
                no_verdict: Some("late".into()),
                ..Default::default()
            };
            record.runs.insert(run.into(), taken);
        }
        for table in [
            against_null(&record),
            stress(&record),
            beside(&record, "another"),
            scale(&record),
        ] {
            assert!(table.contains(" †"), "{table}");
            assert!(table.contains("\n\n† The generator was late"), "{table}");
        }
    }

    #[test]
    fn what_misses_its_budget_is_bold() {
        let cell = |value| cell(value, Unit::Ratio, Some(1.2));
        assert_eq!(cell(Some(1.41)), "**1.41**");
        assert_eq!(cell(Some(1.204)), "1.20");
        assert_eq!(cell(None), "–");
    }
}
