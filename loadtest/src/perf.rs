//! `kiam-loadtest report`: the standard series of runs, and the documents made of it.
//!
//! Everything that was measured is in one [`Record`], which can be kept; the pages and plots are made
//! of it alone, so that a changed sentence or a new plot does not need a new run. Nobody edits the
//! pages by hand: their prose is in the templates beside this file.

mod bench;
mod fill;
mod machine;
mod memory;
mod page;
mod plots;
mod record;
mod rows;
mod series;
mod svg;
mod tables;
mod unit;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use record::Record;

use crate::progress::Progress;

/// Takes the standard series of runs and writes docs/perf.md, its plots, and the table in README.md.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Perf {
    /// The root of the repository, where docs/ and README.md are; the directory this is called in if
    /// not said. Pages of --quick runs go only where they are told to.
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
    /// Short runs of small clusters: whether it works, not what it costs. About a minute instead of
    /// twenty. Needs --into, because its pages would replace those that say something.
    #[arg(long, requires = "into")]
    quick: bool,
    /// Only these runs of the series; may be given several times. The others keep what --record holds.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Runs nothing: makes the pages of a record that --record wrote earlier.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "only", "record"])]
    from: Option<PathBuf>,
    /// Keeps everything that was measured in this file, as JSON. It is written after each run, and runs
    /// that it holds already are not taken again.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// The built benchmark of the data plane (`cargo bench --bench data_plane --no-run` says where it
    /// is): its figures, and instructions for each request if valgrind is installed.
    #[arg(long, value_name = "PROGRAM")]
    bench: Option<PathBuf>,
    /// Another agent to measure beside this one, as in `run`: http://IP:PORT.
    #[arg(long, value_name = "URL", requires = "agent_command")]
    agent_url: Option<String>,
    /// The shell command that starts it, as in `run`.
    #[arg(long, value_name = "COMMAND", requires = "agent_url")]
    agent_command: Option<String>,
    /// What it is called on the page.
    #[arg(long, value_name = "NAME", default_value = "the other agent")]
    agent_name: String,
}

impl Perf {
    /// Runs the series and writes the pages.
    pub(crate) fn run(&self, progress: &Progress) -> anyhow::Result<()> {
        let record = match &self.from {
            Some(path) => Record::read(path)?,
            None => self.take(progress)?,
        };
        self.write(&record, self.root(record.quick)?, progress)
    }

    /// Where the pages go.
    fn root(&self, quick: bool) -> anyhow::Result<&Path> {
        match &self.into {
            Some(into) => Ok(into),
            None if quick => anyhow::bail!(
                "--from: the record is of --quick runs; say with --into which pages they may replace"
            ),
            None => Ok(Path::new(".")),
        }
    }

    fn take(&self, progress: &Progress) -> anyhow::Result<Record> {
        let series = self.series()?;
        let mut record = match &self.record {
            Some(path) if path.exists() => Record::read(path)?,
            _ => Record::new(self.quick),
        };
        anyhow::ensure!(
            record.quick == self.quick,
            "--record holds {} runs and {} were asked for: name another file",
            if record.quick { "quick" } else { "full" },
            if self.quick { "quick" } else { "full" },
        );
        if let Some(program) = &self.bench {
            progress.step("the benchmark of the data plane");
            record.bench = Some(bench::take(program)?);
        }
        let count = series.len();
        for (number, entry) in series.iter().enumerate() {
            let asked_for = self.only.contains(&entry.name.to_owned());
            if record.runs.contains_key(entry.name) && !asked_for {
                continue;
            }
            progress.step(&format!(
                "[{} of {count}] kiam-loadtest {}",
                number + 1,
                entry.words.join(" ")
            ));
            let taken = entry
                .take(progress)
                .with_context(|| format!("the run named {}", entry.name))?;
            record.runs.insert(entry.name.to_owned(), taken);
            if let Some(path) = &self.record {
                record.write(path)?;
            }
        }
        Ok(record)
    }

    fn series(&self) -> anyhow::Result<Vec<series::Entry>> {
        let other = self.agent_url.as_deref().zip(self.agent_command.as_deref());
        let all = series::standard(self.quick, other);
        for name in &self.only {
            anyhow::ensure!(
                all.iter().any(|entry| entry.name == name),
                "--only {name}: there are {}",
                all.iter()
                    .map(|entry| entry.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        let wanted = |entry: &series::Entry| {
            self.only.is_empty() || self.only.iter().any(|name| name == entry.name)
        };
        Ok(all.into_iter().filter(wanted).collect())
    }

    fn write(&self, record: &Record, root: &Path, progress: &Progress) -> anyhow::Result<()> {
        let put = |name: &Path, text: &str| {
            let path = root.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)
                    .with_context(|| format!("cannot create {}", parent.display()))?;
            }
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        for (name, plot) in plots::all(record) {
            put(&Path::new("docs/perf").join(name), &plot)?;
        }
        put(
            Path::new("docs/perf.md"),
            &page::perf(record, &self.agent_name)?,
        )?;
        let readme = root.join("README.md");
        if let Ok(text) = std::fs::read_to_string(&readme) {
            put(Path::new("README.md"), &page::readme(record, &text)?)?;
        }
        progress.step(&format!(
            "wrote docs/perf.md, docs/perf/ and the table of README.md in {}",
            root.display()
        ));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Args, Command};

    fn perf(flags: &[&str]) -> Option<Perf> {
        let words = ["kiam-loadtest", "report"].into_iter();
        let args = Args::try_parse_from(words.chain(flags.iter().copied())).ok()?;
        match args.command {
            Some(Command::Report(perf)) => Some(*perf),
            _ => None,
        }
    }

    #[test]
    fn quick_figures_replace_only_the_pages_they_are_told_to() {
        assert!(perf(&["--quick"]).is_none());
        assert!(perf(&["--quick", "--into=pages"]).is_some());
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("perf.json");
        let from = format!("--from={}", record.display());
        Record::new(true).write(&record).unwrap();
        let refused = perf(&[&from]).unwrap().run(&Progress::new());
        assert!(refused.unwrap_err().to_string().contains("--into"));
        let into = format!("--into={}", dir.path().display());
        perf(&[&from, &into])
            .unwrap()
            .run(&Progress::new())
            .unwrap();
        assert!(dir.path().join("docs/perf.md").exists());
        // One of whole runs goes where it always did.
        assert_eq!(perf(&[]).unwrap().root(false).unwrap(), Path::new("."));
    }
}
