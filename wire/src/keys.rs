//! The cluster's ServiceAccount token keys, as the second door needs them.
//!
//! A key carries the one algorithm it may verify, so that a token cannot choose.

use crate::limits::{ISSUER_BYTES_MAX, KEYS_MAX, NAME_BYTES_MAX, RSA_MODULUS_BYTES_MAX};
use crate::malformed::{Malformed, token};
use crate::proto;

/// Who signs ServiceAccount tokens, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerificationKeys {
    /// The `iss` that tokens must carry.
    pub issuer: String,
    /// Current, previous and coming keys.
    pub keys: Vec<VerificationKey>,
}

/// One public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerificationKey {
    /// The JOSE header's `kid`.
    pub id: String,
    /// The key, and with it the algorithm.
    pub material: KeyMaterial,
}

/// A public key and the one algorithm it verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyMaterial {
    /// RS256.
    Rsa {
        /// Big-endian, 2048 to 8192 bits.
        modulus: Vec<u8>,
        /// Big-endian.
        exponent: Vec<u8>,
    },
    /// ES256: an uncompressed point of 65 bytes.
    P256(Vec<u8>),
    /// ES384: an uncompressed point of 97 bytes.
    P384(Vec<u8>),
}

/// Shorter RSA keys than this are refused (NIST SP 800-131A).
const RSA_MODULUS_BYTES_MIN: usize = 256;
const P256_POINT_BYTES: usize = 65;
const P384_POINT_BYTES: usize = 97;
const _: () = assert!(RSA_MODULUS_BYTES_MIN <= RSA_MODULUS_BYTES_MAX);

impl TryFrom<proto::VerificationKeys> for VerificationKeys {
    type Error = Malformed;

    /// A key that cannot be used is left out: the others still verify their tokens.
    fn try_from(message: proto::VerificationKeys) -> Result<Self, Malformed> {
        let proto::VerificationKeys { issuer, keys } = message;
        token(&issuer, "keys.issuer", ISSUER_BYTES_MAX)?;
        if keys.len() > KEYS_MAX {
            return Err(Malformed::too_long("keys.keys"));
        }
        let keys = keys
            .into_iter()
            .filter_map(|key| VerificationKey::try_from(key).ok())
            .collect();
        Ok(Self { issuer, keys })
    }
}

impl TryFrom<proto::VerificationKey> for VerificationKey {
    type Error = Malformed;

    fn try_from(message: proto::VerificationKey) -> Result<Self, Malformed> {
        let proto::VerificationKey { id, key } = message;
        token(&id, "key.id", NAME_BYTES_MAX)?;
        let material = match key.ok_or(Malformed::missing("key.key"))? {
            proto::verification_key::Key::Rsa(proto::RsaKey { modulus, exponent }) => {
                if !(RSA_MODULUS_BYTES_MIN..=RSA_MODULUS_BYTES_MAX).contains(&modulus.len()) {
                    return Err(Malformed::new(
                        "key.rsa.modulus",
                        "is not 2048 to 8192 bits",
                    ));
                }
                if !(1..=8).contains(&exponent.len()) {
                    return Err(Malformed::new("key.rsa.exponent", "is not 1 to 8 bytes"));
                }
                KeyMaterial::Rsa { modulus, exponent }
            }
            proto::verification_key::Key::Ec(key) => match (key.curve(), key.point.len()) {
                (proto::Curve::P256, P256_POINT_BYTES) => KeyMaterial::P256(key.point),
                (proto::Curve::P384, P384_POINT_BYTES) => KeyMaterial::P384(key.point),
                (proto::Curve::P256 | proto::Curve::P384 | proto::Curve::Unspecified, _) => {
                    return Err(Malformed::new("key.ec", "is not a point of a known curve"));
                }
            },
        };
        Ok(Self { id, material })
    }
}

impl From<&VerificationKeys> for proto::VerificationKeys {
    fn from(keys: &VerificationKeys) -> Self {
        Self {
            issuer: keys.issuer.clone(),
            keys: keys.keys.iter().map(proto::VerificationKey::from).collect(),
        }
    }
}

impl From<&VerificationKey> for proto::VerificationKey {
    fn from(key: &VerificationKey) -> Self {
        let material = match &key.material {
            KeyMaterial::Rsa { modulus, exponent } => {
                proto::verification_key::Key::Rsa(proto::RsaKey {
                    modulus: modulus.clone(),
                    exponent: exponent.clone(),
                })
            }
            KeyMaterial::P256(point) => proto::verification_key::Key::Ec(proto::EcKey {
                curve: proto::Curve::P256.into(),
                point: point.clone(),
            }),
            KeyMaterial::P384(point) => proto::verification_key::Key::Ec(proto::EcKey {
                curve: proto::Curve::P384.into(),
                point: point.clone(),
            }),
        };
        Self {
            id: key.id.clone(),
            key: Some(material),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(material: KeyMaterial) -> VerificationKey {
        VerificationKey {
            id: "k1".into(),
            material,
        }
    }

    #[test]
    fn keys_survive_the_wire_and_unusable_ones_do_not() {
        let good = [
            key(KeyMaterial::Rsa {
                modulus: vec![9; 256],
                exponent: vec![1, 0, 1],
            }),
            key(KeyMaterial::P256(vec![4; 65])),
            key(KeyMaterial::P384(vec![4; 97])),
        ];
        let bad = [
            key(KeyMaterial::Rsa {
                modulus: vec![9; 128],
                exponent: vec![1, 0, 1],
            }),
            key(KeyMaterial::P256(vec![4; 64])),
        ];
        let sent = VerificationKeys {
            issuer: "https://cluster".into(),
            keys: good.iter().chain(&bad).cloned().collect(),
        };
        let got = VerificationKeys::try_from(proto::VerificationKeys::from(&sent)).unwrap();
        assert_eq!(got.keys, good);
    }

    #[test]
    fn a_set_without_an_issuer_is_refused() {
        let refused = VerificationKeys::try_from(proto::VerificationKeys::default()).unwrap_err();
        assert_eq!(refused.to_string(), "keys.issuer is missing");
    }
}
