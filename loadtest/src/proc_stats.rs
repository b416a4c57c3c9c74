//! What the kernel says a process used: CPU time to the nanosecond, resident memory, open files and
//! threads.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Reads one process's figures from /proc.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    root: PathBuf,
}

impl Process {
    /// The process with this id.
    pub(crate) fn new(pid: u32) -> Self {
        Self {
            root: PathBuf::from(format!("/proc/{pid}")),
        }
    }

    /// CPU time of all its threads that still run (`/proc/PID/task/*/schedstat`, first field, in
    /// nanoseconds). `stat` would count threads that ended as well, but only in ticks of 10 ms.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let mut nanoseconds = 0_u64;
        for task in std::fs::read_dir(self.root.join("task"))? {
            // A thread may end between the listing and the reading.
            let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            let first = text
                .split_whitespace()
                .next()
                .and_then(|field| field.parse().ok());
            nanoseconds = nanoseconds.saturating_add(first.unwrap_or(0));
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Resident memory in bytes (`VmRSS`).
    pub(crate) fn resident_bytes(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(self.root.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib * 1024)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no VmRSS in status"))
    }

    /// Open file descriptors.
    pub(crate) fn open_files(&self) -> io::Result<u64> {
        self.count("fd")
    }

    /// Threads.
    pub(crate) fn threads(&self) -> io::Result<u64> {
        self.count("task")
    }

    fn count(&self, directory: &str) -> io::Result<u64> {
        let entries = std::fs::read_dir(self.root.join(directory))?.count();
        Ok(u64::try_from(entries).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_figures() {
        let process = Process::new(std::process::id());
        assert!(process.cpu().unwrap() > Duration::ZERO);
        assert!(process.resident_bytes().unwrap() > 1024 * 1024);
        // Standard input, output and error.
        assert!(process.open_files().unwrap() >= 3);
        assert!(process.threads().unwrap() >= 1);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(Process::new(u32::MAX).cpu().is_err());
    }
}
