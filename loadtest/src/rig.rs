//! The running system as tests hold it: whatever can go wrong can be made to, and a [`Witness`] says
//! what pods saw meanwhile.
//!
//! It is the same system that `kiam-loadtest up` leaves running, so what a test shows can be tried by
//! hand. Everything waits for events with a generous bound; nothing here judges speed.

mod http;
mod witness;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use kiam_sim::cluster::{ClusterHandle, Kind, NewPod, Phase};
use kiam_sim::sts::StsHandle;

pub use http::{Reply, exchange, get};
pub use witness::{Seen, Witness};

pub use crate::dialogue::Failure;

use crate::cast::{self, State};
use crate::clock;
use crate::dialogue::{Answers, Asker, Patience, Shape};
use crate::population::Target;
use crate::simulation::Simulation;
use crate::system::{CONTAINER_AUDIENCE, Extra, System};

/// How long anything may take before it counts as not happening at all.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A pod's own role and the key id it was given.
pub type Given = (String, String);

/// What the system is started with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The `kiam-loadtest` binary, for a caller that is another program.
    pub program: Option<PathBuf>,
    /// Further flags of the agent.
    pub agent: Vec<OsString>,
    /// Further flags of the server.
    pub server: Vec<OsString>,
    /// Where the agent leaves what the next one takes over; by default a directory of its own in
    /// memory.
    pub handover: Option<PathBuf>,
}

impl Options {
    /// `program` is the `kiam-loadtest` binary; further flags of the agent and of the server.
    pub fn new(program: &str, agent: &[&str], server: &[&str]) -> Self {
        let words = |words: &[&str]| words.iter().map(Into::into).collect();
        Self {
            program: Some(program.into()),
            agent: words(agent),
            server: words(server),
            handover: None,
        }
    }
}

/// The system. Dropping it ends it.
#[derive(Debug)]
pub struct Rig {
    // First, so that it ends before its directories do.
    system: System,
    handover: PathBuf,
    _memory: tempfile::TempDir,
    dir: tempfile::TempDir,
}

/// A program of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `kiam-agent`.
    Agent,
    /// `kiam-server`.
    Server,
}

