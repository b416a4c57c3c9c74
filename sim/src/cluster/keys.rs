//! The keys that sign ServiceAccount tokens: JSON web tokens with ES256, and the key set that
//! verifies them.
//!
//! ES256 and not RS256, because ring makes no RSA keys; API servers offer both.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    UnparsedPublicKey,
};
use serde_json::{Value, json};

use crate::listen::StartError;

/// Retired keys that still verify; an older one is forgotten.
const RETIRED_MAX: usize = 8;

struct Key {
    id: String,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new() -> Result<Self, StartError> {
        let failed = |_| StartError::SigningKey;
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(failed)?;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random)
            .map_err(|_rejected| StartError::SigningKey)?;
        let id = URL_SAFE_NO_PAD.encode(digest(&SHA256, pair.public_key().as_ref()));
        Ok(Self { id, pair })
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key())
            .verify(message, signature)
            .is_ok()
    }

    fn to_json(&self) -> Value {
        // An uncompressed point: one byte of format, then both coordinates.
        let point = self.pair.public_key().as_ref();
        let coordinate = |range| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id,
            "x": coordinate(1..33), "y": coordinate(33..65),
        })
    }
}

/// The signing key and those it replaced, which stay valid.
pub(crate) struct Keys {
    current: Key,
    retired: Vec<Key>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys")
            .field("current", &self.current.id)
            .finish_non_exhaustive()
    }
}

impl Keys {
    pub(crate) fn new() -> Result<Self, StartError> {
        Ok(Self {
            current: Key::new()?,
            retired: Vec::new(),
        })
    }

    /// Signs with a new key from now on.
    pub(crate) fn rotate(&mut self) -> Result<(), StartError> {
        let old = std::mem::replace(&mut self.current, Key::new()?);
        self.retired.insert(0, old);
        self.retired.truncate(RETIRED_MAX);
        Ok(())
    }

    /// A token that carries these claims.
    pub(crate) fn sign(&self, claims: &Value) -> Result<String, StartError> {
        let head = json!({"alg": "ES256", "kid": self.current.id});
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&head), encode(claims));
        let signature = self
            .current
            .pair
            .sign(&SystemRandom::new(), message.as_bytes())
            .map_err(|_unspecified| StartError::SigningKey)?;
        Ok(format!(
            "{message}.{}",
            URL_SAFE_NO_PAD.encode(signature.as_ref())
        ))
    }

    /// The claims of a token that one of the keys signed.
    pub(crate) fn verify(&self, token: &str) -> Option<Value> {
        let (message, signature) = token.rsplit_once('.')?;
        let (head, claims) = message.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let head: Value = serde_json::from_slice(&decode(head)?).ok()?;
        let id = head.get("kid")?.as_str()?;
        let key = std::iter::once(&self.current)
            .chain(&self.retired)
            .find(|key| key.id == id)?;
        if head.get("alg")? != "ES256" || !key.verifies(message.as_bytes(), &decode(signature)?) {
            return None;
        }
        serde_json::from_slice(&decode(claims)?).ok()
    }

    /// The JSON web key set: every key that still verifies, the signing one first.
    pub(crate) fn to_json(&self) -> Value {
        let keys: Vec<Value> = std::iter::once(&self.current)
            .chain(&self.retired)
            .map(Key::to_json)
            .collect();
        json!({"keys": keys})
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Keys;

    #[test]
    fn tokens_outlive_a_rotation_and_bend_nowhere() {
        let mut keys = Keys::new().unwrap();
        let claims = json!({"sub": "system:serviceaccount:ns:name"});
        let token = keys.sign(&claims).unwrap();
        keys.rotate().unwrap();
        assert_eq!(keys.verify(&token), Some(claims.clone()));
        assert_eq!(keys.to_json()["keys"].as_array().unwrap().len(), 2);
        let newer = keys.sign(&claims).unwrap();
        assert_ne!(token.split('.').next(), newer.split('.').next());
        assert_eq!(
            Keys::new().unwrap().verify(&token),
            None,
            "another cluster's keys"
        );
        let (message, signature) = token.rsplit_once('.').unwrap();
        let (head, _) = message.split_once('.').unwrap();
        assert_eq!(
            keys.verify(&format!("{head}.e30.{signature}")),
            None,
            "other claims"
        );
        assert_eq!(keys.verify("a.b.c"), None);
    }
}
