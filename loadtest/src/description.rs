//! What runs where, as JSON: for scripts and for clients that are not ours.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cast::{Member, State};

/// What runs where. What does not run is `null`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Description {
    /// Base URL of the agent's metadata service.
    pub agent_url: Option<String>,
    /// Base URL of the agent's admin port.
    pub agent_admin_url: Option<String>,
    /// The server's gRPC address.
    pub server_addr: Option<String>,
    /// Base URL of the server's admin port.
    pub server_admin_url: Option<String>,
    /// Base URL of the simulated Kubernetes API.
    pub kube_api: String,
    /// A kubeconfig for it.
    pub kubeconfig: PathBuf,
    /// Base URL of the simulated STS.
    pub sts_url: String,
    /// The node the agent stands on.
    pub node: String,
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub container_url: Option<String>,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE` of the hostNetwork pod.
    pub container_token_file: Option<PathBuf>,
    /// Process ids.
    pub pids: Pids,
    /// The pods of the node.
    pub pods: Vec<PodDescription>,
}

/// Process ids.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Pids {
    /// The agent's.
    pub agent: Option<u32>,
    /// The server's.
    pub server: Option<u32>,
}

/// One pod.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PodDescription {
    namespace: String,
    name: String,
    ip: IpAddr,
    role: Option<String>,
    state: State,
    host_network: bool,
}

impl From<Member> for PodDescription {
    fn from(member: Member) -> Self {
        let Member {
            namespace,
            name,
            ip,
            role,
            state,
            host_network,
        } = member;
        Self {
            namespace: namespace.into(),
            name,
            ip,
            role: role.map(str::to_owned),
            state,
            host_network,
        }
    }
}

impl Description {
    /// Writes the JSON in one step: a reader sees all of it or no file.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        kiam_sim::certificates::write_atomically(path, &text, 0o600)
    }
}
