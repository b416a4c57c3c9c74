//! The cluster's token keys, prepared for verifying.
//!
//! A key verifies with the one algorithm of its type: what a token's header says is compared with
//! it and never followed.

use std::fmt;

use kiam_wire::keys::{KeyMaterial, VerificationKeys};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};

/// Verifies ServiceAccount tokens of one cluster.
pub struct Verifier {
    issuer: String,
    keys: Vec<Key>,
}

struct Key {
    id: String,
    prepared: Prepared,
}

enum Prepared {
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    P256(UnparsedPublicKey<Vec<u8>>),
    P384(UnparsedPublicKey<Vec<u8>>),
}

impl Prepared {
    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
            Self::P384(_) => "ES384",
        }
    }
}

/// Why a signature does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// No such key: perhaps one that has not been pushed yet.
    #[error("the token's key is not known")]
    UnknownKey,
    /// The header names another algorithm than the key's.
    #[error("the token's algorithm is not its key's")]
    WrongAlgorithm,
    /// Forged or damaged.
    #[error("the token's signature is wrong")]
    WrongSignature,
}

impl Verifier {
    /// Prepares the keys of one issuer.
    pub fn new(keys: &VerificationKeys) -> Self {
        let VerificationKeys { issuer, keys } = keys;
        let keys = keys
            .iter()
            .map(|key| Key {
                id: key.id.clone(),
                prepared: match &key.material {
                    KeyMaterial::Rsa { modulus, exponent } => {
                        Prepared::Rsa(RsaPublicKeyComponents {
                            n: modulus.clone(),
                            e: exponent.clone(),
                        })
                    }
                    KeyMaterial::P256(point) => Prepared::P256(UnparsedPublicKey::new(
                        &signature::ECDSA_P256_SHA256_FIXED,
                        point.clone(),
                    )),
                    KeyMaterial::P384(point) => Prepared::P384(UnparsedPublicKey::new(
                        &signature::ECDSA_P384_SHA384_FIXED,
                        point.clone(),
                    )),
                },
            })
            .collect();
        Self {
            issuer: issuer.clone(),
            keys,
        }
    }

    /// The `iss` that tokens must carry.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Checks `signature` over `message` with the key called `key_id`. `algorithm` is what the
    /// token's header says.
    pub fn verify(
        &self,
        key_id: &str,
        algorithm: &str,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), Unverified> {
        let key = self
            .keys
            .iter()
            .find(|key| key.id == key_id)
            .ok_or(Unverified::UnknownKey)?;
        if key.prepared.algorithm() != algorithm {
            return Err(Unverified::WrongAlgorithm);
        }
        match &key.prepared {
            Prepared::Rsa(key) => {
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            Prepared::P256(key) | Prepared::P384(key) => key.verify(message, signature),
        }
        .map_err(|_unspecified| Unverified::WrongSignature)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("issuer", &self.issuer)
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}
