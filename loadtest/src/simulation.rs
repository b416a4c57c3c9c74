//! The simulated cluster and STS, and the files that lead the real programs to them.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use kiam_sim::certificates::{Authority, Identity, write_atomically};
use kiam_sim::cluster::{Cluster, ClusterHandle, ClusterOptions};
use kiam_sim::kubeconfig::Kubeconfig;
use kiam_sim::sts::{Sts, StsHandle, StsOptions};
use tokio::runtime::Runtime;

use crate::cast;
use crate::population::Issuer;

/// Where the files of a simulation are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    dir: PathBuf,
}

impl Files {
    /// Names of files in `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// One file of it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// A simulated cluster and STS. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Simulation {
    cluster: Cluster,
    sts: Sts,
    files: Files,
    other_sts: Option<String>,
    /// Who signs certificates now.
    authority: Mutex<Authority>,
    // Last, so that what runs on it is dropped first.
    runtime: Runtime,
}

/// Sessions of roles that the stand-in keys assume; STS takes anyone's.
const STAND_IN_KEYS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "AKIASIMULATED0000000"),
    ("AWS_SECRET_ACCESS_KEY", "simulated-and-good-for-nothing"),
    ("AWS_REGION", "us-east-1"),
];

impl Simulation {
    /// Starts both on loopback and writes `kubeconfig`, `ca.pem`, `server.pem`, `server-key.pem`,
    /// `agent.pem`, `agent-key.pem` and `env` into `dir`.
    pub(crate) fn start(dir: &Path, seed: u64) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("simulation")
            .enable_all()
            .build()?;
        let (cluster, sts) = runtime.block_on(async {
            let options = ClusterOptions {
                seed,
                ..ClusterOptions::default()
            };
            let cluster = Cluster::start(options)
                .await
                .context("the simulated cluster")?;
            let options = StsOptions {
                seed,
                ..StsOptions::default()
            };
            let sts = Sts::start(options).await.context("the simulated STS")?;
            anyhow::Ok((cluster, sts))
        })?;
        let simulation = Self {
            cluster,
            sts,
            files: Files::new(dir),
            other_sts: None,
            authority: Mutex::new(Authority::new("kiam simulation")?),
            runtime,
        };
        simulation.write_files()?;
        cast::enter(simulation.cluster())?;
        Ok(simulation)
    }

    fn write_files(&self) -> anyhow::Result<()> {
        let files = &self.files;
        std::fs::create_dir_all(files.dir())
            .with_context(|| format!("cannot create {}", files.dir().display()))?;
        let kubeconfig = Kubeconfig {
            server: self.cluster.url(),
            authority_pem: None,
            token: None,
            namespace: cast::OPEN.into(),
        };
        kubeconfig.write(&files.path("kubeconfig"))?;
        {
            let authority = self.authority();
            write_atomically(&files.path("ca.pem"), authority.certificate_pem(), 0o644)?;
            self.write_identities(&authority)?;
        }
        let env = self.environment().into_iter();
        let env: Vec<String> = env
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        write_atomically(&files.path("env"), &env.concat(), 0o600)?;
        Ok(())
    }

    fn authority(&self) -> MutexGuard<'_, Authority> {
        // It is replaced whole, whatever panicked beside it.
        self.authority
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write_identities(&self, authority: &Authority) -> anyhow::Result<()> {
        let write = |identity: Identity, name: &str| {
            identity.write(
                &self.files.path(&format!("{name}.pem")),
                &self.files.path(&format!("{name}-key.pem")),
            )
        };
        write(authority.server(&["kiam-server"])?, "server")?;
        Ok(write(authority.agent(Some(cast::NODE))?, "agent")?)
    }

    /// Replaces the certificates and keys of both programs, signed by the same authority.
    pub(crate) fn rotate_certificates(&self) -> anyhow::Result<()> {
        self.write_identities(&self.authority())
    }

    /// The first of two steps to a new authority: both are trusted, and it signs from now on.
    pub(crate) fn introduce_authority(&self) -> anyhow::Result<()> {
        let mut authority = self.authority();
        let next = Authority::new("kiam simulation, the next")?;
        let both = format!("{}{}", authority.certificate_pem(), next.certificate_pem());
        write_atomically(&self.files.path("ca.pem"), &both, 0o644)?;
        *authority = next;
        drop(authority);
        Ok(())
    }

    /// The second step: only the new one is trusted.
    pub(crate) fn retire_authority(&self) -> anyhow::Result<()> {
        let authority = self.authority();
        let path = self.files.path("ca.pem");
        Ok(write_atomically(&path, authority.certificate_pem(), 0o644)?)
    }

    /// A certificate for `node`'s agent, signed by the authority of now, in `NAME.pem` and
    /// `NAME-key.pem`.
    pub(crate) fn write_agent_identity(&self, node: &str, name: &str) -> anyhow::Result<()> {
        let identity = self.authority().agent(Some(node))?;
        Ok(identity.write(
            &self.files.path(&format!("{name}.pem")),
            &self.files.path(&format!("{name}-key.pem")),
        )?)
    }

    /// What the server needs in its environment to find this STS.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let endpoint = ("AWS_ENDPOINT_URL_STS".to_owned(), self.sts_url());
        let keys = STAND_IN_KEYS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        std::iter::once(endpoint).chain(keys).collect()
    }

    /// The same cluster, whose server is led to another STS.
    pub(crate) fn with_sts(self, url: Option<String>) -> Self {
        Self {
            other_sts: url,
            ..self
        }
    }

    /// Base URL of the STS that the server is led to.
    pub(crate) fn sts_url(&self) -> String {
        self.other_sts.clone().unwrap_or_else(|| self.sts.url())
    }

    /// Base URL of the Kubernetes API.
    pub(crate) fn kube_api(&self) -> String {
        self.cluster.url()
    }

    /// The cluster, to create and move pods in.
    pub(crate) fn cluster(&self) -> &ClusterHandle {
        self.cluster.handle()
    }

    /// The STS, to ask what it was asked.
    pub(crate) fn sts(&self) -> &StsHandle {
        self.sts.handle()
    }

    /// The files.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Writes a token for the hostNetwork pod, as its kubelet would, and returns where.
    pub(crate) fn write_container_token(&self, audience: &str) -> anyhow::Result<PathBuf> {
        let token = self.cluster().issue_token(
            cast::OPEN,
            "default",
            Some(cast::HOST_NETWORK_POD),
            audience,
            Duration::from_hours(24),
        )?;
        let path = self.files.path("container-token");
        // No newline: botocore refuses a token file that ends in one.
        write_atomically(&path, &token, 0o600)?;
        Ok(path)
    }

    /// Where asynchronous work of this program runs.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}

impl Issuer for StsHandle {
    fn role_of(&self, access_key_id: &str) -> Option<String> {
        // arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION
        self.owner(access_key_id)?
            .arn()
            .split('/')
            .nth(1)
            .map(str::to_owned)
    }
}
