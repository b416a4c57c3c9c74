//! Accepts connections and shakes hands, many at a time.
//!
//! A client that connects and does not show who it is costs one place among the strangers, for a
//! bounded time; the others do not wait for it. How the places are shared is in
//! [`sources`](super::sources), and when one is free again in [`guest`](super::guest).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::process::seldom::Seldom;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use super::Current;
use super::guest::Guest;
use super::room::{Room, Seat};
use super::sources::{Sources, Unfinished};
use crate::clock::{Clock, Moment};
use crate::drain::Draining;
use crate::metrics::{ConnectionMetrics, TurnedAway};

/// Who may be connected at a time without having shown who they are: all agents of a large cluster may
/// come back at once.
const STRANGERS_MAX: usize = 512;
/// Of all connections there may be, so many times more than strangers' ones: who has not shown who
/// they are does not keep out those who have.
const SHARE: usize = 4;
/// Of those, from one address.
const STRANGERS_EACH_MAX: usize = 32;
/// After an error of accepting itself (no file descriptors left), so that it is not a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections that have shaken hands.
pub(super) type Connections = ReceiverStream<io::Result<Guest>>;

/// Where agents come in.
#[derive(Debug)]
pub(crate) struct Entrance {
    /// Where they connect.
    pub(crate) listener: TcpListener,
    /// How many of them there may be.
    pub(crate) room: Room,
    /// What became of them.
    pub(crate) metrics: ConnectionMetrics,
    /// The time.
    pub(crate) clock: Clock,
}

/// One that may shake hands.
struct Arrival {
    stream: TcpStream,
    peer: SocketAddr,
    seat: Seat,
    unfinished: Unfinished,
}

/// Accepts until the drain begins.
pub(crate) fn accept(entrance: Entrance, current: Current, mut draining: Draining) -> Connections {
    let (sender, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        let strangers = STRANGERS_MAX.min(entrance.room.max() / SHARE).max(1);
        let sources = Sources::new(strangers, STRANGERS_EACH_MAX);
        let metrics = entrance.metrics.clone();
        let mut doorman = Doorman::new(entrance, sources);
        loop {
            let arrival = tokio::select! {
                () = draining.started() => return,
                () = sender.closed() => return,
                arrival = doorman.next() => arrival,
            };
            let acceptor = TlsAcceptor::from(Arc::clone(&current.borrow()));
            let handshake = shake_hands(acceptor, arrival, metrics.clone());
            let sender = sender.clone();
            tokio::spawn(async move {
                if let Some(guest) = handshake.await {
                    let _served = sender.send(Ok(guest)).await.is_ok();
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

/// Decides who may shake hands.
struct Doorman {
    entrance: Entrance,
    sources: Sources,
    full: Seldom<Moment>,
    failed: Seldom<Moment>,
}

impl Doorman {
    fn new(entrance: Entrance, sources: Sources) -> Self {
        Self {
            entrance,
            sources,
            full: Seldom::default(),
            failed: Seldom::default(),
        }
    }

    /// The next connection that may.
    async fn next(&mut self) -> Arrival {
        loop {
            let (stream, peer) = self.connection().await;
            // Closed at once, so that it looks for another replica rather than wait for this one.
            let Some(seat) = self.entrance.room.seat() else {
                self.is_full();
                continue;
            };
            if let Some(unfinished) = self.sources.place_for(peer.ip()).await {
                return Arrival {
                    stream,
                    peer,
                    seat,
                    unfinished,
                };
            }
            self.entrance.metrics.turned_away(TurnedAway::Address);
            debug!(%peer, "too many of this address have not shown who they are");
        }
    }

    async fn connection(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            let error = match self.entrance.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            if let Some(times) = self
                .failed
                .happened(self.entrance.clock.now().monotonic, Moment::after)
            {
                warn!(%error, times, "cannot accept a connection");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn is_full(&mut self) {
        self.entrance.metrics.turned_away(TurnedAway::Full);
        if let Some(times) = self
            .full
            .happened(self.entrance.clock.now().monotonic, Moment::after)
        {
            warn!(
                times,
                connections_max = self.entrance.room.max(),
                "agents turned away: more connections than the limit of open files allows"
            );
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    arrival: Arrival,
    metrics: ConnectionMetrics,
) -> Option<Guest> {
    let Arrival {
        stream,
        peer,
        seat,
        mut unfinished,
    } = arrival;
    // Updates are small and must not wait for more.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "no TCP_NODELAY");
    }
    let handshake = tokio::time::timeout(unfinished.patience(), acceptor.accept(stream));
    let why = tokio::select! {
        shaken = handshake => match shaken {
            Ok(Ok(stream)) => return Some(Guest::new(stream, seat, unfinished, metrics)),
            Ok(Err(error)) => error.to_string(),
            Err(elapsed) => elapsed.to_string(),
        },
        () = unfinished.evicted() => {
            metrics.turned_away(TurnedAway::Evicted);
            "made room for an address without any".to_owned()
        }
    };
    debug!(%peer, why, "handshake failed");
    None
}