impl Rig {
    /// Starts everything and waits until it is ready. The pods of [`Rig::granted`] run.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        // Secrets stay in memory: the agent refuses any other place.
        let memory =
            tempfile::tempdir_in("/dev/shm").context("cannot make a directory in memory")?;
        let handover = options
            .handover
            .unwrap_or_else(|| memory.path().join("handover"));
        let simulation = Simulation::start(dir.path(), 1)?;
        let mut flag = OsString::from("--handover-dir=");
        flag.push(&handover);
        let mut agent = options.agent;
        agent.push(flag);
        let extra = Extra {
            agent,
            server: options.server,
            program: options.program,
        };
        Ok(Self {
            system: System::start(simulation, extra)?,
            handover,
            _memory: memory,
            dir,
        })
    }

    /// The system under it.
    pub(crate) const fn system(&self) -> &System {
        &self.system
    }

    /// The Kubernetes API: its switches, its objects.
    pub fn cluster(&self) -> &ClusterHandle {
        self.system.simulation().cluster()
    }

    /// STS: its switches, its record.
    pub fn sts(&self) -> &StsHandle {
        self.system.simulation().sts()
    }

    /// The metadata door.
    pub fn agent(&self) -> SocketAddr {
        self.system.agent_address()
    }

    /// The second door.
    pub fn container(&self) -> SocketAddr {
        self.system.container_address()
    }

    /// The server's gRPC port.
    pub fn server(&self) -> SocketAddr {
        self.system.server_address()
    }

    /// A program's admin port.
    pub fn admin(&self, of: Program) -> SocketAddr {
        let [agent, server] = self.system.admin_addresses();
        match of {
            Program::Agent => agent,
            Program::Server => server,
        }
    }

    /// A program's process, whichever it is now.
    pub fn pid(&self, of: Program) -> u32 {
        match of {
            Program::Agent => self.system.agent_pid(),
            Program::Server => self.system.server_pid(),
        }
    }

    /// Everything a program has printed, over all its lives.
    pub fn log(&self, of: Program) -> String {
        let name = match of {
            Program::Agent => "agent.log",
            Program::Server => "server.log",
        };
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// Where certificates, keys, kubeconfig and logs are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The hand-over directory.
    pub fn handover(&self) -> &Path {
        &self.handover
    }

    /// The node that the agent stands on.
    #[expect(
        clippy::unused_self,
        reason = "all rigs are alike, which is not a test's business"
    )]
    pub const fn node(&self) -> &'static str {
        cast::NODE
    }

    /// A namespace that permits every role of the account.
    #[expect(
        clippy::unused_self,
        reason = "all rigs are alike, which is not a test's business"
    )]
    pub const fn namespace(&self) -> &'static str {
        cast::OPEN
    }

    /// The ARN of a role of the account.
    #[expect(
        clippy::unused_self,
        reason = "all rigs are alike, which is not a test's business"
    )]
    pub fn arn(&self, role: &str) -> String {
        format!("{}{role}", cast::ROLE_BASE_ARN)
    }

    /// Pods that run from the start and are granted a role, with that role. They are in no faults'
    /// way: whatever happens they must be answered.
    #[expect(
        clippy::unused_self,
        reason = "all rigs are alike, which is not a test's business"
    )]
    pub fn granted(&self) -> Vec<(IpAddr, String)> {
        let members = cast::members().into_iter();
        let granted = members.filter(|one| one.state == State::Granted && !one.host_network);
        granted
            .filter_map(|one| Some((one.ip, one.role?.to_owned())))
            .collect()
    }

    /// Kills a program, as `kill -9` does.
    pub fn kill(&self, which: Program) -> anyhow::Result<()> {
        match which {
            Program::Agent => self.system.kill_agent(),
            Program::Server => self.system.kill_server(),
        }
    }

    /// Tells a program to end and waits for it; one that ends badly is an error.
    pub fn stop(&self, which: Program) -> anyhow::Result<()> {
        match which {
            Program::Agent => self.system.stop_agent(),
            Program::Server => self.system.stop_server(),
        }
    }

    /// Starts a program again, where it was, and waits until it is ready.
    pub fn restart(&self, which: Program) -> anyhow::Result<()> {
        match which {
            Program::Agent => self.system.restart_agent(),
            Program::Server => self.system.restart_server(),
        }
    }

    /// Starts the agent again and does not wait.
    pub fn exec_agent(&self) -> anyhow::Result<()> {
        self.system.restart_agent_unready()
    }

    /// Another agent takes the place of the one that runs.
    pub fn upgrade_agent(&self) -> anyhow::Result<()> {
        self.system.upgrade_agent()
    }

    /// New certificates and keys for both programs, of the same authority.
    pub fn rotate_certificates(&self) -> anyhow::Result<()> {
        self.system.simulation().rotate_certificates()
    }

    /// A new authority is trusted beside the old one and signs from now on.
    pub fn introduce_authority(&self) -> anyhow::Result<()> {
        self.system.simulation().introduce_authority()
    }

    /// The old authority is trusted no more.
    pub fn retire_authority(&self) -> anyhow::Result<()> {
        self.system.simulation().retire_authority()
    }

    /// A certificate for another node's agent, in `NAME.pem` and `NAME-key.pem` of [`Rig::dir`].
    pub fn write_agent_identity(&self, node: &str, name: &str) -> anyhow::Result<()> {
        self.system.simulation().write_agent_identity(node, name)
    }

    /// A ServiceAccount token of a pod of [`Rig::namespace`], for the second door.
    pub fn container_token(&self, pod: &str, life: Duration) -> anyhow::Result<String> {
        let cluster = self.cluster();
        Ok(cluster.issue_token(cast::OPEN, "default", Some(pod), CONTAINER_AUDIENCE, life)?)
    }

    /// Binds a pod to the agent's node; it has no address yet.
    pub fn bind(&self, name: &str, role: &str) -> anyhow::Result<()> {
        let pod = NewPod::new(cast::OPEN, name).node(cast::NODE);
        self.cluster()
            .create_pod(pod.annotation("iam.amazonaws.com/role", role))?;
        Ok(())
    }

    /// Gives a bound pod its address.
    pub fn run(&self, name: &str, ip: IpAddr) -> anyhow::Result<()> {
        self.cluster().run(cast::OPEN, name, &[ip])?;
        Ok(())
    }

    /// A pod that runs at once, on any node.
    pub fn add_pod(&self, pod: NewPod, ip: IpAddr) -> anyhow::Result<()> {
        let pod = pod.ip(ip).phase(Phase::Running);
        self.cluster().create_pod(pod)?;
        Ok(())
    }

    /// A pod of the agent's node that runs at once.
    pub fn start_pod(&self, name: &str, role: &str, ip: IpAddr) -> anyhow::Result<()> {
        self.bind(name, role)?;
        self.run(name, ip)
    }

    /// Deletes a pod.
    pub fn delete_pod(&self, name: &str) -> anyhow::Result<()> {
        self.cluster().delete(Kind::Pod, cast::OPEN, name)?;
        Ok(())
    }

    /// Asks as boto3 does, once. What is not the pod's own is an error, as is every other failure.
    pub fn ask(&self, ip: IpAddr, role: &str) -> Result<Given, String> {
        let asker = Asker {
            target: self.agent(),
            source: Some(ip),
            shape: Shape::Boto3,
            answers: Answers::Matter,
            patience: Patience::For(PATIENCE),
        };
        let target = Target {
            ip: Some(ip),
            role: role.into(),
        };
        let obtained = asker.ask(drop).map_err(|failure| failure.to_string())?;
        target
            .check(&obtained, self.sts())
            .map_err(|failure| failure.to_string())?;
        Ok((obtained.role, obtained.access_key_id))
    }

    /// Asks until the pod is given what is its own. An error when it never is, or when it is given
    /// what is not.
    pub fn served(&self, ip: IpAddr, role: &str) -> anyhow::Result<Given> {
        within(&format!("{ip} is served"), || match self.ask(ip, role) {
            Err(failure) if failure.starts_with("wrong") => Some(Err(failure)),
            Err(_not_yet) => None,
            Ok(given) => Some(Ok(given)),
        })?
        .map_err(anyhow::Error::msg)
    }

    /// A GET at the metadata door from this address.
    pub fn get(&self, from: IpAddr, path: &str) -> anyhow::Result<Reply> {
        Ok(get(self.agent(), Some(from), path)?)
    }

    /// What an admin port says at `path`.
    pub fn admin_says(&self, of: Program, path: &str) -> anyhow::Result<String> {
        Ok(get(self.admin(of), None, path)?.body)
    }

    /// One sample of a program's metrics: the sum over the series that begin with `name`.
    pub fn metric(&self, of: Program, name: &str) -> anyhow::Result<f64> {
        let metrics = self.admin_says(of, "/metrics")?;
        let series = metrics.lines().filter(|line| line.starts_with(name));
        let values = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// Begins asking as the pods of [`Rig::granted`], all the time.
    pub fn witness(&self) -> Witness {
        Witness::begin(self.agent(), self.sts(), self.granted())
    }
}

/// What `found` finds; an error that says `what` if it finds nothing within [`PATIENCE`].
pub fn within<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = clock::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return Ok(found);
        }
        anyhow::ensure!(clock::now() < deadline, "never happened: {what}");
        clock::sleep_a_while();
    }
}

/// Lets this much time pass: for faults that are made of time.
pub fn pass(time: Duration) {
    clock::sleep_until(clock::now() + time);
}
