//! The TCP door of a simulated server: accepts, speaks TLS if told to, hands requests to the room
//! behind it, and obeys the faults that concern connections.
//!
//! "Down" keeps the port and resets every connection instead of closing the listener: a port given
//! back to the system could be somebody else's by the time the server is up again.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::certificates::Identity;
use crate::faults::{Fate, Faults, Reach, Weather};

/// A connection that has sent no complete request head for this long is closed.
const HEAD_READ_MAX: Duration = Duration::from_secs(30);

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
pub(crate) type Answer = Response<Body>;
pub(crate) type Handler =
    Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Answer> + Send + Sync + 'static>;

/// A body that is all there.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).boxed_unsync()
}

/// Why a simulated server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: choose another address, or port 0 for any free one")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The certificate or its key is not usable.
    #[error("cannot serve TLS with the certificate given")]
    Tls(#[from] rustls::Error),
    /// The key to sign ServiceAccount tokens with could not be made.
    #[error("cannot make a token signing key")]
    SigningKey,
}

/// A bound and served door. Dropping it closes it, with every connection.
#[derive(Debug)]
pub(crate) struct Door {
    address: SocketAddr,
    tasks: JoinSet<()>,
}

impl Door {
    /// Binds `address` (port 0: any) and serves until dropped.
    pub(crate) async fn open(
        address: SocketAddr,
        identity: Option<&Identity>,
        faults: Faults,
        handler: Handler,
    ) -> Result<Self, StartError> {
        let failed = |source| StartError::Listen { address, source };
        let tls = identity.map(acceptor).transpose()?;
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let mut tasks = JoinSet::new();
        drop(tasks.spawn(accept(listener, tls, faults, handler)));
        Ok(Self {
            address: bound,
            tasks,
        })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the door and every connection, and returns when that is done.
    pub(crate) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

fn acceptor(identity: &Identity) -> Result<TlsAcceptor, rustls::Error> {
    let unusable = |_| rustls::Error::General("not a PEM certificate or key".to_owned());
    let chain =
        rustls_pki_types::pem::PemObject::pem_slice_iter(identity.certificate_pem().as_bytes())
            .collect::<Result<Vec<CertificateDer<'static>>, _>>()
            .map_err(unusable)?;
    let key: PrivateKeyDer<'static> =
        rustls_pki_types::pem::PemObject::from_pem_slice(identity.key_pem().as_bytes())
            .map_err(unusable)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, faults: Faults, handler: Handler) {
    let weather = faults.weather();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let service = connection(stream, tls.clone(), weather.clone(), Arc::clone(&handler));
                    drop(connections.spawn(service));
                }
                // Out of descriptors, most likely: wait for some to come back instead of spinning.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection until it ends or the weather closes it.
async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    mut weather: watch::Receiver<Weather>,
    handler: Handler,
) {
    let arrived = *weather.borrow_and_update();
    if arrived.reach == Reach::Down {
        reset(&stream);
        return;
    }
    // Watch events are small and must not wait for each other's acknowledgements; a socket that
    // refuses the option is served all the same.
    drop(stream.set_nodelay(true));
    let closed =
        weather.wait_for(|now| now.reach == Reach::Down || now.disconnects != arrived.disconnects);
    // Dropped in the middle rather than ended: an orderly end of a chunked body would look like an
    // orderly end of a watch.
    let served = async {
        match tls {
            Some(acceptor) => match acceptor.accept(stream).await {
                Ok(stream) => serve(stream, handler).await,
                Err(error) => tracing::debug!(%error, "no TLS session"),
            },
            None => serve(stream, handler).await,
        }
    };
    tokio::select! {
        _ = closed => {}
        () = served => {}
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, handler: Handler) {
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended early");
    }
}

/// Makes the coming close a reset, which clients report as "connection reset by peer".
fn reset(stream: &TcpStream) {
    // Without it the close is merely orderly, which is good enough for a simulation.
    drop(stream.set_zero_linger());
}

/// Waits as the faults demand and says what the request then meets.
pub(crate) async fn endure(faults: &Faults) -> Fate {
    let mut weather = faults.weather();
    // The switch outlives every request, so this ends with the reach and never with an error.
    drop(weather.wait_for(|now| now.reach != Reach::Hanging).await);
    let (delay, fate) = faults.draw();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    fate
}
