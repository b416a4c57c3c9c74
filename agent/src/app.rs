//! Puts the agent together: `build` binds, [`App::run`] serves until it is told to stop.
//!
//! Nothing here waits for a server. By the time `build` returns every port is open and, if an
//! earlier agent left something, pods are being answered from it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kiam_wire::report::{Interception, Report};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::{TcpListener, UnixDatagram};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::clock::Now;
use crate::config::{Config, Pods};
use crate::control::admin::{self, Admin, listener};
use crate::control::client::Follower;
use crate::control::dial::Dns;
use crate::control::mailbox::{self, Mailbox};
use crate::control::metrics::ControlMetrics;
use crate::control::metrics::served::ServedCollector;
use crate::control::served::SharedServed;
use crate::control::tls::Files;
use crate::data::{self, DataConfig, Limits, Plane, TokenKey};
use crate::metrics;
use crate::readiness::{NotYet, Readiness, Reason};
use crate::snapshot::store::Doors;
use crate::snapshot::{Publisher, Store};
use crate::tally::Tallies;

/// How often retired snapshots are looked after when nothing is published.
const TICK: Duration = Duration::from_secs(1);

/// The agent, listening everywhere it should.
#[derive(Debug)]
pub struct App {
    plane: Plane,
    admin: Option<(TcpListener, Admin)>,
    admin_listening: Option<SocketAddr>,
    served: SharedServed,
    follower: Follower,
    report: watch::Sender<Report>,
    readiness: Readiness,
    no_snapshot: NotYet,
    shutdown_grace: Duration,
}

/// Opens every port and starts the workers. Call it on the control thread's runtime.
pub fn build(config: Config) -> anyhow::Result<App> {
    let started_at = Now::read();
    let Config {
        server,
        node,
        pods,
        intercept: _,
        limits,
        log: _,
        ignored: _,
    } = config;
    let readiness = Readiness::new();
    let starting = readiness.not_yet(Reason::Starting);
    let no_snapshot = readiness.not_yet(Reason::NoSnapshot);

    let doors = match pods.container {
        Some(_) => Doors::Both,
        None => Doors::Metadata,
    };
    let store = Store::new(doors);
    let served = SharedServed::new(store, Publisher::new(started_at), started_at);

    let tallies = Tallies::new(pods.workers.count.get());
    let mut registry = metrics::registry(started_at);
    let min_remaining = pods.min_remaining;
    let data = data_config(pods, limits, new_token_key()?);
    let plane = {
        let served = served.lock();
        tallies.register(&mut registry, served.publisher().reader());
        data::start(data, served.publisher(), &tallies).context("cannot start answering pods")?
    };
    served.lock().ring_with(plane.ringer());
    metrics::driver(&mut registry, plane.driver());
    let driver = plane.driver().name;
    info!(
        listening = ?plane.listening(),
        container = ?plane.container_listening(),
        driver,
        reason = plane.driver().reason,
        "answering pods"
    );

    let control_metrics = ControlMetrics::new(&mut registry);
    registry.register_collector(Box::new(ServedCollector::new(
        served.clone(),
        min_remaining,
    )));
    let (report, report_seen) = watch::channel(Report {
        serving: false,
        interception: Interception::Off,
        driver: driver.to_owned(),
    });
    let files = Files::new(&server, control_metrics.tls.clone());
    let follower = Follower {
        server,
        resolver: Arc::new(Dns),
        node_name: node.name.clone(),
        served: served.clone(),
        mailbox: Mailbox::default(),
        report: report_seen,
        files,
        metrics: control_metrics,
    };
    let admin = Admin {
        node_name: node.name.into(),
        driver,
        readiness: readiness.clone(),
        registry: Arc::new(registry),
        served: served.clone(),
    };
    let admin = node
        .admin
        .map(|address| bind_admin(address, admin))
        .transpose()?;
    let admin_listening = match &admin {
        Some((listener, _)) => Some(listener.local_addr()?),
        None => None,
    };
    drop(starting);
    Ok(App {
        plane,
        admin,
        admin_listening,
        served,
        follower,
        report,
        readiness,
        no_snapshot,
        shutdown_grace: node.shutdown_grace,
    })
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
            plane,
            admin,
            admin_listening: _,
            served,
            follower,
            report,
            readiness,
            no_snapshot,
            shutdown_grace,
        } = self;
        let mut signals = Signals::new()?;
        // Dropping the set ends what is in it, which is all there is to stop on this thread.
        let mut rooms = JoinSet::new();
        let waiting = UnixDatagram::from_std(plane.waiting()?)?;
        rooms.spawn(mailbox::collect(waiting, follower.mailbox.clone()));
        rooms.spawn(announce(served.clone(), report, no_snapshot));
        rooms.spawn(tidy(served));
        rooms.spawn(follower.run());
        if let Some((listener, admin)) = admin {
            rooms.spawn(listener::serve(listener, admin::router(admin)));
        }

        let name = signals.next().await;
        info!(signal = name, ?shutdown_grace, "stopping");
        let _draining = readiness.not_yet(Reason::Draining);
        let drained = tokio::task::spawn_blocking(move || plane.drain(shutdown_grace));
        tokio::select! {
            drained = drained => match drained {
                Ok(true) => info!("every request was answered"),
                Ok(false) => warn!("requests were still open at the end of --shutdown-grace"),
                Err(error) => warn!(%error, "the workers could not be stopped"),
            },
            name = signals.next() => warn!(signal = name, "stopping at once"),
        }
        Ok(())
    }
}

