//! The ports of the agent, from its configuration.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::Context as _;
use kiam_wire::process;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::TcpListener;
use tracing::info;
use zeroize::Zeroizing;

use crate::config::Pods;
use crate::control::admin::listener;
use crate::data::{DataConfig, Limits, TokenKey};
use crate::intercept::witness::Witness;
use crate::open_files;
use crate::readiness::Following;
use crate::snapshot::store::Doors;

/// Listens on the admin port, or goes on where the agent before did: its socket is taken out of
/// `inherited`.
pub(super) fn bind_admin(
    address: Option<SocketAddr>,
    inherited: &mut Vec<std::net::TcpListener>,
) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = address.map(reachable) else {
        return Ok(None);
    };
    let is_here =
        |socket: &mut std::net::TcpListener| socket.local_addr().is_ok_and(|at| at == address);
    let inherited = inherited.extract_if(.., is_here).next();
    let listener = match inherited {
        Some(inherited) => TcpListener::from_std(inherited)?,
        None => listener::bind(address)
            .with_context(|| format!("cannot listen on --admin-listen-addr {address}"))?,
    };
    info!(address = %listener.local_addr()?, "admin port");
    Ok(Some(listener))
}

/// Which doors the snapshots are for.
pub(super) const fn of(pods: &Pods) -> Doors {
    match pods.container {
        Some(_) => Doors::Both,
        None => Doors::Metadata,
    }
}

/// What the data plane shares with the control side, beside the snapshot.
pub(super) struct Shared {
    pub(super) token_key: TokenKey,
    pub(super) witness: Option<Arc<Witness>>,
    pub(super) following: Following,
    /// There is nothing to answer with yet, and somebody else who can.
    pub(super) closed: bool,
}

pub(super) fn data_config(pods: Pods, limits: Limits, shared: Shared) -> DataConfig {
    let Shared {
        token_key,
        witness,
        following,
        closed,
    } = shared;
    let Pods {
        listen,
        workers,
        imds_v2_only,
        token_hop_limit,
        min_remaining: _,
        container,
        passthrough,
        region,
        availability_zone,
        allow_ip_query,
        audit_log,
    } = pods;
    let may_open = process::open_files::max();
    let limits = open_files::fit(limits, workers.count, passthrough.is_some(), may_open);
    let (container_listen, audience) =
        container.map_or_else(Default::default, |door| (door.listen, door.audience));
    DataConfig {
        listen: vec![reachable(listen)],
        container_listen: container_listen.into_iter().map(reachable).collect(),
        workers: workers.count,
        pin_workers: workers.pinned,
        driver: workers.driver,
        scheduling: workers.scheduling,
        imds_v2_only,
        token_hop_limit,
        region,
        availability_zone,
        allow_ip_query,
        passthrough,
        audience,
        token_key,
        audit_log,
        limits,
        witness,
        closed,
        following,
    }
}

/// Every address of both families, or of IPv4 where the kernel has no IPv6.
fn reachable(address: SocketAddr) -> SocketAddr {
    let everywhere = address.is_ipv6() && address.ip().is_unspecified();
    if everywhere && UdpSocket::bind((address.ip(), 0)).is_err() {
        return SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
    }
    address
}

pub(super) fn new_token_key() -> anyhow::Result<Zeroizing<[u8; TokenKey::BYTES]>> {
    let mut key = Zeroizing::new([0; TokenKey::BYTES]);
    SystemRandom::new()
        .fill(key.as_mut_slice())
        .ok()
        .context("the kernel gives no random bytes")?;
    Ok(key)
}
