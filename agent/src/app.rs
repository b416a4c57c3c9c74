//! Puts the agent together: `build` binds, [`App::run`] serves until it is told to stop.
//!
//! Nothing here waits for a server. By the time `build` returns every port is open and, if an
//! earlier agent left something, pods are being answered from it.

mod doors;
mod fencing;
mod inheritance;
mod interception;
mod succession;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use kiam_wire::report::{Interception as Reported, Report};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, UnixDatagram};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tracing::{info, warn};

use self::fencing::Fencing;
use self::inheritance::{Inheritance, Known};
use self::interception::Interception;
use crate::clock::Now;
use crate::config::{Config, Intercept, Node, Server};
use crate::control::admin::{self, Admin, listener};
use crate::control::client::Follower;
use crate::control::dial::Dns;
use crate::control::mailbox::{self, Mailbox};
use crate::control::metrics::ControlMetrics;
use crate::control::metrics::served::ServedCollector;
use crate::control::served::SharedServed;
use crate::control::tls::Files;
use crate::data::{self, DataConfig, Plane, StartError, TokenKey};
use crate::fence::Fence;
use crate::handover::listeners::Predecessor;
use crate::handover::snapshot::Addresses;
use crate::intercept::rules::Rules;
use crate::metrics;
use crate::readiness::{Following, NotYet, Readiness, Reason};
use crate::snapshot::store::Doors;
use crate::snapshot::{Publisher, Store};
use crate::tally::Tallies;

/// How often ended credentials and retired snapshots are looked for when nothing is published.
const TICK: Duration = Duration::from_secs(1);

/// The agent, listening everywhere it should.
#[derive(Debug)]
pub struct App {
    signals: Signals,
    plane: Plane,
    admin: Option<(TcpListener, Admin)>,
    admin_listening: Option<SocketAddr>,
    served: SharedServed,
    follower: Follower,
    report: watch::Sender<Report>,
    readiness: Readiness,
    no_snapshot: NotYet,
    inherited: Inherited,
    interception: Option<Interception>,
    /// What to remove at the end, if anything.
    remove_rules: Option<Rules>,
    shutdown_grace: Duration,
}

/// What came from an earlier agent, and where to leave it for the next.
#[derive(Debug)]
struct Inherited {
    inheritance: Option<Arc<Inheritance>>,
    addresses: Addresses,
    /// `None` when the kernel would not say: it is asked again later.
    kernel: Option<Fence>,
    /// Ports that it had open, as long as they are not in use.
    sockets: Vec<std::net::TcpListener>,
    /// It still runs.
    predecessor: Option<Predecessor>,
}

/// Opens every port and starts the workers. Call it on the control thread's runtime.
pub async fn build(config: Config) -> anyhow::Result<App> {
    let started_at = Now::read();
    // From here on a signal stops the agent in order, however early it comes.
    let signals = Signals::new()?;
    let Config {
        server,
        node,
        pods,
        intercept,
        limits,
        log: _,
        ignored: _,
    } = config;
    let readiness = Readiness::new();
    let starting = readiness.not_yet(Reason::Starting);
    let no_snapshot = readiness.not_yet(Reason::NoSnapshot);
    let (mut inherited, store) = take_over(&node, doors::of(&pods), started_at).await;
    let mut sockets = std::mem::take(&mut inherited.sockets);
    let admin_listener = doors::bind_admin(node.admin, &mut sockets)?;
    let inheritance = inherited.inheritance.as_deref();
    let served = SharedServed::new(store, Publisher::new(started_at), started_at);
    let mut registry = metrics::registry(started_at, &readiness);
    let shown = ServedCollector::new(served.clone(), pods.min_remaining);
    registry.register_collector(Box::new(shown));
    let witness = intercept.with.map(|_| Arc::default());
    let following = Following::default();
    let shared = doors::Shared {
        token_key: token_key(inheritance)?,
        witness: witness.clone(),
        following: following.clone(),
    };
    let data = doors::data_config(pods, limits, shared);
    let plane = start(sockets, data, &served, &mut registry)?;
    let (report, report_seen) = watch::channel(first_report(&intercept, plane.driver().name));
    let mut follower = follower(server, &node.name, &served, report_seen, &mut registry);
    follower.following = following;
    let admin_listening = admin_listener.as_ref().map(TcpListener::local_addr);
    let remove_rules = rules_to_remove(&intercept);
    let interception = Interception::new(
        intercept,
        witness,
        &mut registry,
        &readiness,
        started_at,
        |rules| inheritance?.vouched(rules),
    );
    let admin = Admin {
        node_name: node.name.into(),
        driver: plane.driver().name,
        readiness: readiness.clone(),
        registry: Arc::new(registry),
        served: served.clone(),
    };
    drop(starting);
    relieve(inherited.predecessor.take());
    Ok(App {
        signals,
        plane,
        admin: admin_listener.map(|listener| (listener, admin)),
        admin_listening: admin_listening.transpose()?,
        served,
        follower,
        report,
        readiness,
        no_snapshot,
        inherited,
        interception,
        remove_rules,
        shutdown_grace: node.shutdown_grace,
    })
}

