//! The agent's side of TLS: whom it trusts, who it is, and until when.
//!
//! The files are read at every connection attempt, so that certificates and authorities can be
//! rotated at any time. While they cannot be used, in the middle of being replaced for example, the
//! last ones that could are.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiam_wire::UnixSeconds;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tracing::warn;
use zeroize::Zeroizing;

use super::client::chain;
use super::metrics::TlsMetrics;
use crate::clock::Now;
use crate::config::{Identity, Server};

/// Bytes of one file: hundreds of authorities fit.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Why the files cannot be used. All of it is retried at the next attempt.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("{} holds no {what}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// A certificate is no trust anchor, or certificate and key do not belong together.
    #[error("{} cannot be used", path.display())]
    Tls {
        /// Which certificate's.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// The files, and what they held when they could last be used.
#[derive(Debug)]
pub struct Files {
    ca: PathBuf,
    identity: Option<Identity>,
    provider: Arc<CryptoProvider>,
    last: Option<Arc<ClientConfig>>,
    metrics: TlsMetrics,
}

impl Files {
    /// Reads nothing yet.
    pub fn new(server: &Server, metrics: TlsMetrics) -> Self {
        Self {
            ca: server.ca.clone(),
            identity: server.identity.clone(),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            last: None,
            metrics,
        }
    }

    /// What a connection that is made at `now` should use: the files as they are, or as they last
    /// were when they made sense.
    pub fn current(&mut self, now: Now) -> Result<Arc<ClientConfig>, Unusable> {
        match self.read(now) {
            Ok(config) => {
                self.metrics.update_error.set(0);
                Ok(Arc::clone(self.last.insert(Arc::new(config))))
            }
            Err(unusable) => {
                self.metrics.update_error.set(1);
                let Some(last) = &self.last else {
                    return Err(unusable);
                };
                let error = chain(&unusable);
                warn!(
                    error,
                    "certificates cannot be used; the ones read before are"
                );
                Ok(Arc::clone(last))
            }
        }
    }

    fn read(&self, now: Now) -> Result<ClientConfig, Unusable> {
        let roots = Arc::new(roots(&self.ca)?);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(unfit(&self.ca))?
            .with_root_certificates(Arc::clone(&roots));
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = certificates(certificate)?;
                let key_der = private_key(key)?;
                self.observe(&chain, roots, now);
                builder
                    .with_client_auth_cert(chain, key_der)
                    .map_err(unfit(certificate))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// Tells the metrics how long the certificate lasts and whether a server that trusts the same
    /// authorities would take it. It is used in either case: the server decides.
    fn observe(&self, chain: &[CertificateDer<'static>], roots: Arc<RootCertStore>, now: Now) {
        if let Some(expires_at) = expires_at(chain) {
            self.metrics.expiry.set(expires_at.get());
        }
        let verified = verify(chain, roots, &self.provider, now);
        if let Err(error) = &verified {
            warn!(%error, "the agent's own certificate does not verify; servers may refuse it");
        }
        self.metrics.verify_error.set(i64::from(verified.is_err()));
    }
}

fn verify(
    chain: &[CertificateDer<'static>],
    roots: Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    now: Now,
) -> Result<(), rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let (leaf, intermediates) = chain
        .split_first()
        .ok_or(rustls::Error::NoCertificatesPresented)?;
    let since_epoch = now.wall.since(UnixSeconds::new(0));
    let time = UnixTime::since_unix_epoch(since_epoch);
    verifier.verify_client_cert(leaf, intermediates, time)?;
    Ok(())
}

/// When the first certificate of the chain ends; `None` when none can be read.
fn expires_at(chain: &[CertificateDer<'_>]) -> Option<UnixSeconds> {
    chain
        .iter()
        .filter_map(|der| x509_parser::parse_x509_certificate(der).ok())
        .map(|(_, certificate)| UnixSeconds::new(certificate.validity().not_after.timestamp()))
        .min()
}

fn unfit(path: &Path) -> impl Fn(rustls::Error) -> Unusable {
    move |source| Unusable::Tls {
        path: path.to_owned(),
        source,
    }
}

fn roots(path: &Path) -> Result<RootCertStore, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(unfit(path))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let pem = read(path)?;
    CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|certificates| !certificates.is_empty())
        .ok_or_else(|| Unusable::Content {
            path: path.to_owned(),
            what: "PEM certificate",
        })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Unusable> {
    let pem = read(path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_said_below| Unusable::Content {
        path: path.to_owned(),
        what: "PEM private key",
    })
}

/// The bytes of a small file. Wiped when dropped: some of these files are secrets.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Unusable> {
    let unreadable = |source| Unusable::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    if length > FILE_BYTES_MAX {
        return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
    }
    // With room for all of it the buffer never moves and leaves a copy behind.
    let room = usize::try_from(length).unwrap_or(0).saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    let mut bounded = file.take(FILE_BYTES_MAX);
    bounded.read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}
