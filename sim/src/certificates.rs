//! A certificate authority for one afternoon, and the certificates it signs.
//!
//! Good for mutual TLS between the parts under test, for rotation (make a second authority) and for
//! every way a certificate can be wrong. Keys leave only through the methods that say so; they are
//! in no `Debug`.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::clock::Clock;

const DAY: Duration = Duration::from_hours(24);

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A subject alternative name holds characters that no certificate may hold.
    #[error("subject alternative name {name:?} is not an ASCII string")]
    Name {
        /// The name as given.
        name: String,
    },
    /// The key or the signature could not be made.
    #[error("cannot make the certificate")]
    Signing(#[from] rcgen::Error),
}

/// From when and until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// From a day ago for this long from now.
    For(Duration),
    /// It ended a day ago.
    Expired,
    /// It begins tomorrow.
    NotYet,
}

impl Default for Validity {
    fn default() -> Self {
        Self::For(DAY * 365)
    }
}

/// Another name that a certificate is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// A host name, or any other string put into a dNSName.
    Dns(String),
    /// An address.
    Ip(IpAddr),
    /// A URI, such as `kiam-node:worker-1`.
    Uri(String),
}

impl Name {
    /// A dNSName.
    pub fn dns(name: impl Into<String>) -> Self {
        Self::Dns(name.into())
    }

    /// A uniformResourceIdentifier.
    pub fn uri(uri: impl Into<String>) -> Self {
        Self::Uri(uri.into())
    }

    fn general(&self) -> Result<SanType, CertificateError> {
        let ascii = |name: &String| {
            name.clone()
                .try_into()
                .map_err(|_not_ascii: rcgen::Error| CertificateError::Name { name: name.clone() })
        };
        Ok(match self {
            Self::Dns(name) => SanType::DnsName(ascii(name)?),
            Self::Ip(address) => SanType::IpAddress(*address),
            Self::Uri(uri) => SanType::URI(ascii(uri)?),
        })
    }
}

/// Signs certificates; its own is what the other side must trust.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority with a new key, called `name`, valid for ten years from yesterday.
    pub fn new(name: &str) -> Result<Self, CertificateError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        limit(&mut params, Validity::For(DAY * 3650), Clock::start().now());
        let key = KeyPair::generate()?;
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate_pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// The certificate to trust, in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate for the given names, usable by a TLS server and by a TLS client.
    pub fn issue(&self, names: &[Name], validity: Validity) -> Result<Identity, CertificateError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = names.iter().map(Name::general).collect::<Result<_, _>>()?;
        if let Some(Name::Dns(first)) = names.first() {
            params
                .distinguished_name
                .push(DnType::CommonName, first.as_str());
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        limit(&mut params, validity, Clock::start().now());
        let key = KeyPair::generate()?;
        let certificate_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity {
            certificate_pem,
            key_pem: key.serialize_pem(),
        })
    }

    /// A server's certificate for these host names, for `localhost` and for both loopback addresses.
    pub fn server(&self, hosts: &[&str]) -> Result<Identity, CertificateError> {
        let names: Vec<Name> = hosts
            .iter()
            .map(|host| Name::dns(*host))
            .chain([Name::dns("localhost"), Name::Ip([127, 0, 0, 1].into())])
            .chain([Name::Ip(std::net::Ipv6Addr::LOCALHOST.into())])
            .collect();
        self.issue(&names, Validity::default())
    }

    /// An agent's certificate: the shared name `kiam-agent`, and with a node also `kiam-node:NODE`.
    pub fn agent(&self, node: Option<&str>) -> Result<Identity, CertificateError> {
        let names: Vec<Name> = std::iter::once(Name::dns("kiam-agent"))
            .chain(node.map(|node| Name::uri(format!("kiam-node:{node}"))))
            .collect();
        self.issue(&names, Validity::default())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("key", &"[REDACTED]")
            .finish_non_exhaustive()
    }
}

/// A certificate and its private key.
#[derive(Clone)]
pub struct Identity {
    certificate_pem: String,
    key_pem: String,
}

impl Identity {
    /// The certificate, in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key, in PKCS#8 PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Writes both files, each all at once; the key is readable by its owner alone.
    pub fn write(&self, certificate: &Path, key: &Path) -> io::Result<()> {
        write_atomically(key, &self.key_pem, 0o600)?;
        write_atomically(certificate, &self.certificate_pem, 0o644)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("certificate_pem", &self.certificate_pem)
            .field("key_pem", &"[REDACTED]")
            .finish()
    }
}

/// Replaces `path` in one step, so that a reader sees the old text or the new and never a part.
///
/// `mode` holds the permission bits of the new file. The directory must exist.
pub fn write_atomically(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    // A file left behind by a crash may have other permissions: start from none.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    file.write_all(text.as_bytes())?;
    drop(file);
    fs::rename(&beside, path)
}

fn limit(params: &mut CertificateParams, validity: Validity, now: Timestamp) {
    // Counted from the epoch, because that needs no second library for dates.
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    let (from, until) = match validity {
        Validity::For(length) => (now.saturating_sub(DAY), now.saturating_add(length)),
        Validity::Expired => (now.saturating_sub(DAY * 2), now.saturating_sub(DAY)),
        Validity::NotYet => (now.saturating_add(DAY), now.saturating_add(DAY * 2)),
    };
    params.not_before = epoch + from;
    params.not_after = epoch + until;
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::{Authority, CertificateError, Name, Validity};

    #[test]
    fn keys_are_never_printed() {
        let authority = Authority::new("test").unwrap();
        let identity = authority.agent(Some("node-1")).unwrap();
        assert!(identity.key_pem().contains("PRIVATE KEY"));
        let printed = format!("{authority:?} {identity:?}");
        assert!(!printed.contains("PRIVATE KEY"), "{printed}");
        assert!(printed.contains("[REDACTED]"), "{printed}");
    }

    #[test]
    fn files_are_replaced_whole_and_keys_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = (
            directory.path().join("c.pem"),
            directory.path().join("k.pem"),
        );
        let authority = Authority::new("test").unwrap();
        for _ in 0..2 {
            let identity = authority.server(&["kiam-server"]).unwrap();
            identity.write(&certificate, &key).unwrap();
            assert_eq!(fs::read_to_string(&key).unwrap(), identity.key_pem());
            assert_eq!(
                fs::read_to_string(&certificate).unwrap(),
                identity.certificate_pem()
            );
        }
        assert_eq!(
            fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_name_that_no_certificate_can_hold_is_named_in_the_error() {
        let authority = Authority::new("test").unwrap();
        let refused = authority
            .issue(&[Name::dns("n\u{f6}de")], Validity::Expired)
            .unwrap_err();
        assert!(matches!(refused, CertificateError::Name { name } if name == "n\u{f6}de"));
    }
}