fn relieve(predecessor: Option<Predecessor>) {
    if let Some(Err(error)) = predecessor.map(Predecessor::relieve) {
        warn!(%error, "the agent before does not learn that it may go");
    }
}

/// The key that this node's agents share, or one of this agent's own.
fn token_key(inheritance: Option<&Inheritance>) -> anyhow::Result<TokenKey> {
    let fresh = doors::new_token_key()?;
    Ok(inheritance.map_or_else(
        || TokenKey::new(*fresh),
        |inheritance| inheritance.token_key(&fresh),
    ))
}

fn first_report(intercept: &Intercept, driver: &str) -> Report {
    Report {
        serving: false,
        interception: match intercept.with {
            Some(_) => Reported::Unverified,
            None => Reported::Off,
        },
        driver: driver.to_owned(),
    }
}

fn rules_to_remove(intercept: &Intercept) -> Option<Rules> {
    let ours = intercept.with.is_some() && intercept.remove_at_exit;
    intercept.rules.clone().filter(|_| ours)
}

/// What an earlier agent left, and a store with it, in which nobody is answered from an address that
/// changed hands since.
async fn take_over(node: &Node, doors: Doors, now: Now) -> (Inherited, Store) {
    let mut store = Store::new(doors);
    let inheritance = Inheritance::open(node.handover_dir.as_deref(), &node.name).map(Arc::new);
    // First: the running agent then writes down how things stand.
    let taken = inheritance.as_ref().and_then(|it| it.take_listeners());
    let (sockets, predecessor) = taken.map_or_else(Default::default, |taken| {
        (taken.listeners, Some(taken.predecessor))
    });
    let addresses = match &inheritance {
        Some(inheritance) => inheritance.receive(&mut store, now),
        None => Addresses::default(),
    };
    let inherited = Inherited {
        kernel: fencing::begin(&mut store, &addresses, now).await,
        inheritance,
        addresses,
        sockets,
        predecessor,
    };
    (inherited, store)
}

fn follower(
    server: Server,
    node_name: &str,
    served: &SharedServed,
    report: watch::Receiver<Report>,
    registry: &mut Registry,
) -> Follower {
    let metrics = ControlMetrics::new(registry);
    Follower {
        files: Files::new(&server, metrics.tls.clone()),
        server,
        resolver: Arc::new(Dns),
        node_name: node_name.to_owned(),
        served: served.clone(),
        mailbox: Mailbox::default(),
        report,
        metrics,
        following: Following::default(),
    }
}

/// Starts the workers, and tells the registry what they count.
fn start(
    sockets: Vec<std::net::TcpListener>,
    data: DataConfig,
    served: &SharedServed,
    registry: &mut Registry,
) -> anyhow::Result<Plane> {
    let tallies = Tallies::new(data.workers.get());
    let mut served = served.lock();
    tallies.register(registry, served.publisher().reader());
    let plane = data::start_on(sockets, data, served.publisher(), &tallies).map_err(not_started)?;
    served.ring_with(plane.ringer());
    metrics::driver(registry, plane.driver());
    info!(
        listening = ?plane.listening(),
        container = ?plane.container_listening(),
        driver = plane.driver().name,
        reason = plane.driver().reason,
        "answering pods"
    );
    Ok(plane)
}

fn not_started(error: StartError) -> anyhow::Error {
    let taken = matches!(&error, StartError::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse);
    let error = anyhow::Error::new(error);
    if taken {
        error.context(
            "cannot start answering pods; if another agent runs here, give both the same \
             --handover-dir and this one takes over",
        )
    } else {
        error.context("cannot start answering pods")
    }
}

