//! What goes on beside the workers, on the control thread, for as long as the agent serves.

use std::io;
use std::os::fd::AsFd as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use futures::FutureExt as _;
use futures::future::FusedFuture as _;
use kiam_wire::report::Report;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{error, warn};

use super::inheritance::{Inheritance, Known};
use super::succession::{Share, Succession, Unoffered};
use crate::clock::Now;
use crate::control::admin::{self, Admin, listener};
use crate::control::served::SharedServed;
use crate::data::{Present, Ringer};
use crate::handover::listeners::Predecessor;
use crate::readiness::NotYet;

/// How often ended credentials and retired snapshots are looked for when nothing is published.
const TICK: Duration = Duration::from_secs(1);

/// Says that a snapshot is being served, as soon as one is, and lets the agent before go.
///
/// Not before: where nothing could be taken over from it and no server can be reached, it is the one that
/// can still answer, for as long as it is let live. Until then this one's workers let nobody in.
pub(super) async fn announce(
    served: SharedServed,
    report: Arc<watch::Sender<Report>>,
    no_snapshot: NotYet,
    (predecessor, doors): (Option<(Predecessor, Share)>, Ringer),
    unoffered: Unoffered,
) {
    let (predecessor, mut share) = predecessor.unzip();
    let mut unoffered = Some(unoffered);
    {
        let alone = async {
            if let Some(predecessor) = &predecessor {
                has_ended(predecessor).await;
            }
            share = None;
            doors.open();
            offer(&mut unoffered);
        };
        let mut alone = pin!(alone.fuse());
        let mut changes = served.lock().changes();
        while !served.lock().store().can_answer() {
            tokio::select! {
                // The sender lives as long as what is served, which is held here.
                changed = changes.changed() => drop(changed),
                () = &mut alone, if !alone.is_terminated() => {}
            }
        }
    }
    doors.open();
    // Before the other is told to go, so that whoever looks finds one of the two.
    offer(&mut unoffered);
    if let Some(Err(error)) = predecessor.map(Predecessor::relieve) {
        warn!(%error, "the agent before does not learn that it may go");
    }
    drop(share);
    drop(no_snapshot);
    report.send_modify(|report| report.serving = true);
    // Without its sender the report counts as final.
    report.closed().await;
}

fn offer(unoffered: &mut Option<Unoffered>) {
    if let Some(unoffered) = unoffered.take() {
        unoffered.offer();
    }
}

/// Returns when the agent before has ended, or cannot be heard.
async fn has_ended(predecessor: &Predecessor) {
    let line = predecessor.line().and_then(UnixStream::from_std);
    let Ok(mut line) = line.inspect_err(|error| warn!(%error, "the agent before is not heard"))
    else {
        return;
    };
    // It says nothing more.
    drop(line.read(&mut [0]).await);
}

/// Drops credentials that have ended, and frees what workers have stopped reading since it was
/// replaced.
pub(super) async fn tidy(served: SharedServed) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let now = Now::read();
        let mut served = served.lock();
        served.expire(now);
        served.reap();
    }
}

/// Returns when a worker has ended by itself: the kernel would go on giving it connections.
pub(super) async fn muster(present: Present) {
    let mut tick = tokio::time::interval(TICK);
    while present.is_everyone() {
        tick.tick().await;
    }
    error!("a worker has ended");
}

/// Adds the admin port to `sockets`.
pub(super) fn serve_admin(
    admin: Option<(TcpListener, Admin)>,
    rooms: &mut JoinSet<()>,
    sockets: &mut Vec<std::net::TcpListener>,
) -> io::Result<Vec<AbortHandle>> {
    let Some((listener, admin)) = admin else {
        return Ok(Vec::new());
    };
    sockets.push(listener.as_fd().try_clone_to_owned()?.into());
    let serving = listener::serve(listener, admin::router(admin));
    Ok(vec![rooms.spawn(serving)])
}

/// Returns when another agent has taken this one's place; never, where none can.
pub(super) async fn succession(
    inheritance: Option<Arc<Inheritance>>,
    offer: oneshot::Receiver<Succession>,
    served: &SharedServed,
    known: &Known,
) {
    let (Some(inheritance), Ok(offer)) = (inheritance, offer.await) else {
        return std::future::pending().await;
    };
    let leave = || {
        // A successor that cannot read how things stand waits for a server.
        let _left = inheritance.leave(served, known);
    };
    offer.succeeded(leave).await;
}

/// Returns when one of the rooms ends, which none does by itself: what is left of the agent would
/// only look alive.
pub(super) async fn broken(rooms: &mut JoinSet<()>) -> anyhow::Error {
    match rooms.join_next().await {
        Some(Err(error)) => anyhow::Error::new(error).context("a part of the control plane broke"),
        Some(Ok(())) | None => anyhow!("a worker or a part of the control plane ended"),
    }
}
