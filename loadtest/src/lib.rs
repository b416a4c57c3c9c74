//! kiam under load: the whole system on one machine, in one process tree.
mod child;
mod clock;
mod dialogue;
mod load;
mod measure;
mod null;
mod population;
mod proc_stats;

/// x
pub fn run(_args: impl Iterator<Item = std::ffi::OsString>) -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