impl App {
    /// Where the metadata door listens.
    pub fn listening(&self) -> &[SocketAddr] {
        self.plane.listening()
    }

    /// Where the container credentials door listens.
    pub fn container_listening(&self) -> &[SocketAddr] {
        self.plane.container_listening()
    }

    /// Where the admin port is.
    pub const fn admin_listening(&self) -> Option<SocketAddr> {
        self.admin_listening
    }

    /// Serves until SIGTERM or SIGINT, then lets requests in flight finish.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self {
            mut signals,
            plane,
            admin,
            admin_listening: _,
            served,
            follower,
            report,
            readiness,
            no_snapshot,
            inherited,
            interception,
            remove_rules,
            shutdown_grace,
        } = self;
        // Dropping the set ends what is in it, which is all there is to stop on this thread.
        let mut rooms = JoinSet::new();
        let report = Arc::new(report);
        let waiting = UnixDatagram::from_std(plane.waiting()?)?;
        rooms.spawn(mailbox::collect(waiting, follower.mailbox.clone()));
        rooms.spawn(announce(served.clone(), Arc::clone(&report), no_snapshot));
        rooms.spawn(tidy(served.clone()));
        rooms.spawn(follower.run());
        // What the successor does in our place ends once there is one.
        let mut sockets = plane.sockets()?;
        let mut replaced = serve_admin(admin, &mut rooms, &mut sockets)?;
        if let Some(interception) = interception {
            rooms.spawn(interception.run(report));
        }
        let Inherited {
            inheritance,
            addresses,
            kernel,
            sockets: _,
            predecessor: _,
        } = inherited;
        let known = Known::new(addresses.clone());
        let fencing = Fencing {
            served: served.clone(),
            known: known.clone(),
            saved: addresses,
        };
        rooms.spawn(fencing.run(kernel));
        if let Some(inheritance) = inheritance.clone() {
            replaced.push(rooms.spawn(inheritance.keep(served.clone(), known.clone())));
        }
        let successor = succession(inheritance.as_deref(), sockets, &served, &known);

        let ending = tokio::select! {
            name = signals.next() => Ending::Told(name),
            () = successor => Ending::Succeeded,
            failure = broken(&mut rooms) => return Err(failure),
        };
        info!(reason = ending.text(), ?shutdown_grace, "stopping");
        let _draining = readiness.not_yet(Reason::Draining);
        if ending == Ending::Succeeded {
            replaced.iter().for_each(AbortHandle::abort);
        }
        finish(plane, ending, shutdown_grace, &mut signals).await;
        if ending == Ending::Succeeded {
            // What is left and the rules are the successor's.
            return Ok(());
        }
        if let Some(inheritance) = inheritance {
            inheritance.leave(&served, &known);
        }
        // Last, when nobody is answered any more.
        rooms.shutdown().await;
        if let Some(rules) = remove_rules {
            crate::intercept::remove(&rules).await?;
        }
        Ok(())
    }
}

/// Adds the admin port to `sockets`.
fn serve_admin(
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

/// Why the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// By this signal.
    Told(&'static str),
    /// Another agent answers in its place.
    Succeeded,
}

impl Ending {
    const fn text(self) -> &'static str {
        match self {
            Self::Told(signal) => signal,
            Self::Succeeded => "another agent has taken over",
        }
    }
}

/// Returns when another agent has taken this one's place; never, where none can.
async fn succession(
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
async fn broken(rooms: &mut JoinSet<()>) -> anyhow::Error {
    match rooms.join_next().await {
        Some(Err(error)) => anyhow::Error::new(error).context("a part of the control plane broke"),
        Some(Ok(())) | None => anyhow!("a part of the control plane ended"),
    }
}

/// Ends the workers once they have answered what they were asked. They may take `grace`; the
/// control thread meanwhile applies updates that parked requests wait for.
async fn finish(plane: Plane, ending: Ending, grace: Duration, signals: &mut Signals) {
    let drained = tokio::task::spawn_blocking(move || match ending {
        Ending::Told(_) => plane.drain(grace),
        Ending::Succeeded => plane.retire(grace),
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

/// Says that a snapshot is being served, as soon as one is.
async fn announce(served: SharedServed, report: Arc<watch::Sender<Report>>, no_snapshot: NotYet) {
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
async fn tidy(served: SharedServed) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        let now = Now::read();
        let mut served = served.lock();
        served.change(now, |store| store.expire(now) > 0);
        served.reap();
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
