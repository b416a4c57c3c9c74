//! Certificates and keys as they are on disk.

use std::fmt;
use std::path::Path;

use kiam_wire::UnixSeconds;
use ring::digest;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{Files, TlsError};

/// Everything the files hold, parsed.
pub(super) struct Material {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Option<RootCertStore>,
    fingerprint: [u8; 32],
    ends_at: Option<UnixSeconds>,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material")
            .field("ends_at", &self.ends_at)
            .finish_non_exhaustive()
    }
}

impl Material {
    pub(super) fn read(files: &Files) -> Result<Self, TlsError> {
        let mut seen = digest::Context::new(&digest::SHA256);
        let mut read = |flag: &'static str, path: &Path| {
            let bytes = std::fs::read(path).map_err(|source| TlsError::Read {
                flag,
                path: path.to_owned(),
                source,
            })?;
            seen.update(&bytes.len().to_be_bytes());
            seen.update(&bytes);
            Ok::<_, TlsError>(Zeroizing::new(bytes))
        };
        let chain = certificates(
            "--cert",
            &files.certificate,
            &read("--cert", &files.certificate)?,
        )?;
        let key = read("--key", &files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| TlsError::Pem {
            flag: "--key",
            path: files.key.clone(),
            problem: error.to_string(),
        })?;
        let mut ends = chain.iter().filter_map(end).min();
        let roots = match &files.authority {
            None => None,
            Some(path) => {
                let authorities = certificates("--ca", path, &read("--ca", path)?)?;
                ends = ends
                    .into_iter()
                    .chain(authorities.iter().filter_map(end))
                    .min();
                Some(roots(path, authorities)?)
            }
        };
        let mut fingerprint = [0; 32];
        for (to, from) in fingerprint.iter_mut().zip(seen.finish().as_ref()) {
            *to = *from;
        }
        Ok(Self {
            chain,
            key,
            roots,
            fingerprint,
            ends_at: ends,
        })
    }

    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    pub(super) const fn authorities(&self) -> Option<&RootCertStore> {
        self.roots.as_ref()
    }

    /// Differs whenever a file does.
    pub(super) const fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// When the first of the certificates ends.
    pub(super) const fn ends_at(&self) -> Option<UnixSeconds> {
        self.ends_at
    }
}

fn certificates(
    flag: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = |problem: String| TlsError::Pem {
        flag,
        path: path.to_owned(),
        problem,
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| problem(error.to_string()))?;
    if found.is_empty() {
        return Err(problem("holds no certificate".to_owned()));
    }
    Ok(found)
}

fn roots(
    path: &Path,
    authorities: Vec<CertificateDer<'static>>,
) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|error| TlsError::Pem {
            flag: "--ca",
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn end(certificate: &CertificateDer<'_>) -> Option<UnixSeconds> {
    let (_rest, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(UnixSeconds::new(parsed.validity().not_after.timestamp()))
}
