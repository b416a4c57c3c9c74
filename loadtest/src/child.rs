//! The server and the agent as processes of their own: this binary again, in another role.
//!
//! So one cargo command builds everything, and what is measured is measured as it is deployed: two
//! processes that share nothing. A child dies with its parent, whatever ends the parent.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};

use crate::clock;

/// What a process of this binary can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// `kiam-agent`.
    Agent,
    /// `kiam-server`.
    Server,
    /// The null server.
    Null,
}

impl Role {
    /// The hidden sub-command that takes the role.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Server => "server",
            Self::Null => "null",
        }
    }
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    role: Role,
    child: Child,
    log: PathBuf,
    command: String,
    ended: bool,
}

impl Process {
    /// Starts this binary in `role`; what it prints goes to a file in `dir`.
    pub(crate) fn spawn(
        role: Role,
        args: impl IntoIterator<Item = OsString>,
        env: &[(String, String)],
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        Self::spawn_program(&binary, role, args, env, dir)
    }

    /// As [`Process::spawn`], of the `kiam-loadtest` at `binary`: a test is another program.
    pub(crate) fn spawn_program(
        binary: &Path,
        role: Role,
        args: impl IntoIterator<Item = OsString>,
        env: &[(String, String)],
        dir: &Path,
    ) -> anyhow::Result<Self> {
        let log = dir.join(format!("{}.log", role.word()));
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(binary);
        command
            .arg(role.word())
            .arg(WITH_PARENT)
            .args(args)
            // Nothing of the caller's AWS or Kubernetes set-up may leak into the simulation.
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| kept(name)))
            .envs(env.iter().cloned())
            // Held open by this process alone: its end is how the child learns of ours.
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start the {}", role.word()))?;
        let command = shell(env, &command);
        Ok(Self {
            role,
            child,
            log,
            command,
            ended: false,
        })
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A shell command that starts the same again.
    pub(crate) fn command(&self) -> &str {
        &self.command
    }

    /// Says, once, that the process has ended.
    pub(crate) fn newly_ended(&mut self) -> io::Result<Option<String>> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(None);
        };
        let first = !std::mem::replace(&mut self.ended, true);
        Ok(first.then(|| format!("the {} ended with {status}", self.role.word())))
    }

    /// Waits until `GET path` on `address` answers 200; an error when the process ends first.
    pub(crate) fn wait_ready(
        &mut self,
        address: SocketAddr,
        path: &str,
        timeout: Duration,
    ) -> anyhow::Result<()> {
        let deadline = clock::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the {} ended with {status}; it said:\n{}",
                    self.role.word(),
                    self.tail()
                );
            }
            if get(address, path).is_ok_and(|status| status == 200) {
                return Ok(());
            }
            if clock::now() > deadline {
                bail!(
                    "the {} was not ready after {timeout:?}; it said:\n{}",
                    self.role.word(),
                    self.tail()
                );
            }
            clock::sleep_until(clock::now() + Duration::from_millis(20));
        }
    }

    /// Asks the process to end and waits; kills it after `patience`. One that had ended before is
    /// no error; one that ends badly now is.
    pub(crate) fn stop(&mut self, patience: Duration) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        self.signal(Signal::TERM);
        let deadline = clock::now() + patience;
        while clock::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return self.ended_well(status);
            }
            clock::sleep_until(clock::now() + Duration::from_millis(10));
        }
        self.kill()?;
        bail!(
            "the {} did not end within {patience:?}; it said:\n{}",
            self.role.word(),
            self.tail()
        )
    }

    fn ended_well(&self, status: ExitStatus) -> anyhow::Result<()> {
        if status.success() {
            return Ok(());
        }
        bail!(
            "the {} ended with {status}; it said:\n{}",
            self.role.word(),
            self.tail()
        )
    }

    /// Ends the process at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Asks the process to end, and does not wait.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits until it has ended by itself or as told; false when it has not within `patience`.
    pub(crate) fn wait_ended(&mut self, patience: Duration) -> io::Result<bool> {
        let deadline = clock::now() + patience;
        while self.child.try_wait()?.is_none() {
            if clock::now() > deadline {
                return Ok(false);
            }
            clock::sleep_until(clock::now() + Duration::from_millis(10));
        }
        Ok(true)
    }

    /// The last lines it wrote.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines
            .get(lines.len().saturating_sub(15)..)
            .unwrap_or_default()
            .join("\n")
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid
            && let Err(error) = rustix::process::kill_process(pid, signal)
        {
            tracing::debug!(%error, role = self.role.word(), "it had already ended");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

/// The command as a shell would take it. Nothing in it holds a quote.
fn shell(env: &[(String, String)], command: &Command) -> String {
    let env = env.iter().map(|(name, value)| format!("{name}={value}"));
    let args = command.get_args().filter(|arg| *arg != WITH_PARENT);
    let words = std::iter::once(command.get_program()).chain(args);
    env.chain(words.map(|word| word.display().to_string()))
        .collect::<Vec<_>>()
        .join(" ")
}

fn kept(name: &std::ffi::OsStr) -> bool {
    ["PATH", "HOME", "RUST_BACKTRACE", "TMPDIR"]
        .iter()
        .any(|kept| name == *kept)
}

/// The flag of a role that ends with the process that started it.
const WITH_PARENT: &str = "--with-parent";

/// Makes this process end, as by SIGTERM, when the standard input that its parent holds does. A death
/// signal would not do: it comes when the *thread* that started the child ends.
pub(crate) fn end_with_parent(wanted: bool) {
    if !wanted {
        return;
    }
    std::thread::spawn(|| {
        // Nothing is ever sent; an error means the same as the end.
        drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
        let ended = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
        if let Err(error) = ended {
            tracing::error!(%error, "cannot end with the parent process");
        }
    });
}

/// How often a start is tried when its ports are taken by others.
const STARTS_MAX: u32 = 3;
/// What the kernel calls it in a child's log.
const TAKEN: &str = "Address already in use";

/// Starts something on free ports, and once more on others when another process has taken one of them
/// in between.
pub(crate) fn on_free_ports<const COUNT: usize, T>(
    mut start: impl FnMut([SocketAddr; COUNT]) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut tried = 0;
    loop {
        tried += 1;
        match start(free_ports()?) {
            Err(error) if tried < STARTS_MAX && format!("{error:#}").contains(TAKEN) => {
                tracing::debug!(%error, "a port was taken in between");
            }
            started => return started,
        }
    }
}

/// Loopback ports that were free a moment ago, no two of them the same. Between this and their use
/// another process can take one; the child then says so and the start fails.
pub(crate) fn free_ports<const COUNT: usize>() -> io::Result<[SocketAddr; COUNT]> {
    let mut ports = [SocketAddr::from(([127, 0, 0, 1], 0)); COUNT];
    // All are held until the last has been found.
    let mut held = Vec::with_capacity(COUNT);
    for port in &mut ports {
        let listener = TcpListener::bind(*port)?;
        *port = listener.local_addr()?;
        held.push(listener);
    }
    Ok(ports)
}

/// The status of one GET; for admin ports.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    let status = str::from_utf8(&answer)
        .ok()
        .and_then(|line| line.get(9..12)?.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_was_taken_in_between_costs_a_try() {
        let mut seen = Vec::new();
        let started = on_free_ports(|[port]| {
            seen.push(port);
            anyhow::ensure!(
                seen.len() > 1,
                "the agent ended; it said:\n{TAKEN} (os error 98)"
            );
            Ok(port)
        });
        assert_eq!(started.ok(), seen.get(1).copied());
        let mut tries = 0;
        let never = on_free_ports::<1, ()>(|_ports| {
            tries += 1;
            anyhow::bail!("{TAKEN}")
        });
        assert!(never.is_err());
        assert_eq!(tries, STARTS_MAX);
        let mut tries = 0;
        let other = on_free_ports::<1, ()>(|_ports| {
            tries += 1;
            anyhow::bail!("a flag is wrong")
        });
        assert!(other.is_err());
        assert_eq!(tries, 1);
    }
}
