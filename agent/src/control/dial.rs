//! One connection to one server address: TCP, TLS, HTTP/2.
//!
//! Each connection is made once and belongs to one stream; making another is the business of
//! [`super::client`], which then asks DNS and reads the certificates again.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::config::Server;

/// Looking a name up; resolvers try each of their servers for five seconds.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses tried in one attempt: more replicas than that are not needed to find one that works.
const ADDRESSES_MAX: usize = 16;
/// What the server may send ahead on one stream: a node's full snapshot fits in a few rounds.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Why there is no connection. All of it is retried.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name could not be looked up.
    #[error("cannot look up the servers' name; check --server-address and the cluster's DNS")]
    Lookup(#[source] io::Error),
    /// It has no address.
    #[error("the servers' name has no address; are servers running, and is the Service headless?")]
    NoAddress,
    /// TCP failed.
    #[error("cannot connect; maybe no server runs there or a NetworkPolicy is in the way")]
    Connect(#[source] io::Error),
    /// TLS failed.
    #[error("cannot complete TLS; check that --ca issued the server's certificate, for that name")]
    Tls(#[source] io::Error),
    /// Either took too long.
    #[error("no connection within --gateway-timeout-creation")]
    TimedOut,
    /// HTTP/2 failed.
    #[error("cannot speak HTTP/2")]
    Http(#[source] tonic::transport::Error),
}

/// Finds the servers' addresses.
#[tonic::async_trait]
pub trait Resolve: fmt::Debug + Send + Sync {
    /// The addresses of `host`, with `port`, in any order.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy)]
pub struct Dns;

#[tonic::async_trait]
impl Resolve for Dns {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(lookup_host((host, port)).await?.collect())
    }
}

/// Every address of the servers, each once, in random order.
pub async fn addresses(
    server: &Server,
    resolver: &dyn Resolve,
) -> Result<Vec<SocketAddr>, DialError> {
    let lookup = resolver.resolve(server.address.host(), server.address.port());
    let mut addresses = timeout(LOOKUP_TIMEOUT, lookup)
        .await
        .map_err(|_elapsed| DialError::Lookup(io::ErrorKind::TimedOut.into()))?
        .map_err(DialError::Lookup)?;
    addresses.sort_unstable();
    addresses.dedup();
    fastrand::shuffle(&mut addresses);
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() {
        return Err(DialError::NoAddress);
    }
    Ok(addresses)
}

/// Connects to one address.
pub async fn dial(
    server: &Server,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> Result<Channel, DialError> {
    let secure = Box::pin(secure(server, address, tls));
    let secure = timeout(server.connect_timeout, secure)
        .await
        .map_err(|_elapsed| DialError::TimedOut)??;

    // Handed over once: when this connection is lost the channel is of no more use.
    let mut once = Some(TokioIo::new(secure));
    let connector = tower::service_fn(move |_: Uri| {
        let io = once
            .take()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async { io }
    });
    let endpoint = endpoint(server).map_err(DialError::Http)?;
    Box::pin(endpoint.connect_with_connector(connector))
        .await
        .map_err(DialError::Http)
}

async fn secure(
    server: &Server,
    address: SocketAddr,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let tcp = TcpStream::connect(address)
        .await
        .map_err(DialError::Connect)?;
    tcp.set_nodelay(true).map_err(DialError::Connect)?;
    TlsConnector::from(tls)
        .connect(server.address.name(), tcp)
        .await
        .map_err(DialError::Tls)
}

fn endpoint(server: &Server) -> Result<Endpoint, tonic::transport::Error> {
    // With https here tonic would want to do TLS itself, once more.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address))?
        .user_agent(concat!("kiam-agent/", env!("CARGO_PKG_VERSION")))?
        .http2_keep_alive_interval(server.keepalive.every)
        .keep_alive_timeout(server.keepalive.timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    Ok(endpoint)
}
