//! A pod of our own making: a network namespace, an interface whose name the rules match, and one
//! question from inside.
//!
//! The namespace belongs to a thread. When that ends, with its work or with us, the kernel takes
//! namespace, interfaces and route away: there is nothing to clean up. Of tools it needs `ip` alone.

use std::io;
use std::net::IpAddr;
use std::sync::mpsc;

use nix::sched::{CloneFlags, unshare};
use rustix::thread::gettid;
use tokio::sync::oneshot;

use super::{Outcome, ask};
use crate::intercept::interfaces::{Interfaces, Pattern};
use crate::intercept::rules::{Redirect, Rules};
use crate::intercept::tool::{ToolError, run};

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
    #[error("cannot make a network namespace (SYS_ADMIN is needed): {0}")]
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

type Probed = Result<Vec<(IpAddr, Outcome)>, ProbeError>;

/// Asks from a namespace of our own, one family after the other, where the node has an address.
///
/// # Errors
/// There is no outcome, which proves nothing either way.
pub async fn from_namespace(rules: &Rules) -> Probed {
    let attachment = attachment(rules.interfaces()).await?;
    let redirects: Vec<Redirect> = rules
        .redirects()
        .into_iter()
        .filter(|redirect| redirect.host.is_some())
        .collect();
    let wiring = Wiring::new(&attachment, &redirects);
    let (made, in_being) = oneshot::channel();
    let (wired, is_wired) = mpsc::channel();
    let (done, outcomes) = oneshot::channel();
    let inside = Inside {
        commands: wiring.inside,
        redirects,
        made,
        is_wired,
    };
    std::thread::Builder::new()
        .name("probe".to_owned())
        // Nobody waits any more when the probe was cancelled.
        .spawn(move || drop(done.send(inside.probe())))
        .map_err(ProbeError::Namespace)?;
    let probed = async {
        // An error means that the thread has ended before its time, and says why.
        if let Ok(thread) = in_being.await {
            let commands = wiring.outside.replace(THREAD, &thread.to_string());
            run("ip", &["-batch", "-"], Some(commands)).await?;
            if wired.send(()).is_err() {
                tracing::debug!("the probe's thread has ended before its time");
            }
        }
        let lost = || ProbeError::Namespace(io::ErrorKind::BrokenPipe.into());
        outcomes.await.map_err(|_ended| lost())?
    };
    let probed = probed.await;
    // The end of the thread takes everything away, but a moment later; the next probe may be sooner.
    if let Err(error) = run("ip", &["link", "del", attachment.interface()], None).await {
        tracing::debug!(%error, "the probe's interface was gone already");
    }
    probed
}

/// What the thread in the namespace is given.
struct Inside {
    commands: String,
    redirects: Vec<Redirect>,
    /// Told the thread's id once its namespace is there.
    made: oneshot::Sender<i32>,
    /// Tells that the interface is there; gone when it will never be.
    is_wired: mpsc::Receiver<()>,
}

impl Inside {
    /// Only ever called on a thread that ends with it: there is no way back.
    fn probe(self) -> Probed {
        let Self {
            commands,
            redirects,
            made,
            is_wired,
        } = self;
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| ProbeError::Namespace(errno.into()))?;
        let cancelled = || ProbeError::Namespace(io::ErrorKind::Interrupted.into());
        made.send(gettid().as_raw_nonzero().get())
            .map_err(|_nobody| cancelled())?;
        is_wired.recv().map_err(|_gone| cancelled())?;
        // A runtime of its own: what it starts is started from this thread, in this namespace.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ProbeError::Namespace)?;
        runtime.block_on(run("ip", &["-batch", "-"], Some(commands)))?;
        Ok(redirects
            .iter()
            .map(|redirect| (redirect.metadata, ask(redirect.metadata)))
            .collect())
    }
}

impl Attachment {
    /// Our end.
    fn interface(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Bridged { .. } => INTERFACE,
        }
    }
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

/// Stands for the thread's id, until it is known.
const THREAD: &str = "@THREAD@";

/// What `ip` is told on either side.
struct Wiring {
    outside: String,
    inside: String,
}

impl Wiring {
    fn new(attachment: &Attachment, redirects: &[Redirect]) -> Self {
        let (route_through, mac) = match attachment {
            Attachment::Named(name) => (name.as_str(), NODE_MAC),
            Attachment::Bridged { bridge, mac } => (bridge.as_str(), mac.as_str()),
        };
        let peer = format!("type veth peer name eth0 netns {THREAD}");
        let mut outside = match attachment {
            Attachment::Named(name) => vec![
                format!("link add {name} address {NODE_MAC} {peer}"),
                format!("link set {name} up"),
            ],
            Attachment::Bridged { bridge, .. } => vec![
                format!("link add {INTERFACE} {peer}"),
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
        Self {
            outside: batch(&outside),
            inside: batch(&inside),
        }
    }
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
