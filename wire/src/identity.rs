//! Revisions, pod uids and credential ids: what things on the wire are called.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::limits::NAME_BYTES_MAX;
use crate::malformed::{Malformed, token};
use crate::proto;

/// A state of one node as one server told it. Only equality means anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Revision {
    /// Drawn at random when the server started.
    pub epoch: u64,
    /// Counts this node's updates within the epoch.
    pub number: u64,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.epoch, self.number)
    }
}

impl Revision {
    pub(crate) fn parse(
        revision: Option<proto::Revision>,
        field: &'static str,
    ) -> Result<Self, Malformed> {
        let proto::Revision { epoch, number } = revision.ok_or(Malformed::missing(field))?;
        Ok(Self { epoch, number })
    }
}

impl From<Revision> for proto::Revision {
    fn from(Revision { epoch, number }: Revision) -> Self {
        Self { epoch, number }
    }
}

/// A pod's `metadata.uid`: unlike its name, never used twice.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Refuses an empty or overlong uid, and one with anything but printable ASCII.
    pub fn try_new(uid: &str) -> Result<Self, Malformed> {
        token(uid, "pod.uid", NAME_BYTES_MAX)?;
        Ok(Self(Arc::from(uid)))
    }

    /// The uid as Kubernetes writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for PodUid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names credentials by everything that was asked of STS: a SHA-256, made by the server, the same
/// on every replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CredentialId([u8; Self::BYTES]);

impl CredentialId {
    /// The length of an id.
    pub const BYTES: usize = 32;

    /// An id from the digest it is.
    pub const fn new(digest: [u8; Self::BYTES]) -> Self {
        Self(digest)
    }

    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    pub(crate) fn parse(bytes: &[u8], field: &'static str) -> Result<Self, Malformed> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_length| Malformed::new(field, "is not 32 bytes"))
    }
}

impl fmt::Display for CredentialId {
    /// The first eight bytes in hexadecimal: enough to tell the credentials of a cluster apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(8)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
