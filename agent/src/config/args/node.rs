//! Flags about this node: its name, the admin port, the hand-over and the end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::listen::{Listen, OptionalListen};
use crate::config::{Invalid, Node};
use kiam_wire::go_duration as duration;

/// What the operator typed about the node.
#[derive(Debug, Args)]
#[command(next_help_heading = "Node")]
pub(crate) struct NodeArgs {
    /// The Kubernetes node this agent runs on.
    ///
    /// Set it from the downward API: fieldRef spec.nodeName.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,

    /// Where to serve /metrics, /livez, /readyz, /ping, /health and /snapshot.
    ///
    /// ADDRESS:PORT, or :PORT for every address. Empty, the default, serves none of them.
    #[arg(
        long,
        alias = "prometheus-listen-addr",
        value_name = "ADDRESS:PORT",
        default_value = ""
    )]
    admin_listen_addr: OptionalListen,

    /// Where to leave the snapshot and the token key for the agent that comes after this one.
    ///
    /// An agent that starts while another runs on the same directory takes over its ports, so that
    /// an upgrade fails no request; the other ends by itself. Without it two agents cannot overlap.
    ///
    /// A directory on a tmpfs that outlives the container, such as a hostPath of /run/kiam. Any
    /// other file system is refused: credentials do not belong on a disk.
    #[arg(long, value_name = "DIRECTORY")]
    handover_dir: Option<PathBuf>,

    /// How long requests in flight may take to finish after SIGTERM, or after another agent took over.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    shutdown_grace: Duration,
}

impl NodeArgs {
    pub(crate) fn validate(self) -> Result<Node, Invalid> {
        let Self {
            node_name,
            admin_listen_addr: OptionalListen(admin),
            handover_dir,
            shutdown_grace,
        } = self;
        if !is_node_name(&node_name) {
            return Err(Invalid::NodeName);
        }
        Ok(Node {
            name: node_name,
            admin: admin.map(Listen::address),
            handover_dir,
            shutdown_grace,
        })
    }
}

/// A DNS subdomain, as Kubernetes demands of a Node's name.
fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= kiam_wire::limits::NAME_BYTES_MAX && name.split('.').all(label)
}

/// The addresses that two listeners of one process share, if any.
pub(crate) fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() != 0
        && one.port() == other.port()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_a_dns_subdomain() {
        let check = |name: &str, expected| assert_eq!(is_node_name(name), expected, "{name:?}");
        check("ip-10-0-0-1.eu-west-1.compute.internal", true);
        check("node-a", true);
        check("", false);
        check("Node", false);
        check("a..b", false);
        check("-a", false);
        check("a-", false);
        check("a b", false);
        check("a\nb", false);
        check(&"a".repeat(254), false);
    }
}
