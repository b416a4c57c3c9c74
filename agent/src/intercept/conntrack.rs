//! Cuts connections that pods opened to the metadata service before the rules were there.
//!
//! Over the kernel's own netlink interface: no tool to install, and no time between looking and
//! deleting in which an entry could become another connection's.

mod entry;

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use crate::intercept::rules::Rules;

/// `ENOENT`: it ended by itself in the meantime.
const GONE: i32 = -2;

/// Deletes the entries of pods' connections that bypass the agent, and returns how many.
///
/// # Errors
/// The kernel has no connection tracking over netlink, or `NET_ADMIN` is missing. Connections that
/// were open before the rules then stay open: the caller says so loudly.
pub async fn cut(rules: &Rules) -> io::Result<usize> {
    let hosts: Vec<IpAddr> = rules.hosts().collect();
    let socket = connect()?;
    send(&socket, &entry::dump_request()).await?;
    let mut stale = Vec::new();
    loop {
        let said = receive(&socket).await?;
        stale.extend(
            said.entries
                .into_iter()
                .filter(|entry| entry.is_stale(&hosts)),
        );
        if said.ended {
            check(said.error)?;
            break;
        }
    }
    let mut cut = 0;
    for (entry, sequence) in stale.iter().zip(2..) {
        send(&socket, &entry.delete_request(sequence)).await?;
        let said = receive(&socket).await?;
        if said.error == Some(GONE) {
            continue;
        }
        check(said.error)?;
        tracing::info!(pod = %entry.from(), "cut a connection to the node's metadata service");
        cut += 1;
    }
    Ok(cut)
}

fn connect() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_mut().connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

async fn send(socket: &TokioSocket, request: &[u8]) -> io::Result<()> {
    match socket.send(request).await? {
        sent if sent == request.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

async fn receive(socket: &TokioSocket) -> io::Result<entry::Said> {
    let (datagram, _from) = socket.recv_from_full().await?;
    Ok(entry::read(&datagram))
}

fn check(error: Option<i32>) -> io::Result<()> {
    match error {
        None => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}
