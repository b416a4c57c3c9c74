//! Authorities for one test, and the files an agent reads.

use std::fs;
use std::path::{Path, PathBuf};

use kiam_agent::config::Identity;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// The name servers' certificates are for.
pub(crate) const SERVER_NAME: &str = "kiam-server.test";

/// A certificate, its key, and who issued it, in PEM.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) authority: String,
}

/// A new authority's certificate for `name`.
pub(crate) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn issue(&self, name: &str) -> Issued {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            authority: self.certificate.clone(),
        }
    }
}

/// Where an agent finds its certificate and its token.
#[derive(Debug)]
pub(crate) struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new(issued: &Issued) -> Self {
        let files = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        files.write(issued);
        files.write_token("first-token");
        files
    }

    pub(crate) fn write(&self, issued: &Issued) {
        fs::write(self.ca(), &issued.authority).unwrap();
        fs::write(self.identity().certificate, &issued.certificate).unwrap();
        fs::write(self.identity().key, &issued.key).unwrap();
    }

    pub(crate) fn write_token(&self, token: &str) {
        fs::write(self.token(), token).unwrap();
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    pub(crate) fn token(&self) -> PathBuf {
        self.path("token")
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity {
            certificate: self.path("agent.pem"),
            key: self.path("agent-key.pem"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        let directory: &Path = self.directory.path();
        directory.join(name)
    }
}
