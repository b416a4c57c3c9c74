//! The gRPC face of the push: who calls is found out before anything is read.
//!
//! It stands in for the service that tonic would generate, for the sake of its buffers: see
//! [`frames`](super::frames).

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use kiam_wire::proto;
use tokio::sync::{mpsc, watch};
use tonic::body::Body;
use tonic::codec::BufferSettings;
use tonic::codegen::{BoxFuture, Service};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Status, Streaming};
use tonic_prost::ProstDecoder;

use super::frames::Frames;
use super::stream::{self, Caller, Shared};
use super::{AgentWord, Nodes};
use crate::agent_auth::Gate;
use crate::clock::Clock;
use crate::drain::Draining;
use crate::freshness::Freshness;
use crate::metrics::{AgentMetrics, GrpcCode};
use crate::taint::ReadyNodes;
use crate::tls::Visit;

const SERVICE: &str = "kiam.wire.v1.NodeCredentials";
const FOLLOW: &str = "/kiam.wire.v1.NodeCredentials/Follow";

/// What an agent may send at most: its Hello names every credential it holds.
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a stream's reading starts with: after its Hello an agent only says how far it is.
const REQUEST_BUFFER_BYTES: usize = 512;

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
    /// Whether what is known of it may be old.
    pub freshness: Freshness,
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
#[derive(Debug, Clone)]
pub struct Push {
    gate: Arc<Gate>,
    shared: Shared,
}

impl Push {
    /// The service, ready to be added to a server.
    pub fn new(parts: Parts) -> Self {
        let Parts {
            gate,
            nodes,
            words,
            ready,
            synced,
            freshness,
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
            freshness,
            sent_on: Arc::default(),
            draining,
            metrics,
            clock,
            age_max,
        };
        Self { gate, shared }
    }

    async fn follow(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let metrics = self.shared.metrics.clone();
        let (head, body) = request.into_parts();
        let metadata = MetadataMap::from_headers(head.headers);
        let identity = match self.gate.identify(&metadata, &head.extensions).await {
            Ok(identity) => identity,
            Err(refusal) => {
                metrics.auth(refusal.outcome());
                let status = Status::from(&refusal);
                tracing::info!(%refusal, "an agent was turned away");
                metrics.handled("bidi_stream", SERVICE, "Follow", status.code().into());
                return Err(status);
            }
        };
        let caller = Caller {
            identity,
            visit: head.extensions.get::<Visit>().cloned(),
        };
        let settings = BufferSettings::new(REQUEST_BUFFER_BYTES, REQUEST_BUFFER_BYTES);
        let decoder = ProstDecoder::<proto::AgentMessage>::new(settings);
        let inbox = Streaming::new_request(decoder, body, None, Some(REQUEST_BYTES_MAX));
        let (outbox, messages) = mpsc::channel(1);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let ended = stream::serve(shared, caller, inbox, outbox.clone()).await;
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
        Ok(Frames::response(messages))
    }
}

impl Service<http::Request<Body>> for Push {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != FOLLOW {
            let status = Status::unimplemented("this service has one method, Follow");
            return Box::pin(std::future::ready(Ok(status.into_http())));
        }
        let push = self.clone();
        Box::pin(async move {
            let answered = push.follow(request).await;
            Ok(answered.unwrap_or_else(Status::into_http))
        })
    }
}

impl NamedService for Push {
    const NAME: &'static str = SERVICE;
}
