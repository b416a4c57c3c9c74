//! Which cores a process may use, so that the measured and the measuring do not share one.

use anyhow::Context as _;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Keeps every thread of a process on the first core this process may use.
pub(crate) fn to_first(pid: u32) -> anyhow::Result<()> {
    let (first, _) = split()?;
    set(pid, &first)
}

/// Keeps this thread on the first core.
pub(crate) fn this_thread_to_first() -> anyhow::Result<()> {
    let (first, _) = split()?;
    sched_setaffinity(None, &first).context("cannot choose this thread's core")
}

/// Keeps every thread of a process off the first core, if there is another.
pub(crate) fn off_first(pid: u32) -> anyhow::Result<()> {
    let (_, rest) = split()?;
    set(pid, &rest)
}

/// The first core of all online ones, and the others; with one core both are that.
fn split() -> anyhow::Result<(CpuSet, CpuSet)> {
    // Process 1's set is the machine's: this process may already have been kept off a core.
    let all = sched_getaffinity(Pid::from_raw(1)).or_else(|_denied| sched_getaffinity(None))?;
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU)
        .filter(|core| all.is_set(*core))
        .collect();
    let (first, rest) = cores.split_first().context("no core to run on")?;
    let of = |cores: &[usize]| {
        let mut set = CpuSet::new();
        for core in cores {
            set.set(*core);
        }
        set
    };
    Ok((
        of(&[*first]),
        of(if rest.is_empty() { &cores } else { rest }),
    ))
}

fn set(pid: u32, cores: &CpuSet) -> anyhow::Result<()> {
    // Affinity belongs to threads; those started later inherit it from the one that starts them.
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = task?.file_name();
        let thread = name
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw);
        let pinned = sched_setaffinity(thread, cores);
        pinned.with_context(|| format!("cannot choose the cores of process {pid}"))?;
    }
    Ok(())
}
