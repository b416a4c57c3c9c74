//! The parts of the agent, each made from what the operator asked for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::report::{Interception as Reported, Report};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::info;

use super::doors;
use super::inheritance::Inheritance;
use crate::clock::Now;
use crate::config::{Intercept, Server};
use crate::control::client::Follower;
use crate::control::dial::Dns;
use crate::control::kernel_first::KernelFirst;
use crate::control::mailbox::Mailbox;
use crate::control::metrics::ControlMetrics;
use crate::control::metrics::served::ServedCollector;
use crate::control::served::SharedServed;
use crate::control::tls::Files;
use crate::data::{self, DataConfig, Plane, StartError, TokenKey};
use crate::intercept::rules::Rules;
use crate::metrics;
use crate::readiness::{Following, Readiness};
use crate::tally::Tallies;

pub(super) fn registry(
    served: &SharedServed,
    min_remaining: Duration,
    started_at: Now,
    readiness: &Readiness,
) -> Registry {
    let mut registry = metrics::registry(started_at, readiness);
    let collector = ServedCollector::new(served.clone(), min_remaining);
    registry.register_collector(Box::new(collector));
    registry
}

/// The key that this node's agents share, or one of this agent's own.
pub(super) fn token_key(inheritance: Option<&Inheritance>) -> anyhow::Result<TokenKey> {
    let fresh = doors::new_token_key()?;
    Ok(inheritance.map_or_else(
        || TokenKey::new(*fresh),
        |inheritance| inheritance.token_key(&fresh),
    ))
}

pub(super) fn first_report(intercept: &Intercept, driver: &str) -> Report {
    Report {
        serving: false,
        interception: match intercept.with {
            Some(_) => Reported::Unverified,
            None => Reported::Off,
        },
        driver: driver.to_owned(),
    }
}

pub(super) fn rules_to_remove(intercept: &Intercept) -> Option<Rules> {
    let ours = intercept.with.is_some() && intercept.remove_at_exit;
    intercept.rules.clone().filter(|_| ours)
}

pub(super) fn follower(
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
        kernel: KernelFirst::default(),
        mailbox: Mailbox::default(),
        report,
        metrics,
        following: Following::default(),
    }
}

/// Starts the workers, and tells the registry what they count.
pub(super) fn start(
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
