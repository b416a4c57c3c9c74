//! The real server and the real agent beside a simulation, each a process of its own.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;

use crate::cast;
use crate::child::{Process, Role, free_ports, on_free_ports};
use crate::clock;
use crate::description::{Description, Pids, PodDescription};
use crate::simulation::Simulation;

/// How long a part may take to become ready. Generous: a cold, busy machine is not a failure.
const START_MAX: Duration = Duration::from_secs(30);
/// How long a part may take to end when asked to.
const STOP_MAX: Duration = Duration::from_secs(10);
/// What an agent logs when another has taken its place.
const RELIEVED: &str = "another agent has taken over";
/// The audience of the second door's tokens, as on EKS.
pub(crate) const CONTAINER_AUDIENCE: &str = "pods.eks.amazonaws.com";

/// Addresses of the two programs.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    server: SocketAddr,
    server_admin: SocketAddr,
    agent: SocketAddr,
    agent_admin: SocketAddr,
    container: SocketAddr,
}

/// The running system. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct System {
    // In this order: the agent goes first, so that it does not see its server leave. Behind locks,
    // so that a fault can replace one of them while the load goes on.
    agent: Mutex<Process>,
    server: Mutex<Process>,
    simulation: Simulation,
    addresses: Addresses,
    extra: Extra,
    container_token: PathBuf,
}

/// Flags handed through to the two programs, beyond those that the simulation needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extra {
    /// For the agent.
    pub agent: Vec<OsString>,
    /// For the server.
    pub server: Vec<OsString>,
    /// The `kiam-loadtest` that is started in their roles; `None` is this program itself.
    pub program: Option<PathBuf>,
}

impl System {
    /// Starts the server, then the agent, and waits until both are ready.
    pub(crate) fn start(simulation: Simulation, extra: Extra) -> anyhow::Result<Self> {
        let container_token = simulation.write_container_token(CONTAINER_AUDIENCE)?;
        let started = on_free_ports(|[server, server_admin, agent, agent_admin, container]| {
            let addresses = Addresses {
                server,
                server_admin,
                agent,
                agent_admin,
                container,
            };
            let mut server = start_server(&simulation, addresses, &extra)?;
            server.wait_ready(addresses.server_admin, "/readyz", START_MAX)?;
            let mut agent = start_agent(&simulation, addresses, &extra)?;
            agent.wait_ready(addresses.agent_admin, "/readyz", START_MAX)?;
            Ok((addresses, server, agent))
        });
        let (addresses, server, agent) = started?;
        Ok(Self {
            agent: Mutex::new(agent),
            server: Mutex::new(server),
            simulation,
            addresses,
            extra,
            container_token,
        })
    }

    /// The simulation under it.
    pub(crate) fn simulation(&self) -> &Simulation {
        &self.simulation
    }

    /// The agent's metadata service.
    pub(crate) fn agent_address(&self) -> SocketAddr {
        self.addresses.agent
    }

    /// The agent's process.
    pub(crate) fn agent_pid(&self) -> u32 {
        lock(&self.agent).id()
    }

    /// The server's process.
    pub(crate) fn server_pid(&self) -> u32 {
        lock(&self.server).id()
    }

    /// Ends the server as a crash would.
    pub(crate) fn kill_server(&self) -> anyhow::Result<()> {
        lock(&self.server).kill().context("cannot kill the server")
    }

    /// Starts the server again, where it was.
    pub(crate) fn restart_server(&self) -> anyhow::Result<()> {
        let mut server = start_server(&self.simulation, self.addresses, &self.extra)?;
        server.wait_ready(self.addresses.server_admin, "/readyz", START_MAX)?;
        *lock(&self.server) = server;
        Ok(())
    }

    /// Ends the agent as a crash would.
    pub(crate) fn kill_agent(&self) -> anyhow::Result<()> {
        lock(&self.agent).kill().context("cannot kill the agent")
    }

    /// Starts the agent again, where it was.
    pub(crate) fn restart_agent(&self) -> anyhow::Result<()> {
        let mut agent = start_agent(&self.simulation, self.addresses, &self.extra)?;
        agent.wait_ready(self.addresses.agent_admin, "/readyz", START_MAX)?;
        *lock(&self.agent) = agent;
        Ok(())
    }

