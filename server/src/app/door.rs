//! The door to agents: TLS, who is let in, and the two services behind it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kiam_wire::PodUid;
use kiam_wire::process::open_files;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::Server;

use super::{Question, Wiring};
use crate::agent_auth::{Gate, Mode, Placement, TokenReviewer, Tokens};
use crate::config::Config;
use crate::legacy::LegacyService;
use crate::push::AgentWord;
use crate::push::service::{Parts, Push};
use crate::taint::ReadyNodes;
use crate::tls::{self, Entrance, Room};

/// What is behind the door.
pub(super) struct Door {
    pub(super) listener: TcpListener,
    pub(super) files: tls::Files,
    pub(super) words: mpsc::Sender<AgentWord>,
    pub(super) ready: ReadyNodes,
    pub(super) synced: watch::Receiver<bool>,
    pub(super) turned: watch::Receiver<()>,
}

impl Door {
    /// Opens the door to agents.
    pub(super) fn open(self, config: &Config, wiring: &mut Wiring) -> anyhow::Result<()> {
        let (current, task) = tls::start(
            self.files,
            config.clients,
            wiring.metrics.tls.clone(),
            wiring.clock,
            wiring.draining.clone(),
        )?;
        wiring.keep("watching certificates", task);
        let push = Push::new(Parts {
            gate: Arc::new(gate(config, wiring)),
            nodes: Arc::clone(&wiring.nodes),
            words: self.words,
            ready: self.ready,
            synced: self.synced,
            freshness: wiring.freshness.clone(),
            draining: wiring.draining.clone(),
            metrics: wiring.metrics.agents.clone(),
            clock: wiring.clock,
            age_max: config.keeping.age_max,
        });
        let legacy = LegacyService::server(
            config.legacy_agents,
            wiring.questions.clone(),
            self.turned,
            wiring.metrics.agents.clone(),
        );
        let keeping = config.keeping;
        // Streams end by themselves, each at its own time; this is for connections without any.
        let router = Server::builder()
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(keeping.ping_every))
            .http2_keepalive_timeout(Some(keeping.ping_timeout))
            .max_concurrent_streams(64)
            .max_connection_age(keeping.age_max.mul_f64(1.2))
            .max_connection_age_grace(keeping.age_grace)
            .add_service(push)
            .add_service(legacy);
        let entrance = Entrance {
            listener: self.listener,
            room: Room::fit(open_files::max(), config.limits.fetchers),
            metrics: wiring.metrics.connections.clone(),
            clock: wiring.clock,
        };
        let connections = tls::accept(entrance, current, wiring.draining.clone());
        let mut draining = wiring.draining.clone();
        wiring.tasks.spawn(async move {
            let served = router.serve_with_incoming_shutdown(connections, async move {
                draining.started().await;
            });
            Box::pin(served).await.context("serving agents")
        });
        Ok(())
    }
}

fn gate(config: &Config, wiring: &Wiring) -> Gate {
    match config.agent_auth {
        Mode::Certificate => Gate::Certificate(wiring.clock),
        Mode::SharedCertificate => Gate::SharedCertificate(wiring.clock),
        Mode::Token => {
            let reviewer: Arc<dyn TokenReviewer> = Arc::new(wiring.api.clone());
            let placement = Arc::new(OwnerPlacement(wiring.questions.clone()));
            let accounts = config.agent_accounts.clone();
            let tokens = Tokens::new(accounts, reviewer, placement, wiring.clock);
            Gate::Token(Box::new(tokens))
        }
    }
}

/// The owner answers in microseconds, once there is one.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Asks the owner where a pod runs.
#[derive(Debug)]
struct OwnerPlacement(mpsc::Sender<Question>);

impl Placement for OwnerPlacement {
    fn node_of(&self, pod: PodUid) -> Pin<Box<dyn Future<Output = Option<String>> + Send + '_>> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let question = Question::NodeOf { pod, reply };
            let asked = async {
                self.0.send(question).await.ok()?;
                answer.await.ok()?
            };
            // Whoever asks has one of few turns.
            tokio::time::timeout(ANSWER_MAX, asked).await.ok()?
        })
    }
}
