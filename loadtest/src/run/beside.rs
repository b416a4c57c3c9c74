//! What stands beside the agent during a run: the null server, another agent, work that uses its core,
//! and changes that make it publish.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use kiam_sim::cluster::{ClusterHandle, Kind as Object, Phase};
use rustix::process::{Pid, Signal};

use super::slices::Asked;
use crate::cast;
use crate::child::{self, Process, Role};
use crate::churn;
use crate::clock;
use crate::dialogue::{Answers, Asker, Patience, Shape};
use crate::pin;
use crate::proc_stats;
use crate::progress::Progress;
use crate::simulation::Simulation;

/// Threads that do nothing but use the first core, until this is dropped.
#[derive(Debug)]
pub(crate) struct Hogs(Arc<AtomicBool>);

impl Hogs {
    /// Starts them.
    pub(crate) fn start(count: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..count {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                if let Err(error) = pin::this_thread_to_first() {
                    tracing::warn!(%error, "a hog is not on the agent's core");
                }
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Numbers of pods that only stir; far above those of the load, and each used once.
const STIRRING: u32 = 4_000_000;
/// Rounds do not share them.
const STIRRING_PER_ROUND: u32 = 10_000;

/// Changes the agent's node `rate` times a second until it is over: pods of a role that the node has
/// already come and go by turns, so each change is one delta and one snapshot. Nobody asks for them.
pub(crate) fn stir(
    cluster: &ClusterHandle,
    round: u32,
    rate: f64,
    over: &AtomicBool,
) -> anyhow::Result<()> {
    let gap = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
    let start = clock::now();
    let first = STIRRING + round.saturating_mul(STIRRING_PER_ROUND);
    for change in 0..u32::MAX {
        clock::sleep_until(start + gap.saturating_mul(change));
        let number = first + change / 2;
        // One that came goes, even when it is over.
        if change % 2 == 1 {
            cluster.delete(Object::Pod, cast::OPEN, &churn::name(number))?;
        } else if over.load(Ordering::Relaxed) {
            break;
        } else {
            let pod = churn::pod(number, 1).ip(churn::address(number));
            cluster.create_pod(pod.phase(Phase::Running))?;
        }
    }
    Ok(())
}

/// The null server as a process.
#[derive(Debug)]
pub(crate) struct NullServer {
    process: Process,
    address: SocketAddr,
}

impl NullServer {
    /// Starts it and waits until it answers.
    pub(crate) fn start(dir: &Path) -> anyhow::Result<Self> {
        child::on_free_ports(|[address]| {
            let port = format!("--port={}", address.port());
            let mut process = Process::spawn(Role::Null, [port.into()], &[], dir)?;
            process.wait_ready(address, "/", Duration::from_secs(10))?;
            Ok(Self { process, address })
        })
    }

    /// To be asked.
    pub(crate) fn asked(&self) -> Asked {
        Asked {
            address: self.address,
            pid: Some(self.process.id()),
        }
    }
}

/// Another agent, under the same simulated cluster. Dropping it ends what was started for it.
#[derive(Debug)]
pub(crate) struct OtherAgent {
    command: Option<Child>,
    address: SocketAddr,
}

/// How long another agent has to answer for a pod.
const OTHER_MAX: Duration = Duration::from_mins(2);

impl OtherAgent {
    /// Runs `command`, if there is one, in the simulation's directory, and waits until the agent at
    /// `address` has credentials for the pod at `ip`. Without a command somebody else starts it.
    pub(crate) fn start(
        address: SocketAddr,
        command: Option<&str>,
        simulation: &Simulation,
        ip: IpAddr,
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        let command = match command {
            Some(command) => Some(shell(command, simulation)?),
            None => None,
        };
        let mut other = Self { command, address };
        progress.step(&format!(
            "waiting for an agent at {address} that serves {ip}; Kubernetes API {}, STS {}, files {}",
            simulation.kube_api(),
            simulation.sts_url(),
            simulation.files().dir().display()
        ));
        other.wait(ip)?;
        Ok(other)
    }

    fn wait(&mut self, ip: IpAddr) -> anyhow::Result<()> {
        let deadline = clock::now() + OTHER_MAX;
        let asker = Asker {
            target: self.address,
            source: Some(ip),
            shape: Shape::V1,
            answers: Answers::Matter,
            patience: Patience::Sdk,
        };
        loop {
            let Err(failure) = asker.ask(|_took| {}) else {
                return Ok(());
            };
            if let Some(command) = &mut self.command
                && let Some(status) = command.try_wait()?
            {
                bail!("--agent-command ended with {status} before its agent served {ip}");
            }
            anyhow::ensure!(
                clock::now() < deadline,
                "--agent-url: the agent at {} did not serve {ip} within {OTHER_MAX:?}: {failure}",
                self.address
            );
            clock::sleep_a_while();
        }
    }

    /// To be asked. Its process is whichever listens there.
    pub(crate) fn asked(&self) -> Asked {
        Asked {
            address: self.address,
            pid: proc_stats::listener(self.address.port()),
        }
    }
}

impl Drop for OtherAgent {
    fn drop(&mut self) {
        let Some(command) = &mut self.command else {
            return;
        };
        // The shell is the head of a process group: what it started ends with it.
        let group = i32::try_from(command.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group
            && let Err(error) = rustix::process::kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%error, "what --agent-command started had already ended");
        }
        drop(command.wait());
    }
}

/// A shell in the simulation's directory that knows where everything is.
fn shell(command: &str, simulation: &Simulation) -> anyhow::Result<Child> {
    let files = simulation.files();
    let log = std::fs::File::create(files.path("other.log"))?;
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", command])
        .current_dir(files.dir())
        .envs(simulation.environment())
        .env("KUBECONFIG", files.path("kubeconfig"))
        .env("KUBE_API", simulation.kube_api())
        .env("NODE_NAME", cast::NODE)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    shell
        .spawn()
        .context("--agent-command: cannot start a shell")
}
