//! The system left running, to be tried by hand; and the simulation alone, for those who start the
//! programs themselves.

use std::io::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cast::{self, Member, State};
use crate::description::Description;
use crate::progress::Progress;
use crate::simulation::Simulation;
use crate::system::{Extra, System, describe_simulation};

/// Starts everything, says what to try, and runs until Ctrl-C or SIGTERM.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Up {
    /// Writes what runs where to this file, as JSON, once everything is ready.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keeps the kubeconfig, certificates and logs here instead of in a temporary directory.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// STS to use instead of the simulated one.
    #[arg(long, value_name = "URL")]
    sts: Option<String>,
    /// A flag handed to the agent as it is; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    agent_flag: Vec<std::ffi::OsString>,
    /// A flag handed to the server as it is; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    server_flag: Vec<std::ffi::OsString>,
}

/// Starts only the simulated cluster and STS, for programs started by hand.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Sim {
    /// Where kubeconfig, ca.pem, server.pem, server-key.pem, agent.pem, agent-key.pem and env go.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Writes what runs where to this file, as JSON, last of all.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Up {
    /// Runs until told to stop.
    pub(crate) fn run(self, progress: &Progress, out: &mut dyn Write) -> anyhow::Result<()> {
        let temporary = tempfile::tempdir().context("cannot make a temporary directory")?;
        let dir = self.dir.as_deref().unwrap_or(temporary.path());
        progress.step("starting a simulated cluster and STS, the server, and the agent");
        let simulation = Simulation::start(dir, 1)?.with_sts(self.sts);
        let extra = Extra {
            agent: self.agent_flag,
            server: self.server_flag,
            ..Extra::default()
        };
        let system = System::start(simulation, extra)?;
        // Before the file is there: who waits for it may send a signal at once.
        let mut stop = Stop::listen(system.simulation().runtime())?;
        let description = system.describe();
        writeln!(out, "{}", what_to_try(&description, &system))?;
        out.flush()?;
        if let Some(path) = &self.json {
            description
                .write(path)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        while !stop.within(LOOK_EVERY, system.simulation().runtime()) {
            for ended in system.newly_ended()? {
                writeln!(out, "{ended}")?;
                out.flush()?;
            }
        }
        progress.step("stopping");
        system.stop()
    }
}

impl Sim {
    /// Runs until told to stop.
    pub(crate) fn run(self, out: &mut dyn Write) -> anyhow::Result<()> {
        let simulation = Simulation::start(&self.dir, 1)?;
        let mut stop = Stop::listen(simulation.runtime())?;
        let description = describe_simulation(&simulation);
        writeln!(out, "Kubernetes API  {}", description.kube_api)?;
        writeln!(out, "STS             {}", description.sts_url)?;
        writeln!(out, "files           {}", self.dir.display())?;
        out.flush()?;
        if let Some(path) = &self.json {
            description
                .write(path)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        while !stop.within(LOOK_EVERY, simulation.runtime()) {}
        Ok(())
    }
}

/// How often ended processes are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Ctrl-C and SIGTERM.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// From now on both are caught.
    fn listen(runtime: &Runtime) -> anyhow::Result<Self> {
        let _guard = runtime.enter();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Whether one of them came; waits this long for it.
    fn within(&mut self, wait: Duration, runtime: &Runtime) -> bool {
        runtime.block_on(async {
            tokio::select! {
                _ = self.interrupt.recv() => true,
                _ = self.terminate.recv() => true,
                () = tokio::time::sleep(wait) => false,
            }
        })
    }
}

/// The addresses, and lines to copy.
fn what_to_try(description: &Description, system: &System) -> String {
    let agent = description.agent_url.as_deref().unwrap_or_default();
    let pod = cast::members()
        .into_iter()
        .find(|member| member.state == State::Granted);
    let ip = pod
        .as_ref()
        .map_or(Ipv4Addr::LOCALHOST.into(), |member: &Member| member.ip);
    let name = pod.map(|member| member.name).unwrap_or_default();
    let none = String::new();
    let container = description.container_url.as_ref().unwrap_or(&none);
    let token = description
        .container_token_file
        .as_deref()
        .map_or(none.clone(), |path| path.display().to_string());
    let kubeconfig = description.kubeconfig.display();
    let namespace = cast::OPEN;
    let [server, agent_again] = system.commands();
    format!(
        "\
agent           {agent}    admin {}
server          {}    admin {}
Kubernetes API  {}    kubeconfig {kubeconfig}
STS             {}

As pod {namespace}/{name}, whose address is {ip}:

  curl --interface {ip} {agent}/latest/meta-data/iam/security-credentials/
  TOKEN=$(curl -sX PUT --interface {ip} -H 'x-aws-ec2-metadata-token-ttl-seconds: 60' {agent}/latest/api/token)
  curl --interface {ip} -H \"x-aws-ec2-metadata-token: $TOKEN\" {agent}/latest/meta-data/iam/security-credentials/reader

As the hostNetwork pod, with any AWS SDK, through its ServiceAccount token:

  AWS_CONTAINER_CREDENTIALS_FULL_URI={container} AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE={token} \\
  AWS_ENDPOINT_URL_STS={} AWS_REGION=us-east-1 aws sts get-caller-identity

In the cluster:

  kubectl --kubeconfig {kubeconfig} get pods -n {namespace} -o wide
  curl '{}/why?pod={}/refused'

To start one of them again after killing it:

  {}
  {}

Ctrl-C ends everything.",
        description.agent_admin_url.as_deref().unwrap_or_default(),
        description.server_addr.as_deref().unwrap_or_default(),
        description.server_admin_url.as_deref().unwrap_or_default(),
        description.kube_api,
        description.sts_url,
        description.sts_url,
        description.server_admin_url.as_deref().unwrap_or_default(),
        cast::NARROW,
        server,
        agent_again,
    )
}
