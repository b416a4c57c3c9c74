//! Flags about how pods' traffic to the metadata address gets here.
//!
//! Shared by the agent itself and by `kiam-agent intercept`, so that an init container and the
//! agent beside it are configured with the same words.

use std::net::IpAddr;

use clap::{Args, ValueEnum};

use crate::config::interface::HostInterface;
use crate::config::switch::{Switch, is_on};
use crate::config::{Intercept, Interceptor, Invalid};

/// What the operator typed about interception.
#[derive(Debug, Args)]
#[command(next_help_heading = "Interception")]
pub(crate) struct InterceptArgs {
    /// How pods' requests to 169.254.169.254 and fd00:ec2::254 reach this agent.
    ///
    /// With none, the default, someone else sees to it: kiam-agent intercept install in an init
    /// container, or nobody, where only --container-credentials-listen is used.
    #[arg(long, value_name = "HOW", value_enum)]
    intercept: Option<InterceptorWord>,

    /// kiam's spelling of --intercept iptables.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    iptables: Option<Switch>,

    /// Remove the rules when the agent stops.
    ///
    /// Unlike in kiam this is off by default: without the rules pods reach the node's own
    /// credentials for as long as no agent runs.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    iptables_remove: Option<Switch>,

    /// The node's address, to which pods' requests are directed.
    ///
    /// Set it from the downward API: fieldRef status.hostIP.
    #[arg(long, env = "HOST_IP", value_name = "ADDRESS")]
    host: Option<IpAddr>,

    /// The interfaces pods' traffic comes in by.
    ///
    /// A name; one that ends in + stands for every interface that begins so; a leading ! means
    /// every interface but those. amazon-vpc-cni: !eth0; calico: cali+; cilium: lxc+; weave:
    /// weave; kube-router: kube-bridge.
    #[arg(long, value_name = "INTERFACE", default_value = "docker0")]
    host_interface: HostInterface,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InterceptorWord {
    Nftables,
    Iptables,
    None,
}

impl InterceptArgs {
    pub(crate) fn validate(self) -> Result<Intercept, Invalid> {
        let Self {
            intercept,
            iptables,
            iptables_remove,
            host,
            host_interface,
        } = self;
        let with = match (intercept, is_on(iptables)) {
            (Some(InterceptorWord::Iptables), _) | (None, true) => Some(Interceptor::Iptables),
            (Some(InterceptorWord::Nftables), false) => Some(Interceptor::Nftables),
            (Some(InterceptorWord::None) | None, false) => None,
            (Some(InterceptorWord::Nftables), true) => {
                return Err(Invalid::Contradiction("--iptables", "--intercept nftables"));
            }
            (Some(InterceptorWord::None), true) => {
                return Err(Invalid::Contradiction("--iptables", "--intercept none"));
            }
        };
        if with.is_some() && host.is_none() {
            return Err(Invalid::HostMissing);
        }
        if host.is_some_and(|host| host.is_unspecified() || host.is_multicast()) {
            return Err(Invalid::Host);
        }
        Ok(Intercept {
            with,
            remove_at_exit: is_on(iptables_remove),
            host,
            interface: host_interface,
        })
    }
}
