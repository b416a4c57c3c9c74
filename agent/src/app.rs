//! Puts the agent together: `build` binds, [`App::run`] serves until it is told to stop.
//!
//! Nothing here waits for a server. By the time `build` returns every port is open and, if an
//! earlier agent left something, pods are being answered from it.

mod doors;
mod ending;
mod fencing;
mod inheritance;
mod interception;
mod parts;
mod rooms;
mod succession;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::report::Report;
use tokio::net::{TcpListener, UnixDatagram};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::info;

use self::ending::{Ending, Signals};
use self::fencing::Fencing;
use self::inheritance::{Inheritance, Known};
use self::interception::Interception;
use self::succession::{Shared, Unoffered};
use crate::clock::Now;
use crate::config::{Config, Node};
use crate::control::admin::Admin;
use crate::control::client::Follower;
use crate::control::kernel_first::kernel_first;
use crate::control::mailbox;
use crate::control::served::SharedServed;
use crate::data::Plane;
use crate::fence::Fence;
use crate::handover::listeners::Predecessor;
use crate::handover::snapshot::Addresses;
use crate::hardening;
use crate::intercept::rules::Rules;
use crate::readiness::{Following, NotYet, Readiness, Reason};
use crate::snapshot::store::Doors;
use crate::snapshot::{Publisher, Store};

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
    let mut registry = parts::registry(&served, pods.min_remaining, started_at, &readiness);
    let witness = intercept.with.map(|_| Arc::default());
    let following = Following::default();
    let shared = doors::Shared {
        token_key: parts::token_key(inheritance)?,
        witness: witness.clone(),
        following: following.clone(),
        closed: inherited.predecessor.is_some() && !served.lock().store().can_answer(),
    };
    let data = doors::data_config(pods, limits, shared);
    let plane = parts::start(sockets, data, &served, &mut registry)?;
    let first = parts::first_report(&intercept, plane.driver().name);
    let (report, seen) = watch::channel(first);
    let mut follower = parts::follower(server, &node.name, &served, seen, &mut registry);
    follower.following = following;
    let admin_listening = admin_listener.as_ref().map(TcpListener::local_addr);
    let remove_rules = parts::rules_to_remove(&intercept);
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
    hardening::while_serving(interception.is_some());
    drop(starting);
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
    let kernel = fencing::begin(&mut store, &addresses, now).await;
    if let Some(inheritance) = &inheritance {
        inheritance.doubt(&mut store, kernel.as_ref().map(|_| &addresses));
    }
    let inherited = Inherited {
        inheritance,
        addresses,
        kernel,
        sockets,
        predecessor,
    };
    (inherited, store)
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
            mut follower,
            report,
            readiness,
            no_snapshot,
            inherited:
                Inherited {
                    inheritance,
                    addresses,
                    kernel,
                    sockets: _,
                    predecessor,
                },
            interception,
            remove_rules,
            shutdown_grace,
        } = self;
        // Dropping the set ends what is in it, which is all there is to stop on this thread.
        let mut rooms = JoinSet::new();
        let report = Arc::new(report);
        let waiting = UnixDatagram::from_std(plane.waiting()?)?;
        rooms.spawn(mailbox::collect(waiting, follower.mailbox.clone()));
        let shared = Shared::new(readiness.clone());
        let predecessor = predecessor.map(|it| (it, shared.with_the_one_before()));
        let before = (predecessor, plane.ringer());
        // What the successor does in our place ends once there is one.
        let mut sockets = plane.sockets()?;
        let mut replaced = rooms::serve_admin(admin, &mut rooms, &mut sockets)?;
        let (unoffered, offer) = Unoffered::new(inheritance.clone(), sockets, &shared);
        let reported = Arc::clone(&report);
        let announce = rooms::announce(served.clone(), reported, no_snapshot, before, unoffered);
        rooms.spawn(announce);
        rooms.spawn(rooms::tidy(served.clone()));
        rooms.spawn(rooms::muster(plane.present()));
        let (kernel_first, updates) = kernel_first();
        follower.kernel = kernel_first;
        rooms.spawn(follower.run());
        if let Some(interception) = interception {
            rooms.spawn(interception.run(report));
        }
        let known = Known::new(addresses.clone());
        rooms.spawn(Fencing::new(served.clone(), known.clone(), addresses, updates).run(kernel));
        if let Some(inheritance) = inheritance.clone() {
            replaced.push(rooms.spawn(inheritance.keep(served.clone(), known.clone())));
        }
        // Kept until it is known how this ends: with it goes the knowledge of who has the sockets.
        let succession = rooms::succession(inheritance.clone(), offer, &served, &known);
        let mut successor = Box::pin(succession);

        let ending = tokio::select! {
            name = signals.next() => Ending::told(name, shared.are_shared()),
            () = &mut successor => Ending::Succeeded,
            failure = rooms::broken(&mut rooms) => return Err(failure),
        };
        info!(reason = ending.text(), ?shutdown_grace, "stopping");
        // A successor that waits for something to answer with has to do without.
        drop(successor);
        let _draining = readiness.not_yet(Reason::Draining);
        if ending.leaves_another() {
            replaced.iter().for_each(AbortHandle::abort);
        }
        ending::finish(plane, ending, shutdown_grace, &mut signals).await;
        if ending.leaves_another() {
            // What is left and the rules are the successor's.
            return Ok(());
        }
        let _left = inheritance.map(|it| it.leave(&served, &known));
        rooms.shutdown().await;
        remove(remove_rules).await
    }
}

/// Last, when nobody is answered any more.
async fn remove(rules: Option<Rules>) -> anyhow::Result<()> {
    if let Some(rules) = rules {
        crate::intercept::remove(&rules).await?;
    }
    Ok(())
}