    /// Ends the server as its owner would, and waits.
    pub(crate) fn stop_server(&self) -> anyhow::Result<()> {
        lock(&self.server).stop(STOP_MAX)
    }

    /// Ends the agent as its owner would, and waits.
    pub(crate) fn stop_agent(&self) -> anyhow::Result<()> {
        lock(&self.agent).stop(STOP_MAX)
    }

    /// Starts an agent beside the one that runs and ends that one once it has been relieved, as a
    /// DaemonSet with a surge does. Both need the same `--handover-dir`.
    pub(crate) fn upgrade_agent(&self) -> anyhow::Result<()> {
        let said = || {
            let log = self.simulation.files().path("agent.log");
            let log = std::fs::read_to_string(log).unwrap_or_default();
            log.matches(RELIEVED).count()
        };
        let before = said();
        let mut next = start_agent(&self.simulation, self.addresses, &self.extra)?;
        let deadline = clock::now() + START_MAX;
        while said() == before {
            anyhow::ensure!(
                next.newly_ended()?.is_none() && clock::now() < deadline,
                "the next agent did not take over; it said:\n{}",
                next.tail()
            );
            clock::sleep_a_while();
        }
        next.wait_ready(self.addresses.agent_admin, "/readyz", START_MAX)?;
        let mut last = std::mem::replace(&mut *lock(&self.agent), next);
        last.terminate();
        anyhow::ensure!(
            last.wait_ended(STOP_MAX)?,
            "the agent that was relieved did not end"
        );
        Ok(())
    }

    /// Starts the agent again, where it was, and does not wait for it to be ready.
    pub(crate) fn restart_agent_unready(&self) -> anyhow::Result<()> {
        *lock(&self.agent) = start_agent(&self.simulation, self.addresses, &self.extra)?;
        Ok(())
    }

    /// The server's gRPC address.
    pub(crate) const fn server_address(&self) -> SocketAddr {
        self.addresses.server
    }

    /// The admin ports of the agent and of the server.
    pub(crate) const fn admin_addresses(&self) -> [SocketAddr; 2] {
        [self.addresses.agent_admin, self.addresses.server_admin]
    }

    /// The agent's second door.
    pub(crate) const fn container_address(&self) -> SocketAddr {
        self.addresses.container
    }

    /// Shell commands that start the server and the agent as they were started.
    pub(crate) fn commands(&self) -> [String; 2] {
        [&self.server, &self.agent].map(|process| lock(process).command().to_owned())
    }

    /// Says, once for each, that a process has ended.
    pub(crate) fn newly_ended(&self) -> anyhow::Result<Vec<String>> {
        let ended = [
            lock(&self.agent).newly_ended()?,
            lock(&self.server).newly_ended()?,
        ];
        Ok(ended.into_iter().flatten().collect())
    }

    /// Asks both to end and waits for it.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        lock(&self.agent).stop(STOP_MAX)?;
        lock(&self.server).stop(STOP_MAX)
    }

    /// What runs where.
    pub(crate) fn describe(&self) -> Description {
        let url = |address: SocketAddr| Some(format!("http://{address}"));
        let container = self.addresses.container;
        Description {
            agent_url: url(self.addresses.agent),
            agent_admin_url: url(self.addresses.agent_admin),
            server_addr: Some(self.addresses.server.to_string()),
            server_admin_url: url(self.addresses.server_admin),
            container_url: Some(format!("http://{container}/v1/credentials")),
            container_token_file: Some(self.container_token.clone()),
            pids: Pids {
                agent: Some(self.agent_pid()),
                server: Some(self.server_pid()),
            },
            ..describe_simulation(&self.simulation)
        }
    }
}

fn lock(process: &Mutex<Process>) -> MutexGuard<'_, Process> {
    // A process handle is whole whatever panicked beside it.
    process.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The real server without an agent, for simulated ones.
#[derive(Debug)]
pub(crate) struct ServerAlone {
    process: Process,
    address: SocketAddr,
}

