//! A pod of our own making: a network namespace, an interface whose name the rules match, and one
//! question from inside.
//!
//! The namespace belongs to a sleeping child process. When that is killed, by us or with us, the
//! kernel takes namespace, interfaces and route away: there is nothing to clean up.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Stdio;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::process::{Child, Command};

use super::{Outcome, ask};
use crate::intercept::interfaces::{Interfaces, Pattern};
use crate::intercept::rules::{Redirect, Rules};
use crate::intercept::tool::{ToolError, run};

/// Longer than any probe takes; the child is killed long before.
const NAMESPACE_LIFE_S: &str = "30";
const INTERFACE: &str = "kiamprobe";
/// `IFNAMSIZ` without its final zero.
const NAME_BYTES_MAX: usize = 15;
/// Our end's hardware address, locally administered; the namespace is told it, since nothing
/// answers for the metadata address.
const NODE_MAC: &str = "02:6b:69:61:6d:01";

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// `--host-interface` names one interface and that is no bridge: nothing else can look like it.
    #[error("no other interface can look like {0} to the rules, probe from a pod instead")]
    NoSuchInterface(String),
    /// Usually `SYS_ADMIN` is missing.
    #[error("cannot make a network namespace (SYS_ADMIN is needed)")]
    Namespace(#[source] io::Error),
    /// `ip` is missing or refused.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// How the probe's interface gets to look like a pod's.
#[derive(Debug, PartialEq, Eq)]
enum Attachment {
    /// By its name.
    Named(String),
    /// By being a port of this bridge.
    Bridged {
        /// Its name.
        bridge: String,
        /// Its hardware address: pods' packets are addressed to it.
        mac: String,
    },
}

/// Asks from a namespace of our own, one family after the other, where the node has an address.
pub async fn from_namespace(rules: &Rules) -> Result<Vec<(IpAddr, Outcome)>, ProbeError> {
    let attachment = attachment(rules.interfaces()).await?;
    let mut child = sleeping_namespace().map_err(ProbeError::Namespace)?;
    let probed = probe(rules, &attachment, &child).await;
    // Killing the child takes everything away, but a moment later; the next probe may be sooner.
    let interface = match &attachment {
        Attachment::Named(name) => name.as_str(),
        Attachment::Bridged { .. } => INTERFACE,
    };
    if let Err(error) = run("ip", &["link", "del", interface], None).await {
        tracing::debug!(%error, "the probe's interface was gone already");
    }
    if let Err(error) = child.kill().await {
        tracing::debug!(%error, "the probe's namespace had ended by itself");
    }
    probed
}

/// By name where the rules match a prefix or all but some, else as a port of a bridge they name.
async fn attachment(interfaces: &Interfaces) -> Result<Attachment, ProbeError> {
    if let Some(name) = matching_name(interfaces) {
        return Ok(Attachment::Named(name));
    }
    if let Interfaces::AnyOf(patterns) = interfaces {
        for pattern in patterns {
            if let Pattern::Name(name) = pattern
                && let Some(mac) = bridge_mac(name).await
            {
                return Ok(Attachment::Bridged {
                    bridge: name.clone(),
                    mac,
                });
            }
        }
    }
    Err(ProbeError::NoSuchInterface(interfaces.to_string()))
}

fn matching_name(interfaces: &Interfaces) -> Option<String> {
    match interfaces {
        Interfaces::NoneOf(_) => Some(INTERFACE.to_owned()),
        Interfaces::AnyOf(patterns) => patterns.iter().find_map(|pattern| match pattern {
            Pattern::Prefix(prefix) => {
                let name = format!("{prefix}{INTERFACE}");
                Some(name.chars().take(NAME_BYTES_MAX).collect())
            }
            Pattern::Name(_) => None,
        }),
    }
}

/// The hardware address of the bridge of that name, if it is one.
async fn bridge_mac(name: &str) -> Option<String> {
    let arguments = ["-json", "link", "show", "dev", name, "type", "bridge"];
    let listing = run("ip", &arguments, None).await.ok()?;
    let listing: serde_json::Value = serde_json::from_str(&listing).ok()?;
    let mac = listing.get(0)?.get("address")?.as_str()?;
    Some(mac.to_owned())
}

fn sleeping_namespace() -> io::Result<Child> {
    Command::new("unshare")
        .args(["--net", "sleep", NAMESPACE_LIFE_S])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

async fn probe(
    rules: &Rules,
    attachment: &Attachment,
    child: &Child,
) -> Result<Vec<(IpAddr, Outcome)>, ProbeError> {
    let gone = || ProbeError::Namespace(io::ErrorKind::PermissionDenied.into());
    let pid = child.id().ok_or_else(gone)?.to_string();
    let namespace = wait_for_namespace(&pid).await?;
    let redirects: Vec<Redirect> = rules
        .redirects()
        .into_iter()
        .filter(|redirect| redirect.host.is_some())
        .collect();
    set_up(attachment, &pid, &redirects).await?;
    // A thread of its own: it stays in the namespace until it ends.
    let (send, receive) = tokio::sync::oneshot::channel();
    let ask_all = move || {
        let entered =
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
        let outcomes = entered.map(|()| {
            redirects
                .iter()
                .map(|redirect| (redirect.metadata, ask(redirect.metadata)))
                .collect()
        });
        // Nobody waits any more when the probe was cancelled.
        drop(send.send(outcomes));
    };
    std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(ask_all)
        .map_err(ProbeError::Namespace)?;
    let outcomes = receive.await.map_err(|_ended| gone())?;
    outcomes.map_err(|errno| ProbeError::Namespace(errno.into()))
}

/// `unshare` needs a moment to make the namespace; until then the child is still in ours.
async fn wait_for_namespace(pid: &str) -> Result<File, ProbeError> {
    const ATTEMPTS: u32 = 200;
    let own = std::fs::read_link("/proc/self/ns/net").map_err(ProbeError::Namespace)?;
    let path = format!("/proc/{pid}/ns/net");
    for _ in 0..ATTEMPTS {
        match std::fs::read_link(&path) {
            Ok(other) if other != own => return File::open(&path).map_err(ProbeError::Namespace),
            Ok(_not_yet) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            Err(error) => return Err(ProbeError::Namespace(error)),
        }
    }
    Err(ProbeError::Namespace(io::ErrorKind::TimedOut.into()))
}

async fn set_up(
    attachment: &Attachment,
    pid: &str,
    redirects: &[Redirect],
) -> Result<(), ProbeError> {
    let (route_through, mac) = match attachment {
        Attachment::Named(name) => (name.as_str(), NODE_MAC),
        Attachment::Bridged { bridge, mac } => (bridge.as_str(), mac.as_str()),
    };
    let mut outside = match attachment {
        Attachment::Named(name) => vec![
            format!("link add {name} address {NODE_MAC} type veth peer name eth0 netns {pid}"),
            format!("link set {name} up"),
        ],
        Attachment::Bridged { bridge, .. } => vec![
            format!("link add {INTERFACE} type veth peer name eth0 netns {pid}"),
            format!("link set {INTERFACE} master {bridge} up"),
        ],
    };
    let mut inside = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    for redirect in redirects {
        let metadata = redirect.metadata;
        // Addresses for documentation: nobody's pod.
        let (ours, whole) = match metadata {
            IpAddr::V4(_) => ("192.0.2.254", 32),
            IpAddr::V6(_) => ("2001:db8::254", 128),
        };
        let no_detection = if metadata.is_ipv6() { " nodad" } else { "" };
        outside.push(format!("route add {ours}/{whole} dev {route_through}"));
        inside.extend([
            format!("address add {ours}/{whole} dev eth0{no_detection}"),
            format!("route add {metadata}/{whole} dev eth0"),
            format!("neigh add {metadata} lladdr {mac} dev eth0"),
        ]);
    }
    run("ip", &["-batch", "-"], Some(batch(&outside))).await?;
    let target = format!("--net=/proc/{pid}/ns/net");
    run(
        "nsenter",
        &[&target, "ip", "-batch", "-"],
        Some(batch(&inside)),
    )
    .await?;
    Ok(())
}

fn batch(commands: &[String]) -> String {
    commands.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_looks_like_a_pod_to_the_rules() {
        for form in ["cali+", "!eth0", "eni+,vlan+", "+", "averylongname+"] {
            let interfaces: Interfaces = form.parse().unwrap();
            let name = matching_name(&interfaces).unwrap();
            assert!(
                interfaces.matches(&name) && name.len() <= NAME_BYTES_MAX,
                "{name}"
            );
        }
        assert_eq!(matching_name(&"docker0".parse().unwrap()), None);
    }
}
