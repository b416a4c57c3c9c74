//! A server that says what a test wants and tells it everything it hears.

use std::net::SocketAddr;
use std::time::Duration;

use kiam_wire::proto::{self, NodeCredentials, NodeCredentialsServer};
use kiam_wire::report::Hello;
use kiam_wire::{AgentMessage, Update};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::certificates::Issued;

/// The longest any test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running server. Dropping it cuts every connection, as a crash does.
#[derive(Debug)]
pub(crate) struct ScriptedServer {
    pub(crate) address: SocketAddr,
    streams: mpsc::Receiver<OpenStream>,
    runtime: Option<Runtime>,
}

/// A stream that an agent opened.
#[derive(Debug)]
pub(crate) struct OpenStream {
    pub(crate) hello: Hello,
    pub(crate) authorization: Option<String>,
    say: mpsc::Sender<Result<proto::ServerMessage, Status>>,
    heard: mpsc::Receiver<AgentMessage>,
}

struct Script {
    streams: mpsc::Sender<OpenStream>,
}

impl ScriptedServer {
    /// Listens on `address` with a certificate of `issued`, whose authority clients' must be from.
    pub(crate) fn start(address: &str, issued: &Issued) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(16);
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(&issued.certificate, &issued.key))
            .client_ca_root(Certificate::from_pem(&issued.authority));
        runtime.spawn(async move {
            let service = NodeCredentialsServer::new(Script { streams: sender })
                .max_encoding_message_size(usize::MAX);
            Server::builder()
                .tls_config(tls)
                .unwrap()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(
                    TcpListener::from_std(listener).unwrap(),
                ))
                .await
                .unwrap();
        });
        Self {
            address,
            streams,
            runtime: Some(runtime),
        }
    }

    /// The next stream an agent opens.
    pub(crate) async fn stream(&mut self) -> OpenStream {
        timeout(PATIENCE, self.streams.recv())
            .await
            .expect("no agent came")
            .unwrap()
    }

    /// Whether an agent has opened a stream that nobody has taken yet.
    pub(crate) fn was_opened(&mut self) -> bool {
        self.streams.try_recv().is_ok()
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl OpenStream {
    pub(crate) async fn update(&self, update: &Update) {
        self.raw(update.into()).await;
    }

    /// Says something that need not make sense.
    pub(crate) async fn raw(&self, message: proto::ServerMessage) {
        self.say.send(Ok(message)).await.unwrap();
    }

    /// The next thing the agent says.
    pub(crate) async fn heard(&mut self) -> AgentMessage {
        timeout(PATIENCE, self.heard.recv())
            .await
            .expect("the agent says nothing")
            .expect("the agent closed the stream")
    }

    /// Listens until the agent acknowledges `number`; returns what else it said.
    pub(crate) async fn until_applied(&mut self, number: u64) -> Vec<AgentMessage> {
        let mut others = Vec::new();
        loop {
            let said = self.heard().await;
            if matches!(said, AgentMessage::Applied(revision) if revision.number == number) {
                return others;
            }
            others.push(said);
        }
    }

    /// Listens until the agent closes the stream.
    pub(crate) async fn until_closed(&mut self) {
        while timeout(PATIENCE, self.heard.recv())
            .await
            .expect("the agent keeps the stream open")
            .is_some()
        {}
    }
}

#[tonic::async_trait]
impl NodeCredentials for Script {
    type FollowStream = ReceiverStream<Result<proto::ServerMessage, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<proto::AgentMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let authorization = request
            .metadata()
            .get("authorization")
            .map(|value| value.to_str().unwrap().to_owned());
        assert!(request.peer_certs().is_some(), "mutual TLS");
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.unwrap();
        let AgentMessage::Hello(hello) = AgentMessage::try_from(first).unwrap() else {
            return Err(Status::invalid_argument("the first message is Hello"));
        };
        let (say, said) = mpsc::channel(16);
        let (tell, heard) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                if tell.send(message.try_into().unwrap()).await.is_err() {
                    return;
                }
            }
        });
        let stream = OpenStream {
            hello,
            authorization,
            say,
            heard,
        };
        self.streams.send(stream).await.unwrap();
        Ok(Response::new(ReceiverStream::new(said)))
    }
}
