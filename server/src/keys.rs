//! Reads the cluster's `ServiceAccount` token keys from the API server, for the agents' second door.
//!
//! They are public; agents get them from here because a node may not be able to reach the API
//! server, or be allowed to. The issuer's own address is never followed: both documents come from
//! the API server, which is authenticated. Keys rotate rarely and overlap, so reading them every few
//! minutes is enough.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kiam_wire::keys::{KeyMaterial, VerificationKey, VerificationKeys};
use kiam_wire::limits::KEYS_MAX;
use serde::Deserialize;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::drain::Draining;
use crate::pods::{ApiError, KubeApi};

const CONFIGURATION: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";
/// How often the keys are read.
const EVERY: Duration = Duration::from_mins(5);
/// How soon they are read again after a failure; then after twice that, up to [`EVERY`].
const AGAIN: Duration = Duration::from_secs(10);
/// One failure in so many is worth a warning: about one an hour. Where the second door is not used,
/// the documents may well be closed to the server for good.
const WARNED_EVERY: u32 = 12;

/// The keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The API server did not give a document.
    #[error("{document}: {source}")]
    Api {
        /// Its path.
        document: &'static str,
        /// Why.
        source: ApiError,
    },
    /// A document cannot be read.
    #[error("{document}: {source}")]
    Document {
        /// Its path.
        document: &'static str,
        /// Why.
        source: serde_json::Error,
    },
}

/// Keeps reading the keys.
pub fn start(
    api: KubeApi,
    mut draining: Draining,
) -> (
    watch::Receiver<Option<Arc<VerificationKeys>>>,
    tokio::task::JoinHandle<()>,
) {
    let (sender, receiver) = watch::channel(None);
    let task = tokio::spawn(async move {
        let read = || {
            let api = api.clone();
            async move { read(&api).await }
        };
        tokio::select! {
            () = draining.started() => {}
            () = keep_reading(read, sender) => {}
        }
    });
    (receiver, task)
}

