//! An agent's connection once it has shaken hands, and whether anybody is known to be on it.
//!
//! Who has a certificate of the authority is known from the handshake. Who has none is known by the
//! streams that were let in, and until the first of them is a stranger: keeps its place among those
//! shaking hands, may have to make room, and has to leave soon. When the last of its streams has
//! ended a connection has as long again for another.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};
use tracing::debug;

use super::room::Seat;
use super::sources::{Stay, Unfinished};
use crate::metrics::{ConnectionMetrics, TurnedAway};

type Stream = TlsStream<TcpStream>;
type Tls = TlsConnectInfo<TcpConnectInfo>;

/// The connection.
#[derive(Debug)]
pub(crate) struct Guest {
    stream: Stream,
    visit: Visit,
    /// Runs while nobody is known to be here.
    leaves: Option<Pin<Box<Sleep>>>,
    metrics: ConnectionMetrics,
    _seat: Seat,
}

/// What requests know of the connection they came on.
#[derive(Debug, Clone)]
pub struct Visit {
    tls: Tls,
    standing: Arc<Standing>,
}

/// Somebody is known to be on a connection, for as long as this lives.
#[derive(Debug)]
#[must_use = "dropping it makes the connection a stranger's"]
pub struct Known(Arc<Standing>);

#[derive(Debug)]
struct Standing {
    /// How many are known to be on it. A certificate of the authority is one for ever.
    known: AtomicUsize,
    /// Its place among strangers; `None` once somebody was known.
    place: Mutex<Option<Unfinished>>,
}

impl Visit {
    /// The address it comes from, where that is somebody else's than this machine's.
    pub fn address(&self) -> Option<IpAddr> {
        let peer = self.tls.get_ref().remote_addr()?;
        super::sources::stranger(peer.ip())
    }

    /// The client's certificate; the handshake has verified it against the authority.
    pub fn certificate(&self) -> Option<Vec<u8>> {
        let certificates = self.tls.peer_certs()?;
        certificates.first().map(|leaf| leaf.to_vec())
    }

    /// Somebody has shown who they are.
    pub fn known(&self) -> Known {
        self.standing.known.fetch_add(1, Ordering::Relaxed);
        drop(self.standing.place().take());
        Known(Arc::clone(&self.standing))
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.0.known.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Standing {
    /// A poisoned lock guards a place that is still one.
    fn place(&self) -> MutexGuard<'_, Option<Unfinished>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// One that has shaken hands.
    pub(super) fn new(
        stream: Stream,
        seat: Seat,
        place: Unfinished,
        metrics: ConnectionMetrics,
    ) -> Self {
        let tls = stream.connect_info();
        let has_certificate = tls.peer_certs().is_some_and(|all| !all.is_empty());
        let standing = Standing {
            known: AtomicUsize::new(usize::from(has_certificate)),
            place: Mutex::new((!has_certificate).then_some(place)),
        };
        let standing = Arc::new(standing);
        Self {
            stream,
            visit: Visit { tls, standing },
            leaves: None,
            metrics,
            _seat: seat,
        }
    }

    /// An error once it has to leave. Called before anything else is done with the stream, so that
    /// whoever waits for the stream waits for this, too.
    fn may_stay(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let standing = &self.visit.standing;
        if standing.known.load(Ordering::Relaxed) > 0 {
            self.leaves = None;
            return Ok(());
        }
        let mut place = standing.place();
        if let Some(place) = place.as_mut()
            && place.poll_evicted(context).is_ready()
        {
            self.metrics.turned_away(TurnedAway::Evicted);
            return Err(over("made room for an address without any"));
        }
        let stay = place.as_ref().map_or(Stay::USUAL, Unfinished::stay);
        let leaves = self
            .leaves
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(stay.get())));
        if leaves.as_mut().poll(context).is_pending() {
            return Ok(());
        }
        if place.is_some() {
            self.metrics.turned_away(TurnedAway::Silent);
        }
        Err(over("nobody has shown who they are"))
    }
}

/// The place is somebody else's at once, also while requests on the connection are still being ended.
impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.visit.standing.place().take());
    }
}

fn over(why: &'static str) -> io::Error {
    debug!(why, "a connection is closed");
    io::Error::new(io::ErrorKind::ConnectionAborted, why)
}

impl Connected for Guest {
    type ConnectInfo = Visit;

    fn connect_info(&self) -> Visit {
        self.visit.clone()
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.may_stay(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.may_stay(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.may_stay(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.may_stay(context)?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.may_stay(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
