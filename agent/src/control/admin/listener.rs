//! Serves the admin routes to anyone, with a bound on everything.
//!
//! The port may be open to the whole cluster, and it shares its thread with the stream from the
//! server: connections are few, short and cut off when they dawdle.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

/// Connections at once; one more waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 32;
/// For a request's head, and for the next request of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
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
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, router.clone(), permit));
            }
            Err(error) => {
                warn!(%error, "cannot accept an admin connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router, permit: OwnedSemaphorePermit) {
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
    drop(permit);
}
