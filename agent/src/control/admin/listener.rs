//! Serves the admin routes to anyone, with a bound on everything.
//!
//! The port may be open to the whole cluster, and it shares its thread with the stream from the
//! server: connections are few, short and cut off when they dawdle. The kubelet asks from the node's
//! own address whether the agent lives, and kills it when nobody answers: so no address has more than
//! a few connections, and some are the node's own.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kiam_wire::process::seldom::Seldom;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::clock::{later, monotonic};

/// Connections at once from other addresses than the node's own; one more is closed.
const STRANGERS_MAX: usize = 24;
/// Connections at once from one such address.
const STRANGER_MAX: usize = 4;
/// Connections at once from each of the node's own: the kubelet's probes, and a scraper beside them.
const OWN_MAX: usize = 8;
/// For a request's head, and for the next request of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// For a whole connection. Scrapers that keep one open come back.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(2);
/// For a request under way when that is over.
const LAST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// After an accept that failed: at the limit of file descriptors, trying at once fails at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 128;

/// Listens. While agents are replaced, two of them share the port.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves for ever; dropped when the agent stops.
pub async fn serve(listener: TcpListener, router: Router) {
    let seats = Seats::default();
    let mut failed = Seldom::default();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let here = stream.local_addr().map(|here| here.ip()).ok();
                // Without a seat it is closed at once.
                if let Some(seat) = seats.take(peer.ip(), here) {
                    tokio::spawn(connection(stream, router.clone(), seat));
                }
            }
            Err(error) => {
                if let Some(times) = failed.happened(monotonic(), later) {
                    warn!(%error, times, "cannot accept an admin connection");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Who is connected.
#[derive(Debug, Clone, Default)]
struct Seats(Arc<Mutex<HashMap<IpAddr, Taken>>>);

#[derive(Debug)]
struct Taken {
    connections: usize,
    is_own: bool,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
struct Seat {
    seats: Seats,
    peer: IpAddr,
}

impl Seats {
    /// `None` when `peer`, or all strangers together, have too many. `here` is the address that it
    /// connected to: who has the same is the node.
    fn take(&self, peer: IpAddr, here: Option<IpAddr>) -> Option<Seat> {
        let peer = peer.to_canonical();
        let is_own = peer.is_loopback() || here.map(|here| here.to_canonical()) == Some(peer);
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let strangers: usize = taken
            .values()
            .filter(|taken| !taken.is_own)
            .map(|taken| taken.connections)
            .sum();
        let there = taken.get(&peer).map_or(0, |taken| taken.connections);
        let is_full = if is_own {
            there >= OWN_MAX
        } else {
            there >= STRANGER_MAX || strangers >= STRANGERS_MAX
        };
        if is_full {
            return None;
        }
        let connections = there + 1;
        taken.insert(
            peer,
            Taken {
                connections,
                is_own,
            },
        );
        Some(Seat {
            seats: self.clone(),
            peer,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = taken.get_mut(&self.peer) {
            there.connections = there.connections.saturating_sub(1);
            if there.connections == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router, seat: Seat) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(64)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = sleep(CONNECTION_TIMEOUT) => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_REQUEST_TIMEOUT, connection.as_mut()).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an admin connection broke");
    }
    drop(seat);
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn strangers_leave_the_node_its_own() {
        let seats = Seats::default();
        let here = Some(ip("10.0.0.1"));
        let take = |peer: &str| seats.take(ip(peer), here);
        let mut held = Vec::new();
        for stranger in 2..100 {
            let peer = format!("10.0.0.{stranger}");
            held.extend((0..=STRANGER_MAX).filter_map(|_| take(&peer)));
        }
        assert_eq!(held.len(), STRANGERS_MAX);
        // As a socket for both families sees it.
        for own in ["10.0.0.1", "::ffff:10.0.0.1", "127.0.0.1", "::1"] {
            assert!(take(own).is_some(), "{own}");
        }
        let node: Vec<_> = (0..=OWN_MAX).filter_map(|_| take("10.0.0.1")).collect();
        assert_eq!(node.len(), OWN_MAX);
        assert!(take("10.0.0.2").is_none());
        held.remove(0);
        assert!(take("10.0.0.2").is_some());
        drop((held, node));
        assert!(seats.0.lock().unwrap().is_empty());
    }

    async fn connect(from: &str, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(ip(from), 0)).unwrap();
        socket.connect(to).await.unwrap()
    }

    #[tokio::test]
    async fn a_hundred_silent_connections_keep_nobody_out() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/livez", get(async || "ok"));
        tokio::spawn(serve(listener, router));
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(connect("127.0.0.2", address).await);
        }
        let mut probe = connect("127.0.0.1", address).await;
        let asked = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        probe.write_all(asked).await.unwrap();
        let mut answer = String::new();
        let read = timeout(PATIENCE, probe.read_to_string(&mut answer));
        read.await.expect("an answer in time").unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        // Those without a seat are closed, and the others when they have said nothing for long.
        for mut stream in silent {
            let mut rest = Vec::new();
            let end = timeout(PATIENCE, stream.read_to_end(&mut rest));
            drop(end.await.expect("closed"));
        }
    }
}
