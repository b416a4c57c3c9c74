//! Who is in the simulated cluster before anything is measured: nodes, namespaces, and the pods
//! that `up` and `sim` show, one for each way a pod can be answered.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context as _;
use kiam_sim::cluster::{ClusterHandle, NewPod, Phase};

/// The node that the real agent stands on.
pub(crate) const NODE: &str = "node-a";
/// The account of every simulated role.
pub(crate) const ROLE_BASE_ARN: &str = "arn:aws:iam::123456789012:role/";
/// A namespace whose rule permits every role of the account.
pub(crate) const OPEN: &str = "apps";
/// A namespace whose rule permits only roles named `audit-…`.
pub(crate) const NARROW: &str = "locked-down";
/// The namespace of the agents and the server themselves.
pub(crate) const SYSTEM: &str = "kube-system";
/// The agent's ServiceAccount.
pub(crate) const AGENT_ACCOUNT: &str = "kiam-agent";

/// What a pod of the cast is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Credentials of its role.
    Granted,
    /// Refused: its namespace does not permit the role.
    Refused,
    /// It asked for no role.
    NoRole,
}

/// One pod of the cast.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its name.
    pub name: String,
    /// Its address; that of the node for a hostNetwork pod.
    pub ip: IpAddr,
    /// The role it asks for.
    pub role: Option<&'static str>,
    /// What it is answered.
    pub state: State,
    /// It shares the node's address.
    pub host_network: bool,
}

/// The name of the pod that shares the node's network and uses the second door.
pub(crate) const HOST_NETWORK_POD: &str = "host-network";

/// The `index`-th pod address: 127.64.0.1 and up, so that a client on this machine can be that pod.
pub(crate) fn address(index: u32) -> IpAddr {
    // 254 addresses in each /24: an address that ends in 0 or 255 looks like a mistake.
    let (block, last) = (index / 254, index % 254 + 1);
    let start = u32::from(Ipv4Addr::new(127, 64, 0, 0));
    IpAddr::from(Ipv4Addr::from(
        start.saturating_add(block.saturating_mul(256)) + last,
    ))
}

/// How many addresses the cast may use; the load test's own pods come after them.
pub(crate) const CAST_ADDRESSES: u32 = 254;

/// The cast, in the order of its addresses.
pub(crate) fn members() -> Vec<Member> {
    let mut members = Vec::new();
    let mut add = |namespace, name: String, role, state| {
        let index = u32::try_from(members.len()).unwrap_or(u32::MAX);
        members.push(Member {
            namespace,
            name,
            ip: address(index),
            role,
            state,
            host_network: false,
        });
    };
    for role in ["reader", "writer", "batch"] {
        for number in 0..4 {
            add(OPEN, format!("{role}-{number}"), Some(role), State::Granted);
        }
    }
    add(OPEN, "no-role".into(), None, State::NoRole);
    add(NARROW, "refused".into(), Some("reader"), State::Refused);
    members.push(Member {
        namespace: OPEN,
        name: HOST_NETWORK_POD.into(),
        ip: Ipv4Addr::LOCALHOST.into(),
        role: Some("reader"),
        state: State::Granted,
        host_network: true,
    });
    members
}

/// Creates the node, the namespaces, the agent's own pod and the cast.
pub(crate) fn enter(cluster: &ClusterHandle) -> anyhow::Result<()> {
    cluster.create_node(NODE, &[])?;
    let any = format!("{ROLE_BASE_ARN}.*");
    cluster.create_namespace(OPEN, &[("iam.amazonaws.com/permitted", &any)])?;
    let audit = format!("{ROLE_BASE_ARN}audit-.*");
    cluster.create_namespace(NARROW, &[("iam.amazonaws.com/permitted", &audit)])?;
    cluster.create_service_account(SYSTEM, AGENT_ACCOUNT, &[])?;
    cluster.create_pod(
        NewPod::new(SYSTEM, "kiam-agent-0")
            .service_account(AGENT_ACCOUNT)
            .node(NODE)
            .host_network()
            .ip(Ipv4Addr::LOCALHOST.into())
            .phase(Phase::Running),
    )?;
    for member in members() {
        let name = member.name.clone();
        cluster
            .create_pod(pod(member))
            .with_context(|| format!("cannot create pod {name}"))?;
    }
    Ok(())
}

fn pod(member: Member) -> NewPod {
    let mut pod = NewPod::new(member.namespace, member.name)
        .node(NODE)
        .ip(member.ip)
        .phase(Phase::Running);
    if let Some(role) = member.role {
        pod = pod.annotation("iam.amazonaws.com/role", role);
    }
    if member.host_network {
        pod.host_network()
    } else {
        pod
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn addresses_are_distinct_and_plain() {
        let addresses: BTreeSet<_> = (0..1_000).map(address).collect();
        assert_eq!(addresses.len(), 1_000);
        for ip in addresses {
            let IpAddr::V4(ip) = ip else {
                panic!("{ip} is not IPv4")
            };
            assert!(
                ip.is_loopback() && !matches!(ip.octets()[3], 0 | 255),
                "{ip}"
            );
        }
        assert_eq!(address(0), IpAddr::from([127, 64, 0, 1]));
        assert_eq!(address(254), IpAddr::from([127, 64, 1, 1]));
    }

    #[test]
    fn the_cast_shows_every_answer() {
        let members = members();
        let granted = members
            .iter()
            .filter(|m| m.state == State::Granted && !m.host_network);
        assert!(granted.clone().count() >= 10);
        assert_eq!(
            granted
                .filter_map(|m| m.role)
                .collect::<BTreeSet<_>>()
                .len(),
            3
        );
        assert!(members.iter().any(|m| m.state == State::NoRole));
        assert!(members.iter().any(|m| m.state == State::Refused));
        assert!(members.iter().any(|m| m.host_network));
        assert!(members.len() < usize::try_from(CAST_ADDRESSES).unwrap());
    }
}
