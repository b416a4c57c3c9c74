//! Listening sockets, bound before any worker starts, so that a conflict is known at once.
//!
//! Every worker has its own socket on every address (`SO_REUSEPORT`); the kernel spreads the
//! connections. The first socket of an address is bound without sharing being possible with other
//! programs by accident: the kernel lets only sockets of the same user share.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::park_timeout;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;

/// Connections that wait to be accepted. The kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// An address that is taken is tried so often, so far apart: a second in all.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// One address, listened on once per worker.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    pub(super) sockets: Vec<TcpListener>,
    /// Somebody else has every one of them too.
    pub(super) shared: bool,
}

/// Listens on `address` `workers` times. Port 0 picks one port for all of them. What `inherited` has
/// on this address is taken out and used, all of it: connections wait there.
pub(super) fn listen(
    address: SocketAddr,
    workers: usize,
    inherited: &mut Vec<TcpListener>,
) -> Result<Listening, StartError> {
    let refused = |source| StartError::Bind { address, source };
    // Sharing between workers would also let another agent of this user listen beside this one
    // unnoticed; a first socket without sharing finds out.
    let is_here = |socket: &mut TcpListener| socket.local_addr().is_ok_and(|at| at == address);
    let mut sockets: Vec<TcpListener> = inherited.extract_if(.., is_here).collect();
    let shared = sockets.len() >= workers;
    let actual = if sockets.is_empty() {
        let first = bind_first(address).map_err(refused)?;
        first.local_addr().map_err(refused)?
    } else {
        address
    };
    while sockets.len() < workers {
        sockets.push(bind(actual, Sharing::Yes).map_err(refused)?);
    }
    Ok(Listening {
        address: actual,
        sockets,
        shared,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    No,
    Yes,
}

/// The kernel closes the sockets of a process that used io_uring a moment after the process has
/// ended, 10 ms as seen; an agent that is started in its place must not fail over that.
fn bind_first(address: SocketAddr) -> io::Result<TcpListener> {
    for _ in 0..BUSY_TRIES {
        match bind(address, Sharing::No) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => park_timeout(BUSY_PAUSE),
            bound_or_refused => return bound_or_refused,
        }
    }
    bind(address, Sharing::No)
}

fn bind(address: SocketAddr, sharing: Sharing) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` is for both families; an IPv4 peer is then unwrapped to its own form.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if sharing == Sharing::Yes {
        socket.set_reuse_port(true)?;
    }
    // The runtime's epoll driver needs it so, and the ring does not mind.
    socket.set_nonblocking(true)?;
    // Inherited by every accepted connection: a send is one write, and it leaves at once.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    if sharing == Sharing::Yes {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}
