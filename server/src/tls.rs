//! The server's door: TLS, with whatever certificates are on disk now.
//!
//! The files are looked at every few seconds and compared by content, which sees every way of
//! replacing them (a rename, Kubernetes' symlink flip, a write in place). What cannot be used is
//! reported and the old material stays. New material is for new connections; old ones end with
//! their streams' age.

mod accept;
mod files;
mod guest;
mod room;
mod sources;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::UnixSeconds;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::watch;
use tracing::{error, info, warn};

pub(crate) use accept::{Entrance, accept};
pub use guest::{Known, Visit};
pub(crate) use room::Room;
pub(crate) use sources::{Sources, Unfinished};

use crate::clock::{Clock, Moment, Now};
use crate::drain::Draining;
use crate::metrics::TlsMetrics;
use files::Material;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often it is said that a certificate in use has run out.
const WARN_EVERY: Duration = Duration::from_hours(1);

/// Where the certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The server's certificate, and what leads from it to its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities that sign clients' certificates.
    pub authority: Option<PathBuf>,
}

/// Whether clients show certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// They are not asked.
    Anonymous,
    /// They may; a wrong one is refused.
    Optional,
    /// They must.
    Certified,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{flag} {path}: {source}")]
    Read {
        /// Which file.
        flag: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file holds no usable PEM.
    #[error("{flag} {path}: {problem}")]
    Pem {
        /// Which file.
        flag: &'static str,
        /// Where.
        path: PathBuf,
        /// What is wrong; never the content.
        problem: String,
    },
    /// The parts do not make a whole: a key of another certificate, most likely.
    #[error("--cert and --key cannot be used together: {0}")]
    Mismatch(String),
    /// No client could be verified.
    #[error("--ca cannot be used: {0}")]
    Authority(String),
}

/// What new connections are answered with.
pub type Current = watch::Receiver<Arc<ServerConfig>>;

/// Reads the files once and then again whenever they change.
pub fn start(
    files: Files,
    clients: Clients,
    metrics: TlsMetrics,
    clock: Clock,
    mut draining: Draining,
) -> Result<(Current, tokio::task::JoinHandle<()>), TlsError> {
    let material = Material::read(&files)?;
    let config = config(&material, clients)?;
    let (sender, current) = watch::channel(Arc::new(config));
    let mut watcher = Watcher {
        files,
        clients,
        metrics,
        used: material.fingerprint(),
        refused: None,
        ends_at: material.ends_at(),
        warned_at: None,
    };
    watcher.metrics.updated(true);
    watcher.note_validity(clock.now());
    let task = tokio::spawn(async move {
        loop {
            tokio::select! {
                () = draining.started() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if let Some(config) = watcher.look().await {
                sender.send_replace(Arc::new(config));
            }
            watcher.note_validity(clock.now());
        }
    });
    Ok((current, task))
}

struct Watcher {
    files: Files,
    clients: Clients,
    metrics: TlsMetrics,
    /// Of the material in use.
    used: [u8; 32],
    /// The last complaint, so that it is logged once and not every few seconds.
    refused: Option<String>,
    ends_at: Option<UnixSeconds>,
    /// When it was last said that this material has run out.
    warned_at: Option<Moment>,
}

impl Watcher {
    /// The configuration for material that is new and can be used.
    async fn look(&mut self) -> Option<ServerConfig> {
        let files = self.files.clone();
        let (clients, used) = (self.clients, self.used);
        // Reading files may block for as long as the disk likes.
        let looked = tokio::task::spawn_blocking(move || {
            let material = Material::read(&files)?;
            if material.fingerprint() == used {
                return Ok(None);
            }
            config(&material, clients).map(|config| Some((material, config)))
        })
        .await;
        match looked {
            Ok(Ok(None)) => {
                self.refused = None;
                self.metrics.updated(true);
                None
            }
            Ok(Ok(Some((material, config)))) => {
                info!("certificates replaced; new connections use them");
                self.used = material.fingerprint();
                self.ends_at = material.ends_at();
                self.warned_at = None;
                self.refused = None;
                self.metrics.updated(true);
                Some(config)
            }
            Ok(Err(error)) => {
                let text = error.to_string();
                if self.refused.as_ref() != Some(&text) {
                    error!(
                        error = text,
                        "tls config read error; the old certificates stay in use"
                    );
                }
                self.refused = Some(text);
                self.metrics.updated(false);
                None
            }
            Err(panicked) => {
                error!(error = %panicked, "looking at the certificates failed");
                None
            }
        }
    }

    fn note_validity(&mut self, now: Now) {
        if let Some(ends_at) = self.ends_at {
            let valid = ends_at > now.wall;
            self.metrics.validity(ends_at.get(), valid);
            if !valid && self.must_warn(now.monotonic) {
                warn!(%ends_at, "a certificate in use has run out");
            }
        }
    }

    fn must_warn(&mut self, now: Moment) -> bool {
        let must = self.warned_at.is_none_or(|at| now.since(at) >= WARN_EVERY);
        if must {
            self.warned_at = Some(now);
        }
        must
    }
}

fn config(material: &Material, clients: Clients) -> Result<ServerConfig, TlsError> {
    let verifier: Arc<dyn ClientCertVerifier> = match (clients, material.authorities()) {
        (Clients::Anonymous, _) | (Clients::Optional, None) => {
            WebPkiClientVerifier::no_client_auth()
        }
        (Clients::Certified, None) => {
            return Err(TlsError::Authority("none was given".to_owned()));
        }
        (Clients::Optional | Clients::Certified, Some(roots)) => {
            let provider = Arc::new(default_provider());
            let builder =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider);
            let builder = if clients == Clients::Optional {
                builder.allow_unauthenticated()
            } else {
                builder
            };
            let built = builder.build();
            built.map_err(|error| TlsError::Authority(error.to_string()))?
        }
    };
    let mismatch = |error: rustls::Error| TlsError::Mismatch(error.to_string());
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(mismatch)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(material.chain(), material.key())
        .map_err(mismatch)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn what_has_run_out_is_said_once_an_hour() {
        let mut watcher = Watcher {
            files: Files {
                certificate: PathBuf::new(),
                key: PathBuf::new(),
                authority: None,
            },
            clients: Clients::Anonymous,
            metrics: Metrics::new().tls,
            used: [0; 32],
            refused: None,
            ends_at: Some(UnixSeconds::new(1)),
            warned_at: None,
        };
        let looks = 24 * 3_600 / LOOK_EVERY.as_secs();
        let said: Vec<Option<Moment>> = (0..looks)
            .map(|look| {
                let passed = LOOK_EVERY.mul_f64(f64::from(u32::try_from(look).unwrap()));
                watcher.note_validity(Now {
                    monotonic: Moment::new(passed),
                    wall: UnixSeconds::new(2).after(passed),
                });
                watcher.warned_at
            })
            .collect();
        let times: std::collections::BTreeSet<_> = said.into_iter().collect();
        assert_eq!(times.len(), 24, "{times:?}");
    }
}
