//! What the kernel says a process used: CPU time to the nanosecond, resident memory, open files and
//! threads.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::numbers::{float, ratio};

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

/// Time that one thread had a core, and time that it waited for one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Scheduled {
    /// On a core.
    pub ran: Duration,
    /// Ready, and not on a core.
    pub waited: Duration,
}

/// What this thread has had so far; nothing where the kernel does not say.
pub(crate) fn this_thread() -> Scheduled {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let mut fields = text.split_whitespace().map(|field| {
        let nanoseconds = field.parse().unwrap_or(0);
        Duration::from_nanos(nanoseconds)
    });
    Scheduled {
        ran: fields.next().unwrap_or_default(),
        waited: fields.next().unwrap_or_default(),
    }
}

/// What the machine's cores have done since it started, in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cores {
    all: u64,
    stolen: u64,
}

impl Cores {
    /// Until now; nothing where the kernel does not say.
    pub(crate) fn read() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// From the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal. What
    /// follows them is counted in user and nice already.
    fn parse(text: &str) -> Self {
        let line = text.lines().next().unwrap_or_default();
        let ticks = line.split_whitespace().skip(1).take(8);
        let ticks: Vec<u64> = ticks.map(|field| field.parse().unwrap_or(0)).collect();
        Self {
            all: ticks.iter().sum(),
            stolen: ticks.get(7).copied().unwrap_or(0),
        }
    }

    /// The share of all time since `earlier` that the hypervisor gave to others, from 0 to 1; `None`
    /// when no time has passed, or where the kernel does not say.
    pub(crate) fn stolen_since(self, earlier: Self) -> Option<f64> {
        let ticks = |now: u64, then: u64| float(now.saturating_sub(then));
        let stolen = ticks(self.stolen, earlier.stolen);
        ratio(stolen, ticks(self.all, earlier.all))
    }
}

/// The process that listens on this TCP port of this machine, if it can be seen.
pub(crate) fn listener(port: u16) -> Option<u32> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    std::fs::read_dir("/proc")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let mut files = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten();
            let listens = files.any(|file| {
                let link = std::fs::read_link(file.path()).ok();
                link.is_some_and(|link| {
                    inodes
                        .iter()
                        .any(|inode| link.as_os_str() == inode.as_str())
                })
            });
            listens.then_some(pid)
        })
}

/// Inodes of sockets in state LISTEN (0A) on `port`, from a table of /proc/net.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let port = format!(":{port:04X}");
    let lines = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&port) && *fields.get(3)? == "0A";
        listens.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    });
    lines.collect()
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
    fn stolen_time_is_a_share_of_all() {
        let then = Cores::parse("cpu  100 0 100 700 50 0 0 50 9 9\ncpu0 1 2");
        let now = Cores::parse("cpu  150 0 150 750 50 0 0 100 9 9\n");
        assert!((now.stolen_since(then).unwrap() - 0.25).abs() < 1e-9);
        assert_eq!(now.stolen_since(now), None);
        assert_eq!(Cores::parse("nothing"), Cores::default());
    }

    #[test]
    fn who_listens_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(listener(port), Some(std::process::id()));
        drop(socket);
        assert_eq!(listener(port), None);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        assert!(Process::new(u32::MAX).cpu().is_err());
    }
}
