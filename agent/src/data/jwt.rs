//! Projected ServiceAccount tokens, verified here and not by asking anyone.
//!
//! The signature is checked with a key the server pushed, by that key's own algorithm. A token
//! counts for one pod: the claims must name the pod's uid, its namespace and its ServiceAccount,
//! and the snapshot must agree. A verified token is remembered by its SHA-256 (never itself), so
//! that an SDK's next request costs a hash and not a signature.

use std::sync::{Arc, Weak};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kiam_wire::UnixSeconds;
use ring::digest::{SHA256, digest};
use rustc_hash::FxHashMap;
use serde::Deserialize;

use crate::snapshot::Verifier;
use crate::snapshot::verifier::Unverified;

/// Bytes of a token: real ones have 1 to 2 KiB.
pub const TOKEN_BYTES_MAX: usize = 6 * 1024;
/// Tokens remembered by one worker. Beyond it all are forgotten and verified again.
const REMEMBERED_MAX: usize = 1024;
/// How far the clocks of the API server and this node may differ.
const LEEWAY_S: i64 = 10;

/// Whom a token names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// The pod's uid.
    pub pod_uid: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its ServiceAccount.
    pub service_account: Box<str>,
    /// When the token ends.
    pub expires_at: UnixSeconds,
}

/// Why a token does not count. Each has its own answer, and none says more than its holder knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// Not a signed token at all.
    #[error("the token is malformed")]
    Malformed,
    /// The server has pushed no keys.
    #[error("this node has no keys to verify tokens with")]
    NoKeys,
    /// See [`Unverified`].
    #[error(transparent)]
    Unverified(#[from] Unverified),
    /// Another cluster's.
    #[error("the token's issuer is not this cluster")]
    WrongIssuer,
    /// Meant for someone else.
    #[error("the token's audience is not this service")]
    WrongAudience,
    /// Over.
    #[error("the token has expired")]
    Expired,
    /// Not begun.
    #[error("the token is not valid yet")]
    NotYet,
    /// Not a pod's token.
    #[error("the token is not bound to a pod")]
    NoPod,
}

impl Untrusted {
    /// Every reason, for the answers that are rendered once.
    pub const ALL: [Self; 10] = [
        Self::Malformed,
        Self::NoKeys,
        Self::Unverified(Unverified::UnknownKey),
        Self::Unverified(Unverified::WrongAlgorithm),
        Self::Unverified(Unverified::WrongSignature),
        Self::WrongIssuer,
        Self::WrongAudience,
        Self::Expired,
        Self::NotYet,
        Self::NoPod,
    ];
}

/// Verifies tokens, and remembers those it has verified.
#[derive(Debug)]
pub struct Bearers {
    audience: String,
    /// The keys that `verified` was verified with; other keys, and nothing is remembered.
    keys: Weak<Verifier>,
    verified: FxHashMap<[u8; 32], Bearer>,
}

impl Bearers {
    /// Accepts tokens for `audience`.
    pub fn new(audience: String) -> Self {
        Self {
            audience,
            keys: Weak::new(),
            verified: FxHashMap::default(),
        }
    }

    /// Whose token this is.
    pub fn identify(
        &mut self,
        token: &[u8],
        keys: Option<&Arc<Verifier>>,
        wall: UnixSeconds,
    ) -> Result<&Bearer, Untrusted> {
        let keys = keys.ok_or(Untrusted::NoKeys)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Untrusted::Malformed);
        }
        if !std::ptr::eq(self.keys.as_ptr(), Arc::as_ptr(keys)) {
            self.verified.clear();
            self.keys = Arc::downgrade(keys);
        }
        let hash: [u8; 32] = digest(&SHA256, token)
            .as_ref()
            .try_into()
            .map_err(|_length| Untrusted::Malformed)?;
        if !self.verified.contains_key(&hash) {
            let bearer = verify(token, keys, &self.audience, wall)?;
            if self.verified.len() >= REMEMBERED_MAX {
                self.verified.clear();
            }
            self.verified.insert(hash, bearer);
        }
        let bearer = self.verified.get(&hash).ok_or(Untrusted::Malformed)?;
        if bearer.expires_at.get().saturating_add(LEEWAY_S) <= wall.get() {
            return Err(Untrusted::Expired);
        }
        Ok(bearer)
    }
}

/// What of a header decides. `crit` would have to be understood; none of it is.
#[derive(Deserialize)]
struct Header<'a> {
    alg: &'a str,
    kid: &'a str,
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    exp: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: Box<str>,
    #[serde(default)]
    pod: Option<Named>,
    serviceaccount: Account,
}

#[derive(Deserialize)]
struct Named {
    uid: Box<str>,
}

#[derive(Deserialize)]
struct Account {
    name: Box<str>,
}

fn verify(
    token: &[u8],
    keys: &Verifier,
    audience: &str,
    wall: UnixSeconds,
) -> Result<Bearer, Untrusted> {
    let malformed = Untrusted::Malformed;
    let text = std::str::from_utf8(token).map_err(|_not_text| malformed)?;
    let (message, signature) = text.rsplit_once('.').ok_or(malformed)?;
    let (header, claims) = message.split_once('.').ok_or(malformed)?;
    if claims.contains('.') {
        return Err(malformed);
    }
    let decode = |part: &str| {
        URL_SAFE_NO_PAD
            .decode(part)
            .map_err(|_not_base64| malformed)
    };
    let header = decode(header)?;
    let header: Header<'_> = serde_json::from_slice(&header).map_err(|_not_json| malformed)?;
    if header.crit.is_some() {
        return Err(malformed);
    }
    // Before anything in the claims is believed, or even parsed.
    keys.verify(
        header.kid,
        header.alg,
        message.as_bytes(),
        &decode(signature)?,
    )?;
    let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_not_json| malformed)?;
    if claims.iss != keys.issuer() {
        return Err(Untrusted::WrongIssuer);
    }
    let for_us = match &claims.aud {
        Audience::One(one) => one == audience,
        Audience::Many(many) => many.iter().any(|one| one == audience),
    };
    if !for_us {
        return Err(Untrusted::WrongAudience);
    }
    if claims.exp.saturating_add(LEEWAY_S) <= wall.get() {
        return Err(Untrusted::Expired);
    }
    if claims
        .nbf
        .is_some_and(|nbf| nbf.saturating_sub(LEEWAY_S) > wall.get())
    {
        return Err(Untrusted::NotYet);
    }
    let kubernetes = claims.kubernetes.ok_or(Untrusted::NoPod)?;
    let pod = kubernetes.pod.ok_or(Untrusted::NoPod)?;
    Ok(Bearer {
        pod_uid: pod.uid,
        namespace: kubernetes.namespace,
        service_account: kubernetes.serviceaccount.name,
        expires_at: UnixSeconds::new(claims.exp),
    })
}
