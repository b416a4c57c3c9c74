//! An agent's control plane without its data plane: what updates make of the store is what counts.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiam_agent::clock::Now;
use kiam_agent::config::{Keepalive, Reconnect, Server};
use kiam_agent::control::client::Follower;
use kiam_agent::control::dial::Resolve;
use kiam_agent::control::kernel_first::KernelFirst;
use kiam_agent::control::mailbox::Mailbox;
use kiam_agent::control::metrics::ControlMetrics;
use kiam_agent::control::served::SharedServed;
use kiam_agent::control::tls;
use kiam_agent::readiness::Following;
use kiam_agent::snapshot::store::Doors;
use kiam_agent::snapshot::{Publisher, Store};
use kiam_wire::report::{Interception, Report};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::certificates::{Files, SERVER_NAME};
use super::server::PATIENCE;

/// A name service that a test writes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names(Arc<Mutex<Vec<SocketAddr>>>);

impl Names {
    pub(crate) fn set(&self, addresses: &[SocketAddr]) {
        *self.0.lock().unwrap() = addresses.to_vec();
    }
}

#[tonic::async_trait]
impl Resolve for Names {
    async fn resolve(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        assert_eq!(host, SERVER_NAME);
        Ok(self.0.lock().unwrap().clone())
    }
}

/// A following control plane.
pub(crate) struct Agent {
    pub(crate) served: SharedServed,
    pub(crate) mailbox: Mailbox,
    pub(crate) report: watch::Sender<Report>,
    pub(crate) names: Names,
    registry: Registry,
    task: JoinHandle<()>,
}

impl Agent {
    pub(crate) fn start(files: &Files, addresses: &[SocketAddr]) -> Self {
        Self::after(KernelFirst::default(), files, addresses)
    }

    /// One that hears `kernel` before it applies anything.
    pub(crate) fn after(kernel: KernelFirst, files: &Files, addresses: &[SocketAddr]) -> Self {
        let server = Server {
            address: format!("{SERVER_NAME}:443").parse().unwrap(),
            ca: files.ca(),
            identity: Some(files.identity()),
            token_file: Some(files.token()),
            connect_timeout: Duration::from_secs(5),
            first_update_timeout: Duration::from_secs(2),
            keepalive: Keepalive {
                every: Duration::from_secs(10),
                timeout: Duration::from_secs(5),
            },
            reconnect: Reconnect {
                delay_min: Duration::from_millis(20),
                delay_max: Duration::from_millis(100),
            },
        };
        let now = Now::read();
        let served = SharedServed::new(Store::new(Doors::Both), Publisher::new(now), now);
        let mailbox = Mailbox::default();
        let names = Names::default();
        names.set(addresses);
        let mut registry = Registry::default();
        let metrics = ControlMetrics::new(&mut registry);
        let (report, report_seen) = watch::channel(Report {
            serving: false,
            interception: Interception::Off,
            driver: "epoll".into(),
        });
        let follower = Follower {
            files: tls::Files::new(&server, metrics.tls.clone()),
            server,
            resolver: Arc::new(names.clone()),
            node_name: "node-a".into(),
            served: served.clone(),
            kernel,
            mailbox: mailbox.clone(),
            report: report_seen,
            metrics,
            following: Following::default(),
        };
        Self {
            served,
            mailbox,
            report,
            names,
            registry,
            task: tokio::spawn(follower.run()),
        }
    }

    /// Names of the pods in the store, sorted.
    pub(crate) fn pods(&self) -> Vec<String> {
        let served = self.served.lock();
        let mut names: Vec<String> = served
            .store()
            .pods()
            .map(|view| view.pod.name.clone())
            .collect();
        names.sort();
        names
    }

    /// Waits until a line of the metrics is as given.
    pub(crate) async fn until_metric(&self, line: &str) {
        let seen = timeout(PATIENCE, async {
            while !self.metrics().lines().any(|other| other == line) {
                sleep(Duration::from_millis(5)).await;
            }
        });
        let seen = seen.await.is_ok();
        assert!(seen, "{line} is not in {}", self.metrics());
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
