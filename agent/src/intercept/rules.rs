//! What stands between pods and the node's metadata service, as values: no tool, no kernel.
//!
//! Two promises, and each back end renders both:
//! - *redirect*: a pod's connection to port 80 of a metadata address goes to the agent's port on
//!   this node. When no agent listens there, the node's own kernel refuses the connection.
//! - *guard*: nothing is ever forwarded to a metadata address, on any port or protocol and from any
//!   interface. So a wrong interface pattern, a family without a host address or a host address
//!   that is not this node's costs credentials and never hands out the node's.
//!
//! The node's own traffic passes neither: it is not forwarded and does not arrive on an interface.
//! With one exception, on a port at which the metadata service has nothing: what the node itself
//! sends to [`TELLTALE_PORT`] of a metadata address goes to the agent as well. An agent that may not
//! read rules learns in this way that they are there, and lead to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use crate::intercept::interfaces::Interfaces;

/// The metadata service's IPv4 address.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The metadata service's IPv6 address, `fd00:ec2::254`.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// The only port that SDKs use, and the only one that is redirected.
pub const METADATA_PORT: u16 = 80;

/// The *discard* port: answered by the agent for as long as the rules are in place.
pub const TELLTALE_PORT: u16 = 9;

/// Everything the rules depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    host_v4: Option<Ipv4Addr>,
    host_v6: Option<Ipv6Addr>,
    port: NonZeroU16,
    interfaces: Interfaces,
}

/// One family's redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redirect {
    /// Where pods connect to, port [`METADATA_PORT`].
    pub metadata: IpAddr,
    /// The node's address of that family; `None` when it has none, then the guard refuses instead.
    pub host: Option<IpAddr>,
}

/// Why the host addresses cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRules {
    /// Nothing to redirect to.
    #[error("--host (or HOST_IP) is needed to intercept: the node's address that pods can reach")]
    NoHost,
    /// Which one is meant?
    #[error("--host names two addresses of one family, {0} and {1}")]
    TwoOfAFamily(IpAddr, IpAddr),
    /// Pods' connections would end nowhere, or at the metadata service itself.
    #[error("--host {0} is not an address of a node")]
    NotAHost(IpAddr),
}

impl Rules {
    /// `hosts` holds the node's address, or one of each family (`status.hostIPs`).
    pub fn try_new(
        hosts: &[IpAddr],
        port: NonZeroU16,
        interfaces: Interfaces,
    ) -> Result<Self, InvalidRules> {
        let mut host_v4 = None;
        let mut host_v6 = None;
        for &host in hosts {
            if !can_be_a_host(host) {
                return Err(InvalidRules::NotAHost(host));
            }
            let earlier = match host {
                IpAddr::V4(host) => host_v4.replace(host).map(IpAddr::V4),
                IpAddr::V6(host) => host_v6.replace(host).map(IpAddr::V6),
            };
            if let Some(earlier) = earlier.filter(|&earlier| earlier != host) {
                return Err(InvalidRules::TwoOfAFamily(earlier, host));
            }
        }
        if host_v4.is_none() && host_v6.is_none() {
            return Err(InvalidRules::NoHost);
        }
        Ok(Self {
            host_v4,
            host_v6,
            port,
            interfaces,
        })
    }

    /// Both families, whether or not the node has an address of each.
    pub fn redirects(&self) -> [Redirect; 2] {
        [
            Redirect {
                metadata: METADATA_V4.into(),
                host: self.host_v4.map(IpAddr::V4),
            },
            Redirect {
                metadata: METADATA_V6.into(),
                host: self.host_v6.map(IpAddr::V6),
            },
        ]
    }

    /// The node's addresses that pods are redirected to.
    pub fn hosts(&self) -> impl Iterator<Item = IpAddr> {
        self.redirects()
            .into_iter()
            .filter_map(|redirect| redirect.host)
    }

    /// The agent's port.
    pub const fn port(&self) -> u16 {
        self.port.get()
    }

    /// Where pods' requests arrive.
    pub const fn interfaces(&self) -> &Interfaces {
        &self.interfaces
    }
}

/// Whether `ip` is a metadata address, also in its IPv4-mapped form.
pub fn is_metadata(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip == IpAddr::V4(METADATA_V4) || ip == IpAddr::V6(METADATA_V6)
}

/// Loopback is left out as well: without `route_localnet` the kernel drops what is sent there from
/// another interface, and with it other nodes' services on 127.0.0.1 become reachable.
fn can_be_a_host(ip: IpAddr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_metadata(ip))
        && ip == ip.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(hosts: &[&str], expected: &str) {
        let hosts: Vec<IpAddr> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        let rules = Rules::try_new(
            &hosts,
            NonZeroU16::new(8181).unwrap(),
            "cali+".parse().unwrap(),
        );
        let got = rules.map_or_else(
            |error| error.to_string(),
            |rules| format!("{:?}", rules.hosts().collect::<Vec<_>>()),
        );
        assert_eq!(got, expected);
    }

    #[test]
    fn one_address_of_each_family_at_most() {
        check(&["10.0.0.1"], "[10.0.0.1]");
        check(&["fd00::1", "10.0.0.1"], "[10.0.0.1, fd00::1]");
        check(&["10.0.0.1", "10.0.0.1"], "[10.0.0.1]");
        check(
            &["10.0.0.1", "10.0.0.2"],
            "--host names two addresses of one family, 10.0.0.1 and 10.0.0.2",
        );
        check(
            &[],
            "--host (or HOST_IP) is needed to intercept: the node's address that pods can reach",
        );
    }

    #[test]
    fn addresses_that_are_no_nodes_are_refused() {
        for odd in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "169.254.169.254",
            "fd00:ec2::254",
            "::ffff:10.0.0.1",
            "224.0.0.1",
        ] {
            check(&[odd], &format!("--host {odd} is not an address of a node"));
        }
    }
}
