//! The pages: templates filled in with figures, and nothing else.

use anyhow::Context as _;

use super::fill::fill;
use super::memory;
use super::record::Record;
use super::tables;
use super::unit::Unit;

/// docs/perf.md.
pub(crate) fn perf(record: &Record, other: &str) -> anyhow::Result<String> {
    let has = |name: &str| match name {
        "quick" => record.quick,
        "bench" => record.bench.is_some(),
        "instructions" => {
            let bench = record.bench.as_ref();
            bench.is_some_and(|bench| !bench.instructions.is_empty())
        }
        run => record.runs.contains_key(run),
    };
    fill(include_str!("template.md"), has, |words| {
        look_up(record, other, words)
    })
    .context("docs/perf.md")
}

/// Around the table in README.md.
const MARKS: [&str; 2] = [
    "<!-- figures: kiam-loadtest report -->",
    "<!-- /figures -->",
];

/// README.md with the table between its marks made anew; as it is when it has none.
pub(crate) fn readme(record: &Record, text: &str) -> anyhow::Result<String> {
    let [from, to] = MARKS;
    let Some((before, rest)) = text.split_once(from) else {
        return Ok(text.to_owned());
    };
    let (_old, after) = rest
        .split_once(to)
        .with_context(|| format!("README.md has {from} and no {to}"))?;
    let table = tables::named(record, "readme", "").unwrap_or_default();
    Ok(format!("{before}{from}\n{table}\n{to}{after}"))
}

fn look_up(record: &Record, other: &str, words: &str) -> Option<String> {
    let words: Vec<&str> = words.split(' ').collect();
    match words.as_slice() {
        ["date"] => Some(record.taken.clone()),
        ["machine"] => Some(record.machine.words()),
        ["rust"] => Some(env!("CARGO_PKG_RUST_VERSION").to_owned()),
        ["other"] => Some(other.to_owned()),
        ["bench"] => Some(record.bench.as_ref()?.text.trim_end().to_owned()),
        ["command", run] => Some(match record.runs.get(*run) {
            Some(run) => run.command.clone(),
            None => format!("# not run: {run}"),
        }),
        ["table", name] => tables::named(record, name, other),
        ["figure", run, figure, unit] => {
            let unit = Unit::named(unit)?;
            let value = record.figure(run, figure);
            Some(value.map_or_else(|| "–".into(), |value| unit.text(value)))
        }
        ["kib", which] => {
            let model = memory::model(record);
            let of = |model: memory::Model| match *which {
                "pod" => Some(model.pod_kib),
                "node" => Some(model.node_kib),
                _ => None,
            };
            Some(match model {
                Some(model) => Unit::Kibibytes.text(of(model)?),
                None => "–".into(),
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::record::{Bench, Taken};
    use crate::perf::series;

    /// A record in which every run of the series says 1 to everything.
    fn record(quick: bool, other: bool) -> Record {
        let mut record = Record::new(quick);
        let other = other.then_some(("http://127.0.0.1:1", "sh start"));
        for entry in series::standard(quick, other) {
            let taken = Taken {
                command: entry.command(),
                ..Taken::default()
            };
            record.runs.insert(entry.name.to_owned(), taken);
        }
        record
    }

    #[test]
    fn the_page_has_no_holes_whatever_was_measured() {
        for record in [
            record(false, true),
            record(false, false),
            record(true, false),
        ] {
            let page = perf(&record, "the other").unwrap();
            assert!(!page.contains("{{") && !page.contains("}}"));
            assert_eq!(
                page.contains("## Beside the other"),
                record.runs.contains_key("other")
            );
        }
        let empty = Record::new(true);
        perf(&empty, "").unwrap();
        let bench = Bench {
            text: "list 90ns".into(),
            instructions: [("list".to_owned(), 1_500.0)].into(),
        };
        let with_bench = Record {
            bench: Some(bench),
            ..empty
        };
        let page = perf(&with_bench, "").unwrap();
        assert!(page.contains("list 90ns") && page.contains("| list | 1,500 |"));
    }

    #[test]
    fn the_readme_changes_between_its_marks_alone() {
        let record = record(true, false);
        let [from, to] = MARKS;
        let text = format!("# kiam\n\n{from}\nyesterday\n{to}\n\nmore\n");
        let once = readme(&record, &text).unwrap();
        assert!(once.starts_with("# kiam\n\n") && once.ends_with("\n\nmore\n"));
        assert!(!once.contains("yesterday") && once.contains("| | |"));
        assert_eq!(readme(&record, &once).unwrap(), once);
        assert_eq!(readme(&record, "# none\n").unwrap(), "# none\n");
        assert!(readme(&record, from).is_err());
    }
}
