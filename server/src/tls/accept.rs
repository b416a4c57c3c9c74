//! Accepts connections and shakes hands, many at a time.
//!
//! A client that connects and says nothing costs one place among those shaking hands, for a bounded
//! time; the others do not wait for it. No address gets more than a small part of the places.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use super::Current;
use super::sources::Sources;
use crate::drain::Draining;

/// Handshakes under way at a time: all agents of a large cluster may come back at once.
const HANDSHAKES_MAX: usize = 512;
/// Of those, from one address.
const HANDSHAKES_EACH_MAX: usize = 32;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
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
        let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let sources = Sources::new(HANDSHAKES_EACH_MAX);
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                () = draining.started() => return,
                () = sender.closed() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(unfinished) = sources.begin(peer.ip().to_canonical()) else {
                debug!(%peer, "too many unfinished handshakes with this address");
                continue;
            };
            let acceptor = TlsAcceptor::from(Arc::clone(&current.borrow()));
            let sender = sender.clone();
            tokio::spawn(async move {
                let _place = place;
                // Updates are small and must not wait for more.
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(%peer, %error, "no TCP_NODELAY");
                }
                let handshake = acceptor.accept(stream);
                let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await;
                drop(unfinished);
                match shaken {
                    Ok(Ok(stream)) => {
                        let _served = sender.send(Ok(stream)).await.is_ok();
                    }
                    Ok(Err(error)) => debug!(%peer, %error, "handshake failed"),
                    Err(_elapsed) => debug!(%peer, "handshake took too long"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}
