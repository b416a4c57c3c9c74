//! Where the API server is, and a client for it.
//!
//! The configuration is read again for every new client, so that a rotated credential or a moved API
//! server is picked up by whoever reconnects; in-cluster tokens and authorities are re-read by the
//! client itself.

use std::path::PathBuf;
use std::time::Duration;

use kube::client::{ClientBuilder, DynBody};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::util::MapResponseLayer;

/// Which configuration leads to the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The pod's own `ServiceAccount`.
    InCluster,
    /// A file.
    Kubeconfig(PathBuf),
}

/// No client can be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Not in a cluster.
    #[error("not running in a cluster, and no --kubeconfig was given: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    /// The file cannot be used.
    #[error("--kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: Box<kube::config::KubeconfigError>,
    },
    /// The configuration cannot be used.
    #[error("cannot make a Kubernetes client: {0}")]
    Client(#[from] Box<kube::Error>),
}

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the API server may be silent. An open watch is never so long: it carries a bookmark a
/// minute, and most are ended by the API server before ([`Connection::watch_lasts_s`]). So a
/// connection whose other end is gone without a word, or that someone in between has forgotten, is
/// noticed after this time at the latest.
const SILENCE_MAX: Duration = Duration::from_secs(100);

/// Makes clients.
#[derive(Debug, Clone)]
pub struct Connection {
    source: Source,
    silence_max: Duration,
}

impl Connection {
    /// Clients for the API server that `source` leads to.
    pub const fn new(source: Source) -> Self {
        Self {
            source,
            silence_max: SILENCE_MAX,
        }
    }

    /// The same, with another bound on how long the API server may be silent; at least 2 s.
    #[must_use]
    pub fn with_silence_max(self, silence_max: Duration) -> Self {
        let silence_max = silence_max.max(Duration::from_secs(2));
        Self {
            silence_max,
            ..self
        }
    }

    /// After how many seconds the API server is to end a watch, so that it is not taken for dead
    /// even if it carries nothing at all.
    pub(crate) fn watch_lasts_s(&self) -> u32 {
        let lasts = self.silence_max.mul_f64(0.9).as_secs();
        u32::try_from(lasts).unwrap_or(u32::MAX)
    }

    /// A new client, from the configuration as it is now.
    pub(crate) async fn client(&self) -> Result<Client, ConnectionError> {
        self.client_telling(|| {}).await
    }

    /// The same, which tells of every answer that is no error, as soon as it begins.
    pub(crate) async fn client_telling(
        &self,
        answered: impl Fn() + Clone + Send + Sync + 'static,
    ) -> Result<Client, ConnectionError> {
        let config = self.config().await?;
        let builder = ClientBuilder::try_from(config).map_err(Box::new)?;
        let telling = MapResponseLayer::new(move |response: http::Response<Box<DynBody>>| {
            if response.status().is_success() {
                answered();
            }
            response
        });
        Ok(builder.with_layer(&telling).build())
    }

    async fn config(&self) -> Result<Config, ConnectionError> {
        let mut config = match &self.source {
            Source::InCluster => Config::incluster()?,
            Source::Kubeconfig(path) => {
                let named = |source| ConnectionError::Kubeconfig {
                    path: path.display().to_string(),
                    source: Box::new(source),
                };
                let kubeconfig = Kubeconfig::read_from(path).map_err(named)?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .map_err(named)?
            }
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.write_timeout = Some(WRITE_TIMEOUT);
        config.read_timeout = Some(self.silence_max);
        config.reset_reader_on_write = true;
        Ok(config)
    }

    /// Checks that the configuration can be read at all, so that a mistake is found at start.
    pub async fn check(&self) -> Result<(), ConnectionError> {
        self.client().await.map(drop)
    }
}
