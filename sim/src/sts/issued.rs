//! The keys issued, for as long as they are good: whose they are, and what they look like.
//!
//! Secret and session token are derived from the access key id with a key of this run, so that a
//! hundred thousand sessions need no memory for theirs. Bounded: the oldest are forgotten.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::hmac;

use super::identity::{Identity, letter};
use super::refusal::Refusal;
use super::request::AssumeRole;

/// Sessions remembered at once.
const SESSIONS_MAX: usize = 200_000;
/// A real session token is some 700 to 1,100 characters long; this many bytes make 900.
const TOKEN_BYTES: usize = 675;

/// Credentials on their way to the client.
pub(super) struct Session {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    pub(super) token: String,
    pub(super) expires_at: Timestamp,
    pub(super) identity: Identity,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("access_key_id", &self.access_key_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    expires_at: Timestamp,
}

#[derive(Debug)]
pub(super) struct Issued {
    known: HashMap<String, Known>,
    /// The keys of `known`, oldest first.
    order: VecDeque<String>,
    key: hmac::Key,
    dice: fastrand::Rng,
}

impl Issued {
    pub(super) fn new(seed: u64) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &seed.to_be_bytes());
        let dice = fastrand::Rng::with_seed(seed);
        Self {
            known: HashMap::new(),
            order: VecDeque::new(),
            key,
            dice,
        }
    }

    pub(super) fn issue(&mut self, request: &AssumeRole, expires_at: Timestamp) -> Session {
        let letters = std::iter::repeat_with(|| letter(self.dice.u8(..))).take(16);
        let access_key_id: String = "ASIA".chars().chain(letters).collect();
        let identity = Identity::session(
            &request.partition,
            &request.account,
            &request.role,
            &request.session_name,
        );
        if self.known.len() >= SESSIONS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(access_key_id.clone());
        self.known.insert(
            access_key_id.clone(),
            Known {
                identity: identity.clone(),
                expires_at,
            },
        );
        Session {
            secret_access_key: self.derive(&access_key_id, "secret", 30),
            token: self.derive(&access_key_id, "token", TOKEN_BYTES),
            access_key_id,
            expires_at,
            identity,
        }
    }

    /// Whose key this is; none if it was not issued here.
    pub(super) fn identify(
        &self,
        access_key_id: &str,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<Option<Identity>, Refusal> {
        let Some(known) = self.known.get(access_key_id) else {
            return Ok(None);
        };
        if token != Some(self.derive(access_key_id, "token", TOKEN_BYTES).as_str()) {
            return Err(Refusal::invalid_token());
        }
        if known.expires_at <= now {
            return Err(Refusal::expired_token());
        }
        Ok(Some(known.identity.clone()))
    }

    /// `length` bytes in base64 that only this run derives from this key id.
    fn derive(&self, access_key_id: &str, purpose: &str, length: usize) -> String {
        let block = |at: u8| {
            let mut context = hmac::Context::with_key(&self.key);
            context.update(&[at]);
            context.update(purpose.as_bytes());
            context.update(access_key_id.as_bytes());
            context.sign()
        };
        let bytes: Vec<u8> = (0..=u8::MAX)
            .flat_map(|at| block(at).as_ref().to_vec())
            .take(length)
            .collect();
        STANDARD.encode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::Issued;
    use crate::sts::request::{AssumeRole, Parameters};

    #[test]
    fn keys_know_their_role_until_they_expire() {
        let form = "RoleArn=arn:aws:iam::123456789012:role/team/reader&RoleSessionName=pod-1";
        let request = AssumeRole::parse(&Parameters::parse(form.as_bytes())).unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let later = now + SignedDuration::from_hours(1);
        let mut issued = Issued::new(1);
        let session = issued.issue(&request, later);
        assert_eq!(session.access_key_id.len(), 20);
        assert_eq!(session.secret_access_key.len(), 40);
        assert_eq!(session.token.len(), 900);
        assert!(!format!("{session:?}").contains(&session.secret_access_key));
        let who = |token, at| issued.identify(&session.access_key_id, token, at);
        let known = who(Some(&*session.token), now).unwrap().unwrap();
        assert_eq!(
            known.arn(),
            "arn:aws:sts::123456789012:assumed-role/reader/pod-1"
        );
        assert_eq!(
            who(Some(&*session.token), later).unwrap_err().code(),
            "ExpiredToken"
        );
        assert_eq!(
            who(Some("x"), now).unwrap_err().code(),
            "InvalidClientTokenId"
        );
        assert_eq!(who(None, now).unwrap_err().code(), "InvalidClientTokenId");
        assert_eq!(issued.identify("AKIAX", None, now), Ok(None));
    }
}