/// Says that a snapshot is being served, as soon as one is.
async fn announce(served: SharedServed, report: watch::Sender<Report>, no_snapshot: NotYet) {
    let mut changes = served.lock().changes();
    while served.lock().store().revision().is_none() {
        if changes.changed().await.is_err() {
            return;
        }
    }
    drop(no_snapshot);
    report.send_modify(|report| report.serving = true);
    // Without its sender the report counts as final.
    report.closed().await;
}

/// Frees what workers have stopped reading since it was replaced.
async fn tidy(served: SharedServed) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        served.lock().reap();
    }
}

/// SIGTERM and SIGINT.
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

fn bind_admin(address: SocketAddr, admin: Admin) -> anyhow::Result<(TcpListener, Admin)> {
    let listener = listener::bind(reachable(address))
        .with_context(|| format!("cannot listen on --admin-listen-addr {address}"))?;
    info!(address = %listener.local_addr()?, "admin port");
    Ok((listener, admin))
}

fn data_config(pods: Pods, limits: Limits, token_key: TokenKey) -> DataConfig {
    let Pods {
        listen,
        workers,
        imds_v2_only,
        token_hop_limit,
        min_remaining: _,
        container,
        passthrough,
        region,
        availability_zone,
        allow_ip_query,
        audit_log,
    } = pods;
    let (container_listen, audience) =
        container.map_or_else(Default::default, |door| (door.listen, door.audience));
    DataConfig {
        listen: vec![reachable(listen)],
        container_listen: container_listen.into_iter().map(reachable).collect(),
        workers: workers.count,
        pin_workers: workers.pinned,
        driver: workers.driver,
        scheduling: workers.scheduling,
        imds_v2_only,
        token_hop_limit,
        region,
        availability_zone,
        allow_ip_query,
        passthrough,
        audience,
        token_key,
        audit_log,
        limits,
    }
}

/// Every address of both families, or of IPv4 where the kernel has no IPv6.
fn reachable(address: SocketAddr) -> SocketAddr {
    let everywhere = address.is_ipv6() && address.ip().is_unspecified();
    if everywhere && UdpSocket::bind((address.ip(), 0)).is_err() {
        return SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
    }
    address
}

fn new_token_key() -> anyhow::Result<TokenKey> {
    let mut key = [0; TokenKey::BYTES];
    SystemRandom::new()
        .fill(&mut key)
        .ok()
        .context("the kernel gives no random bytes")?;
    Ok(TokenKey::new(key))
}
