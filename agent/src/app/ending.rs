//! How the agent ends: told by a signal, or replaced by another.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinError;
use tracing::{info, warn};

use crate::data::Plane;

/// Why the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// By this signal.
    Told(&'static str),
    /// The same, while another agent has the listening sockets, which are its alone from now on.
    Handed(&'static str),
    /// Another agent answers in its place.
    Succeeded,
}

impl Ending {
    pub(super) const fn told(signal: &'static str, are_shared: bool) -> Self {
        if are_shared {
            Self::Handed(signal)
        } else {
            Self::Told(signal)
        }
    }

    /// Whether another agent is there, to which everything belongs that is not this process's.
    pub(super) const fn leaves_another(self) -> bool {
        match self {
            Self::Told(_) => false,
            Self::Handed(_) | Self::Succeeded => true,
        }
    }

    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Told(signal) | Self::Handed(signal) => signal,
            Self::Succeeded => "another agent has taken over",
        }
    }
}

/// Ends the workers once they have answered what they were asked. They may take `grace`; the
/// control thread meanwhile applies updates that parked requests wait for.
pub(super) async fn finish(plane: Plane, ending: Ending, grace: Duration, signals: &mut Signals) {
    let drained = tokio::task::spawn_blocking(move || match ending {
        Ending::Told(_) => plane.drain(grace),
        Ending::Handed(_) | Ending::Succeeded => plane.retire(grace),
    });
    if ending == Ending::Succeeded {
        // Whoever started it tells it to end; were it to end by itself, it would be started again
        // and take its place back. Told already, it still answers what it has begun.
        let (drained, signal) = tokio::join!(drained, signals.next());
        say(drained);
        info!(signal, "ending");
        return;
    }
    tokio::select! {
        drained = drained => say(drained),
        name = signals.next() => warn!(signal = name, "stopping at once"),
    }
}

fn say(drained: Result<bool, JoinError>) {
    match drained {
        Ok(true) => info!("every request was answered"),
        Ok(false) => warn!("requests were still open at the end of --shutdown-grace"),
        Err(error) => warn!(%error, "the workers could not be stopped"),
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
