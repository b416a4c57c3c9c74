//! Accepts connections and shakes hands, many at a time.
//!
//! A client that connects and says nothing costs one place among those shaking hands, for a bounded
//! time; the others do not wait for it. How the places are shared is in [`sources`](super::sources).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use super::Current;
use super::sources::{Begun, Sources, Unfinished};
use crate::drain::Draining;

/// Handshakes under way at a time: all agents of a large cluster may come back at once.
const HANDSHAKES_MAX: usize = 512;
/// Of those, from one address.
const HANDSHAKES_EACH_MAX: usize = 32;
/// After an error of accepting itself (no file descriptors left), so that it is not a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections that have shaken hands.
pub(super) type Connections = ReceiverStream<io::Result<TlsStream<TcpStream>>>;

/// Accepts until the drain begins.
pub(crate) fn accept(
    listener: TcpListener,
    current: Current,
    mut draining: Draining,
) -> Connections {
    let (sender, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        let sources = Sources::new(HANDSHAKES_MAX, HANDSHAKES_EACH_MAX);
        loop {
            let next = next(&listener, &sources);
            let (stream, peer, unfinished) = tokio::select! {
                () = draining.started() => return,
                () = sender.closed() => return,
                next = next => next,
            };
            let acceptor = TlsAcceptor::from(Arc::clone(&current.borrow()));
            let handshake = shake_hands(acceptor, stream, peer, unfinished);
            let sender = sender.clone();
            tokio::spawn(async move {
                // It keeps its place until someone takes it, so that not too many wait for that.
                if let Some((stream, _unfinished)) = handshake.await {
                    let _served = sender.send(Ok(stream)).await.is_ok();
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

/// The next connection that may shake hands.
async fn next(listener: &TcpListener, sources: &Sources) -> (TcpStream, SocketAddr, Unfinished) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Some(unfinished) = admitted(sources, peer).await {
                    return (stream, peer, unfinished);
                }
                debug!(%peer, "too many unfinished handshakes with this address");
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A place for this peer, when there is one; `None` when its address has enough.
async fn admitted(sources: &Sources, peer: SocketAddr) -> Option<Unfinished> {
    loop {
        match sources.begin(peer.ip()) {
            Begun::Yes(unfinished) => return Some(unfinished),
            Begun::No => return None,
            Begun::Wait => sources.freed().await,
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    mut unfinished: Unfinished,
) -> Option<(TlsStream<TcpStream>, Unfinished)> {
    // Updates are small and must not wait for more.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "no TCP_NODELAY");
    }
    let handshake = tokio::time::timeout(unfinished.patience(), acceptor.accept(stream));
    let why = tokio::select! {
        shaken = handshake => match shaken {
            Ok(Ok(stream)) => return Some((stream, unfinished)),
            Ok(Err(error)) => error.to_string(),
            Err(elapsed) => elapsed.to_string(),
        },
        () = unfinished.evicted() => "made room for an address without any".to_owned(),
    };
    debug!(%peer, why, "handshake failed");
    None
}
