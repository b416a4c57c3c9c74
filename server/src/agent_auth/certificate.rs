//! Reads the node out of a certificate.
//!
//! Pure. That the certificate is signed by the right authority, is meant for clients and has not run
//! out was checked by the handshake; only the names are looked at here, and the end, because a
//! stream lives longer than a handshake.

use kiam_wire::UnixSeconds;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Identity, Refusal};

/// A URI or DNS name of the certificate that begins so names a node.
const PREFIX: &str = "kiam-node:";

/// The nodes that the certificate names.
pub(super) fn of_node(der: &[u8], now: UnixSeconds) -> Result<Identity, Refusal> {
    let certificate = parse(der)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| Refusal::Invalid(format!("the certificate's names: {error}")))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let nodes: Vec<String> = names
        .filter_map(|name| {
            let (GeneralName::URI(text) | GeneralName::DNSName(text)) = name else {
                return None;
            };
            text.strip_prefix(PREFIX)
        })
        .filter(|node| !node.is_empty())
        .map(str::to_owned)
        .collect();
    if nodes.is_empty() {
        return Err(Refusal::Invalid(format!(
            "the certificate names no node; it needs the subject alternative name {PREFIX}NAME, \
             or the server --agent-auth token or shared-certificate"
        )));
    }
    Ok(Identity::of_nodes(nodes, Some(end(&certificate, now)?)))
}

/// Any certificate of the authority.
pub(super) fn shared(der: &[u8], now: UnixSeconds) -> Result<Identity, Refusal> {
    Ok(Identity::anyone(Some(end(&parse(der)?, now)?)))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Refusal> {
    X509Certificate::from_der(der)
        .map(|(_rest, certificate)| certificate)
        .map_err(|error| Refusal::Invalid(format!("the certificate cannot be read: {error}")))
}

fn end(certificate: &X509Certificate<'_>, now: UnixSeconds) -> Result<UnixSeconds, Refusal> {
    let end = UnixSeconds::new(certificate.validity().not_after.timestamp());
    if end <= now {
        return Err(Refusal::Invalid("the certificate has run out".to_owned()));
    }
    Ok(end)
}
