//! What goes on beside the workers, on the control thread, for as long as the agent serves.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use kiam_wire::report::Report;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::inheritance::{Inheritance, Known};
use crate::clock::Now;
use crate::control::admin::{self, Admin, listener};
use crate::control::served::SharedServed;
use crate::readiness::NotYet;

/// How often ended credentials and retired snapshots are looked for when nothing is published.
const TICK: Duration = Duration::from_secs(1);

/// Says that a snapshot is being served, as soon as one is.
pub(super) async fn announce(
    served: SharedServed,
    report: Arc<watch::Sender<Report>>,
    no_snapshot: NotYet,
) {
    let mut changes = served.lock().changes();
    while served.lock().store().revision().is_none() {
        // The sender lives as long as what is served, which is held here.
        drop(changes.changed().await);
    }
    drop(no_snapshot);
    report.send_modify(|report| report.serving = true);
    // Without its sender the report counts as final.
    report.closed().await;
}

/// Drops credentials that have ended, and frees what workers have stopped reading since it was
/// replaced.
pub(super) async fn tidy(served: SharedServed) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let now = Now::read();
        let mut served = served.lock();
        served.change(now, |store| store.expire(now) > 0);
        served.reap();
    }
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
    Ok(vec![
        rooms.spawn(listener::serve(listener, admin::router(admin))),
    ])
}

/// Returns when another agent has taken this one's place; never, where none can.
pub(super) async fn succession(
    inheritance: Option<&Inheritance>,
    sockets: Vec<std::net::TcpListener>,
    served: &SharedServed,
    known: &Known,
) {
    let Some((inheritance, offer)) = inheritance.and_then(|it| Some((it, it.offer(sockets)?)))
    else {
        return std::future::pending().await;
    };
    offer.succeeded(|| inheritance.leave(served, known)).await;
}

/// Returns when one of the rooms ends, which none does by itself: what is left of the agent would
/// only look alive.
pub(super) async fn broken(rooms: &mut JoinSet<()>) -> anyhow::Error {
    match rooms.join_next().await {
        Some(Err(error)) => anyhow::Error::new(error).context("a part of the control plane broke"),
        Some(Ok(())) | None => anyhow!("a part of the control plane ended"),
    }
}
