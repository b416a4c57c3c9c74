//! The gRPC face of the push: who calls is found out before anything is read.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use kiam_wire::limits::MESSAGE_BYTES_MAX;
use kiam_wire::proto::{self, NodeCredentials, NodeCredentialsServer};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::stream::{self, Shared};
use super::{AgentWord, Nodes};
use crate::agent_auth::Gate;
use crate::clock::Clock;
use crate::drain::Draining;
use crate::metrics::{AgentMetrics, GrpcCode};
use crate::taint::ReadyNodes;

const SERVICE: &str = "kiam.wire.v1.NodeCredentials";

/// What an agent may send at most: its Hello names every credential it holds.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What the service is made of.
#[derive(Debug)]
pub struct Parts {
    /// Finds out who calls.
    pub gate: Arc<Gate>,
    /// What each node should be serving.
    pub nodes: Arc<Nodes>,
    /// Where agents' words go.
    pub words: mpsc::Sender<AgentWord>,
    /// Where nodes go whose agent is ready.
    pub ready: ReadyNodes,
    /// Whether the cluster is known.
    pub synced: watch::Receiver<bool>,
    /// Ends the streams.
    pub draining: Draining,
    /// What happened.
    pub metrics: AgentMetrics,
    /// The time.
    pub clock: Clock,
    /// How old a stream may become, more or less a tenth.
    pub age_max: Duration,
}

/// The service.
#[derive(Debug)]
pub struct Push {
    gate: Arc<Gate>,
    shared: Shared,
}

impl Push {
    /// The service, ready to be added to a server.
    pub fn server(parts: Parts) -> NodeCredentialsServer<Self> {
        let Parts {
            gate,
            nodes,
            words,
            ready,
            synced,
            draining,
            metrics,
            clock,
            age_max,
        } = parts;
        let shared = Shared {
            nodes,
            words,
            ready,
            synced,
            draining,
            metrics,
            clock,
            age_max,
        };
        NodeCredentialsServer::new(Self { gate, shared })
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl NodeCredentials for Push {
    type FollowStream =
        Pin<Box<dyn Stream<Item = Result<proto::ServerMessage, Status>> + Send + 'static>>;

    async fn follow(
        &self,
        request: Request<Streaming<proto::AgentMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let metrics = self.shared.metrics.clone();
        let (metadata, extensions, inbox) = request.into_parts();
        let identity = match self.gate.identify(&metadata, &extensions).await {
            Ok(identity) => identity,
            Err(refusal) => {
                metrics.auth(refusal.outcome());
                let status = Status::from(&refusal);
                tracing::info!(%refusal, "an agent was turned away");
                metrics.handled("bidi_stream", SERVICE, "Follow", status.code().into());
                return Err(status);
            }
        };
        let (outbox, updates) = mpsc::channel(1);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let ended = stream::serve(shared, identity, inbox, outbox.clone()).await;
            let code = match ended {
                Ok(()) => GrpcCode::Ok,
                Err(status) => {
                    let code = status.code().into();
                    // An agent that does not read does not get to know why, and holds nobody up.
                    let farewell = outbox.send(Err(status));
                    let _read = tokio::time::timeout(Duration::from_secs(5), farewell)
                        .await
                        .is_ok();
                    code
                }
            };
            metrics.handled("bidi_stream", SERVICE, "Follow", code);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(updates))))
    }
}
