//! Passes the ports on to the next agent, so that an upgrade resets nobody.
//!
//! From the moment that a successor has the listening sockets they are its as well: shutting them down
//! would end it too, without a word to it. They are this agent's alone again when the successor ends.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::{info, warn};

use super::inheritance::Inheritance;
use crate::handover::directory::Directory;
use crate::handover::listeners::{self, Offer, Place, RELIEVED};
use crate::readiness::{NotYet, Readiness, Reason};

/// After a hand-over that came to nothing.
const RETRY: Duration = Duration::from_millis(100);

/// How many others have this agent's listening sockets: the one before, from which they are, and those to
/// whom they were handed.
///
/// Both of two agents answer on the admin port meanwhile, so a successor that hangs cannot cost the life of
/// the one that answers. Whether the successor is ready decides how an upgrade goes on, so the one before
/// says that it is not.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    others: Arc<AtomicUsize>,
    readiness: Readiness,
}

impl Shared {
    pub(super) fn new(readiness: Readiness) -> Self {
        Self {
            others: Arc::default(),
            readiness,
        }
    }

    pub(super) fn are_shared(&self) -> bool {
        self.others.load(Ordering::Relaxed) > 0
    }

    /// The agent before has them, until this is dropped.
    pub(super) fn with_the_one_before(&self) -> Share {
        self.with(None)
    }

    fn with_a_successor(&self) -> Share {
        self.with(Some(self.readiness.not_yet(Reason::Succeeded)))
    }

    fn with(&self, not_ready: Option<NotYet>) -> Share {
        self.others.fetch_add(1, Ordering::Relaxed);
        Share {
            others: Arc::clone(&self.others),
            _not_ready: not_ready,
        }
    }
}

/// One other has them, until this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    others: Arc<AtomicUsize>,
    _not_ready: Option<NotYet>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.others.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes the offer to take this agent's place, once it is this agent's to make.
///
/// While the agent before still answers, that is the one to succeed: were this one to end before it serves,
/// its offer would stand in the place of the other's and lead nowhere.
#[derive(Debug)]
pub(super) struct Unoffered {
    inheritance: Option<Arc<Inheritance>>,
    sockets: Vec<TcpListener>,
    shared: Shared,
    offered: oneshot::Sender<Succession>,
}

impl Unoffered {
    /// And where the offer is found once it is made.
    pub(super) fn new(
        inheritance: Option<Arc<Inheritance>>,
        sockets: Vec<TcpListener>,
        shared: &Shared,
    ) -> (Self, oneshot::Receiver<Succession>) {
        let (offered, offer) = oneshot::channel();
        let unoffered = Self {
            inheritance,
            sockets,
            shared: shared.clone(),
            offered,
        };
        (unoffered, offer)
    }

    pub(super) fn offer(self) {
        let offer = self
            .inheritance
            .and_then(|it| it.offer(self.sockets, self.shared));
        if let Some(offer) = offer {
            // An agent that is about to end needs nobody in its place.
            drop(self.offered.send(offer));
        }
    }
}

/// The offer to take this agent's place.
#[derive(Debug)]
pub(super) struct Succession {
    offer: UnixListener,
    place: Place,
    sockets: Vec<TcpListener>,
    shared: Shared,
}

impl Succession {
    pub(super) fn open(
        directory: &Directory,
        sockets: Vec<TcpListener>,
        shared: Shared,
    ) -> io::Result<Self> {
        let (offer, place) = Offer::open(directory)?.into_parts();
        Ok(Self {
            offer: UnixListener::from_std(offer)?,
            place,
            sockets,
            shared,
        })
    }

    /// Returns when another agent answers in this one's place. `leave` writes down how things stand
    /// before the successor reads it.
    ///
    /// A successor may take its time, until it has something to answer with; should it end before, this
    /// agent goes on alone, and the next finds its offer again.
    pub(super) async fn succeeded(mut self, leave: impl Fn()) {
        let mut successors = FuturesUnordered::new();
        loop {
            tokio::select! {
                (successor, share) = self.next(&leave) => successors.push(relieved(successor, share)),
                Some(relieved) = successors.next() => match relieved {
                    Ok(()) => return,
                    Err(error) => {
                        warn!(%error, "a successor did not come to serve; this agent goes on");
                        self.offer_again();
                    }
                },
            }
        }
    }

    /// A successor that ended just before it said that it serves has left its own offer, which nobody
    /// listens to.
    fn offer_again(&mut self) {
        let renewed = self.place.renew().and_then(|offer| {
            let Some(offer) = offer else { return Ok(()) };
            let (offer, place) = offer.into_parts();
            (self.offer, self.place) = (UnixListener::from_std(offer)?, place);
            Ok(())
        });
        if let Err(error) = renewed {
            warn!(%error, "the next agent cannot take over without a gap");
        }
    }

    /// The next who has the sockets as well.
    async fn next(&self, leave: impl Fn()) -> (UnixStream, Share) {
        loop {
            match self.hand(&leave).await {
                Ok(successor) => {
                    info!("another agent takes over");
                    return (successor, self.shared.with_a_successor());
                }
                Err(error) => {
                    warn!(%error, "a successor was not given the ports; this agent goes on");
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Safe to cancel: what follows the accept does not wait.
    async fn hand(&self, leave: impl Fn()) -> io::Result<UnixStream> {
        let (successor, _address) = self.offer.accept().await?;
        leave();
        let successor = successor.into_std()?;
        listeners::hand(&successor, &self.sockets)?;
        successor.set_nonblocking(true)?;
        UnixStream::from_std(successor)
    }
}

/// Returns when the successor serves.
///
/// # Errors
/// It has ended.
async fn relieved(mut successor: UnixStream, _share: Share) -> io::Result<()> {
    let mut said = [0; RELIEVED.len()];
    successor.read_exact(&mut said).await?;
    Ok(())
}
