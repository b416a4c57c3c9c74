//! Flags about how pods' traffic to the metadata address gets here.
//!
//! Shared by the agent itself and by `kiam-agent intercept`, so that an init container and the
//! agent beside it are configured with the same words.

use std::net::IpAddr;
use std::num::NonZeroU16;

use clap::{Args, ValueEnum};

use crate::config::switch::{Switch, is_on};
use crate::config::{Intercept, Interceptor, Invalid};
use crate::intercept::interfaces::Interfaces;
use crate::intercept::rules::Rules;

/// What the operator typed about interception.
#[derive(Debug, Args)]
#[command(next_help_heading = "Interception")]
pub(crate) struct InterceptArgs {
    /// How pods' requests to 169.254.169.254 and fd00:ec2::254 reach this agent.
    ///
    /// With auto, nftables where it can be used, else iptables. With none, the agent's default,
    /// nobody sees to it and nobody looks. An agent beside an init container that installs the
    /// rules is given the same words as it, and only looks whether they are in place.
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

    /// The node's address, to which pods' requests are directed; or one of each family.
    ///
    /// Set it from the downward API: fieldRef status.hostIP, or status.hostIPs.
    #[arg(long, env = "HOST_IP", value_name = "ADDRESS", value_delimiter = ',')]
    host: Vec<IpAddr>,

    /// The interfaces pods' traffic comes in by.
    ///
    /// A name; one that ends in + stands for every interface that begins so; a leading ! means
    /// every interface but those. Several are separated by commas. amazon-vpc-cni: !eth0; calico:
    /// cali+; cilium: lxc+; weave: weave; kube-router: kube-bridge.
    #[arg(long, value_name = "INTERFACE", default_value = "docker0")]
    host_interface: Interfaces,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InterceptorWord {
    Auto,
    Nftables,
    Iptables,
    None,
}

impl InterceptArgs {
    /// `port` is where the agent answers.
    pub(crate) fn validate(self, port: u16) -> Result<Intercept, Invalid> {
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
            (Some(InterceptorWord::Auto), _) => Some(Interceptor::Auto),
            (Some(InterceptorWord::None) | None, false) => None,
            (Some(InterceptorWord::Nftables), true) => {
                return Err(Invalid::Contradiction("--iptables", "--intercept nftables"));
            }
            (Some(InterceptorWord::None), true) => {
                return Err(Invalid::Contradiction("--iptables", "--intercept none"));
            }
        };
        let port = NonZeroU16::new(port);
        let rules = match port {
            None if with.is_some() => {
                return Err(Invalid::Contradiction("--port 0", "--intercept"));
            }
            Some(_) if with.is_some() && host.is_empty() => return Err(Invalid::HostMissing),
            // Nothing can be redirected to loopback. Without interception that is no mistake: it is
            // an agent tried out on one machine, and there is nothing to verify.
            Some(_) if with.is_none() && host.iter().all(IpAddr::is_loopback) => None,
            Some(port) if !host.is_empty() => Some(Rules::try_new(&host, port, host_interface)?),
            Some(_) | None => None,
        };
        Ok(Intercept {
            with,
            remove_at_exit: is_on(iptables_remove),
            rules,
        })
    }
}
