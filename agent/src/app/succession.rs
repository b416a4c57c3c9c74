//! Passes the ports on to the next agent, so that an upgrade resets nobody.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::handover::directory::Directory;
use crate::handover::listeners::{self, Offer, RELIEVED};

/// A successor that does not serve by then never will.
const START_TIME_MAX: Duration = Duration::from_secs(30);
/// After a hand-over that came to nothing.
const RETRY: Duration = Duration::from_millis(100);

/// The offer to take this agent's place.
#[derive(Debug)]
pub(super) struct Succession {
    offer: UnixListener,
    sockets: Vec<TcpListener>,
}

impl Succession {
    pub(super) fn open(directory: &Directory, sockets: Vec<TcpListener>) -> io::Result<Self> {
        let offer = Offer::open(directory)?.into_socket();
        Ok(Self {
            offer: UnixListener::from_std(offer)?,
            sockets,
        })
    }

    /// Returns when another agent answers in this one's place. `leave` writes down how things stand
    /// before the successor reads it.
    pub(super) async fn succeeded(self, leave: impl Fn()) {
        while let Err(error) = self.hand(&leave).await {
            warn!(%error, "a successor did not come to serve; this agent goes on");
            sleep(RETRY).await;
        }
    }

    async fn hand(&self, leave: impl Fn()) -> io::Result<()> {
        let (successor, _address) = self.offer.accept().await?;
        leave();
        let successor = successor.into_std()?;
        listeners::hand(&successor, &self.sockets)?;
        successor.set_nonblocking(true)?;
        let mut successor = UnixStream::from_std(successor)?;
        info!("another agent takes over");
        let mut said = [0; RELIEVED.len()];
        timeout(START_TIME_MAX, successor.read_exact(&mut said)).await??;
        Ok(())
    }
}