impl ServerAlone {
    /// Starts it; it may not be ready yet.
    pub(crate) fn start(simulation: &Simulation, flags: Vec<OsString>) -> anyhow::Result<Self> {
        let [address, server_admin] = free_ports()?;
        let addresses = Addresses {
            server: address,
            server_admin,
            agent: address,
            agent_admin: address,
            container: address,
        };
        let extra = Extra {
            server: flags,
            ..Extra::default()
        };
        Ok(Self {
            process: start_server(simulation, addresses, &extra)?,
            address,
        })
    }

    /// Where agents find it.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// What runs where when only the simulation does.
pub(crate) fn describe_simulation(simulation: &Simulation) -> Description {
    Description {
        agent_url: None,
        agent_admin_url: None,
        server_addr: None,
        server_admin_url: None,
        kube_api: simulation.kube_api(),
        kubeconfig: simulation.files().path("kubeconfig"),
        sts_url: simulation.sts_url(),
        node: cast::NODE.into(),
        container_url: None,
        container_token_file: None,
        pids: Pids::default(),
        pods: cast::members()
            .into_iter()
            .map(PodDescription::from)
            .collect(),
    }
}

fn start_server(
    simulation: &Simulation,
    addresses: Addresses,
    extra: &Extra,
) -> anyhow::Result<Process> {
    let files = simulation.files();
    let args = [
        flag("kubeconfig", files.path("kubeconfig")),
        flag("bind", addresses.server.to_string()),
        flag("cert", files.path("server.pem")),
        flag("key", files.path("server-key.pem")),
        flag("ca", files.path("ca.pem")),
        flag("role-base-arn", cast::ROLE_BASE_ARN),
        flag("admin-listen-addr", addresses.server_admin.to_string()),
        flag("agent-auth", "certificate"),
    ];
    let args = unless_said(args, &extra.server);
    spawn(
        Role::Server,
        args,
        &simulation.environment(),
        simulation,
        extra,
    )
}

fn start_agent(
    simulation: &Simulation,
    addresses: Addresses,
    extra: &Extra,
) -> anyhow::Result<Process> {
    let files = simulation.files();
    let args = [
        flag("node-name", cast::NODE),
        flag("host", addresses.agent.ip().to_string()),
        flag("listen-addr", addresses.agent.ip().to_string()),
        flag("port", addresses.agent.port().to_string()),
        flag("intercept", "none"),
        flag("server-address", addresses.server.to_string()),
        flag("cert", files.path("agent.pem")),
        flag("key", files.path("agent-key.pem")),
        flag("ca", files.path("ca.pem")),
        flag("admin-listen-addr", addresses.agent_admin.to_string()),
        flag(
            "container-credentials-listen",
            addresses.container.to_string(),
        ),
        flag("container-credentials-audience", CONTAINER_AUDIENCE),
    ];
    let args = unless_said(args, &extra.agent);
    spawn(Role::Agent, args, &[], simulation, extra)
}

fn spawn(
    role: Role,
    args: impl IntoIterator<Item = OsString>,
    env: &[(String, String)],
    simulation: &Simulation,
    extra: &Extra,
) -> anyhow::Result<Process> {
    let dir = simulation.files().dir();
    match &extra.program {
        Some(program) => Process::spawn_program(program, role, args, env, dir),
        None => Process::spawn(role, args, env, dir),
    }
}

/// Our flags, less those that the user said otherwise, and the user's.
fn unless_said(
    ours: impl IntoIterator<Item = OsString>,
    said: &[OsString],
) -> impl Iterator<Item = OsString> {
    let name = |flag: &OsString| {
        let flag = flag.to_string_lossy();
        flag.split_once('=')
            .map_or_else(|| flag.to_string(), |(name, _)| name.to_owned())
    };
    let names: Vec<_> = said.iter().map(name).collect();
    ours.into_iter()
        .filter(move |flag| !names.contains(&name(flag)))
        .chain(said.to_vec())
}

fn flag(name: &str, value: impl Into<OsString>) -> OsString {
    let mut flag = OsString::from(format!("--{name}="));
    flag.push(value.into());
    flag
}