async fn keep_reading<R: Future<Output = Result<VerificationKeys, KeysError>>>(
    read: impl Fn() -> R,
    known: watch::Sender<Option<Arc<VerificationKeys>>>,
) {
    let mut failures: u32 = 0;
    loop {
        let next = match read().await {
            Ok(keys) => {
                failures = 0;
                known.send_if_modified(|known| take_in(known, keys));
                EVERY
            }
            Err(error) => {
                if failures.is_multiple_of(WARNED_EVERY) {
                    warn!(
                        %error,
                        "cannot read the cluster's token keys; the container credentials endpoint \
                         keeps those it has"
                    );
                } else {
                    debug!(%error, failures, "cannot read the cluster's token keys");
                }
                let longer = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
                failures = failures.saturating_add(1);
                AGAIN.saturating_mul(longer).min(EVERY)
            }
        };
        tokio::time::sleep(next.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
    }
}

fn take_in(known: &mut Option<Arc<VerificationKeys>>, keys: VerificationKeys) -> bool {
    if known.as_deref() == Some(&keys) {
        return false;
    }
    info!(issuer = keys.issuer, keys = keys.keys.len(), "token keys");
    *known = Some(Arc::new(keys));
    true
}

async fn read(api: &KubeApi) -> Result<VerificationKeys, KeysError> {
    let get = async |document| {
        let text = api.text(document).await;
        text.map_err(|source| KeysError::Api { document, source })
    };
    let configuration = get(CONFIGURATION).await?;
    let keys = get(KEYS).await?;
    parse(&configuration, &keys)
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    kid: String,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
}

/// Reads both documents. A key of an unknown kind is left out: its tokens are refused, and the
/// others still verify theirs.
fn parse(configuration: &str, keys: &str) -> Result<VerificationKeys, KeysError> {
    let document = |document| move |source| KeysError::Document { document, source };
    let configuration: Configuration =
        serde_json::from_str(configuration).map_err(document(CONFIGURATION))?;
    let set: KeySet = serde_json::from_str(keys).map_err(document(KEYS))?;
    let keys = set.keys.iter().filter_map(key).take(KEYS_MAX).collect();
    Ok(VerificationKeys {
        issuer: configuration.issuer,
        keys,
    })
}

fn key(jwk: &Jwk) -> Option<VerificationKey> {
    if jwk.kid.is_empty() || jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
        return None;
    }
    let material = match (jwk.kty.as_str(), jwk.crv.as_str()) {
        ("RSA", _) => KeyMaterial::Rsa {
            modulus: integer(&jwk.n)?,
            exponent: integer(&jwk.e)?,
        },
        ("EC", "P-256") => KeyMaterial::P256(point(&jwk.x, &jwk.y, 32)?),
        ("EC", "P-384") => KeyMaterial::P384(point(&jwk.x, &jwk.y, 48)?),
        _ => return None,
    };
    Some(VerificationKey {
        id: jwk.kid.clone(),
        material,
    })
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

/// Big-endian, without leading zeros.
fn integer(text: &str) -> Option<Vec<u8>> {
    let bytes = decoded(text)?;
    let digits: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
    (!digits.is_empty()).then_some(digits)
}

/// The uncompressed point: 4, x, y, each coordinate in full width.
fn point(x: &str, y: &str, width: usize) -> Option<Vec<u8>> {
    let mut point = vec![4];
    for coordinate in [decoded(x)?, decoded(y)?] {
        if coordinate.len() != width {
            return None;
        }
        point.extend(coordinate);
    }
    Some(point)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn what_stays_closed_is_asked_for_less_and_less() {
        let (sender, known) = watch::channel(None);
        let reads = AtomicU32::new(0);
        let read = || {
            reads.fetch_add(1, Ordering::Relaxed);
            async {
                Err(KeysError::Api {
                    document: KEYS,
                    source: ApiError::Forbidden("closed".into()),
                })
            }
        };
        let keeping = keep_reading(read, sender);
        let an_hour = tokio::time::timeout(Duration::from_hours(1), keeping);
        assert!(an_hour.await.is_err());
        let reads = reads.load(Ordering::Relaxed);
        assert!((12..=20).contains(&reads), "{reads} in an hour");
        assert!(known.borrow().is_none());
    }

    fn coded(bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    #[track_caller]
    fn check(jwk: &serde_json::Value, expected: Option<&KeyMaterial>) {
        let configuration = json!({"issuer": "https://cluster", "jwks_uri": "https://elsewhere"});
        let keys = parse(
            &configuration.to_string(),
            &json!({"keys": [jwk]}).to_string(),
        )
        .unwrap();
        assert_eq!(keys.issuer, "https://cluster");
        let materials = keys.keys.into_iter().map(|key| key.material).next();
        assert_eq!(materials.as_ref(), expected);
    }

    #[test]
    fn keys_of_each_kind_are_read() {
        let rsa = json!({"kty": "RSA", "kid": "1", "use": "sig", "alg": "RS256",
                         "n": coded(&[&[0][..], &[9; 256]].concat()), "e": coded(&[1, 0, 1])});
        let expected = KeyMaterial::Rsa {
            modulus: vec![9; 256],
            exponent: vec![1, 0, 1],
        };
        check(&rsa, Some(&expected));
        let ec = json!({"kty": "EC", "kid": "1", "crv": "P-256",
                        "x": coded(&[1; 32]), "y": coded(&[2; 32])});
        let expected = [&[4][..], &[1; 32], &[2; 32]].concat();
        check(&ec, Some(&KeyMaterial::P256(expected)));
    }

    #[test]
    fn keys_that_cannot_be_used_are_left_out() {
        check(
            &json!({"kty": "OKP", "kid": "1", "crv": "Ed25519", "x": coded(&[1; 32])}),
            None,
        );
        check(
            &json!({"kty": "RSA", "kid": "1", "n": "", "e": "AQAB"}),
            None,
        );
        check(
            &json!({"kty": "RSA", "kid": "", "n": coded(&[9; 256]), "e": "AQAB"}),
            None,
        );
        check(
            &json!({"kty": "RSA", "kid": "1", "use": "enc", "n": coded(&[9; 256]), "e": "AQAB"}),
            None,
        );
        check(
            &json!({"kty": "EC", "kid": "1", "crv": "P-256", "x": coded(&[1; 31]), "y": coded(&[2; 32])}),
            None,
        );
    }

    #[test]
    fn documents_that_are_none_are_errors_that_name_them() {
        let error = parse("<html>", "{\"keys\":[]}").unwrap_err().to_string();
        assert!(error.starts_with(CONFIGURATION), "{error}");
        let error = parse("{\"issuer\":\"i\"}", "[]").unwrap_err().to_string();
        assert!(error.starts_with(KEYS), "{error}");
    }
}
