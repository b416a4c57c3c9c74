//! Finds the node behind a `ServiceAccount` token.
//!
//! The API server reviews the token for our audience alone, so that a token for anything else is
//! worth nothing here. The node is what the API server says of the token, or, where it is too old to
//! say, the node of the pod that the token is bound to, as the watch knows it. A review is
//! remembered for a short while and never past the token's own end.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kiam_wire::{PodUid, UnixSeconds};
use ring::digest;

use super::turns::Turns;
use super::{Identity, Refusal};
use crate::clock::{Clock, Moment};
use crate::pods::{ApiError, KubeApi, Reviewed};

/// What agents' tokens must be for.
pub(super) const AUDIENCE: &str = "kiam-server";
/// How long a review is believed. A deleted agent's token is refused after that at the latest.
const BELIEVED: Duration = Duration::from_mins(1);
/// How long a refusal is. Someone may make good what was wrong.
const DISBELIEVED: Duration = Duration::from_secs(10);
/// Reviews remembered at most: one for each agent of the largest cluster, twice.
const REMEMBERED_MAX: usize = 10_000;
/// Reviews under way at a time. All agents of a large cluster may come back at once, and anyone may
/// show tokens of their own making: neither is a reason to overrun the API server.
const REVIEWS_MAX: usize = 32;
/// An agent that waits longer for its turn is told to come back.
const TURN_MAX: Duration = Duration::from_secs(10);
/// Longer than any token of an API server.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The agents' `ServiceAccount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::str::FromStr for Account {
    type Err = &'static str;

    /// Reads `namespace/name`.
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            Some(_) | None => Err("is not of the form namespace/name"),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Someone who can say whose a token is.
pub trait TokenReviewer: Send + Sync + fmt::Debug {
    /// Whose token this is, if it is good for `audience`.
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'a str,
    ) -> Answer<'a, Result<Option<Reviewed>, ApiError>>;
}

impl TokenReviewer for KubeApi {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'a str,
    ) -> Answer<'a, Result<Option<Reviewed>, ApiError>> {
        Box::pin(self.token_review(token, audience))
    }
}

/// Someone who knows where pods run.
pub trait Placement: Send + Sync + fmt::Debug {
    /// The node that the pod is bound to.
    fn node_of(&self, pod: PodUid) -> Answer<'_, Option<String>>;
}

/// Identifies agents by their tokens.
#[derive(Debug)]
pub struct Tokens {
    accounts: Vec<Account>,
    reviewer: Arc<dyn TokenReviewer>,
    placement: Arc<dyn Placement>,
    clock: Clock,
    remembered: Mutex<HashMap<[u8; 32], Remembered<Identity>>>,
    /// Apart, so that tokens of anyone's making do not take the room of agents'.
    refused: Mutex<HashMap<[u8; 32], Remembered<Refusal>>>,
    turns: Turns,
}

#[derive(Debug, Clone)]
struct Remembered<T> {
    what: T,
    until: Moment,
}

impl Tokens {
    /// Admits tokens of `accounts`.
    pub fn new(
        accounts: Vec<Account>,
        reviewer: Arc<dyn TokenReviewer>,
        placement: Arc<dyn Placement>,
        clock: Clock,
    ) -> Self {
        Self {
            accounts,
            reviewer,
            placement,
            clock,
            remembered: Mutex::default(),
            refused: Mutex::default(),
            turns: Turns::new(REVIEWS_MAX),
        }
    }

    /// Whose token it is. `from` is the address that it was shown from, unless that is this machine's.
    pub(super) async fn identify(
        &self,
        token: &str,
        from: Option<IpAddr>,
    ) -> Result<Identity, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Invalid("the token is too long".to_owned()));
        }
        // By its digest, so that a memory dump of the cache holds no token.
        let key = sha256(token);
        if let Some(known) = self.recall(&key) {
            return known;
        }
        let turn = tokio::time::timeout(TURN_MAX, self.turns.turn(from)).await;
        let Ok(Some(_turn)) = turn else {
            let busy = "too many tokens are being reviewed".to_owned();
            return Err(Refusal::Unavailable(busy));
        };
        // Someone may have shown the same token meanwhile.
        if let Some(known) = self.recall(&key) {
            return known;
        }
        let reviewed = self.review(token).await;
        let now = self.clock.now();
        match &reviewed {
            Ok(identity) => {
                let end = identity.valid_until();
                let left = end.map_or(BELIEVED, |end| end.since(now.wall).min(BELIEVED));
                remember(&self.remembered, key, identity, left, now.monotonic);
            }
            // Nobody was asked, or nothing was said of the token.
            Err(Refusal::Unavailable(_)) => {}
            Err(refusal) => remember(&self.refused, key, refusal, DISBELIEVED, now.monotonic),
        }
        reviewed
    }

    /// Asks the API server, and looks at what it says.
    async fn review(&self, token: &str) -> Result<Identity, Refusal> {
        let reviewed = match self.reviewer.review(token, AUDIENCE).await {
            Ok(Some(reviewed)) => reviewed,
            Ok(None) => {
                return Err(Refusal::Invalid(
                    "the API server does not accept the token".to_owned(),
                ));
            }
            Err(error) => return Err(Refusal::Unavailable(error.to_string())),
        };
        let end = expiry(token);
        if end.is_some_and(|end| end <= self.clock.now().wall) {
            return Err(Refusal::Invalid("the token has run out".to_owned()));
        }
        let node = self.node(&reviewed).await?;
        let pod = reviewed.pod_uid.as_deref();
        let pod = pod.and_then(|uid| PodUid::try_new(uid).ok());
        Ok(Identity::of_nodes(vec![node], end).bound_to(pod))
    }

    /// The node of an agent's token.
    async fn node(&self, reviewed: &Reviewed) -> Result<String, Refusal> {
        // An API server that knows nothing of audiences says none, and then the token is for
        // itself: every pod has one of those.
        if !reviewed.audiences.iter().any(|one| one == AUDIENCE) {
            return Err(Refusal::Invalid(format!(
                "the token is not for the audience {AUDIENCE}"
            )));
        }
        let is_agent = self.accounts.iter().any(|account| {
            let Account { namespace, name } = account;
            reviewed.username == format!("system:serviceaccount:{namespace}:{name}")
        });
        if !is_agent {
            return Err(Refusal::NotAnAgent(reviewed.username.clone()));
        }
        if let Some(node) = &reviewed.node_name {
            return Ok(node.clone());
        }
        let unbound = || Refusal::Invalid("the token is not bound to a pod on a node".to_owned());
        let uid = reviewed.pod_uid.as_deref().ok_or_else(unbound)?;
        let uid = PodUid::try_new(uid).map_err(|_malformed| unbound())?;
        let node = self.placement.node_of(uid).await;
        // The watch may be a moment behind; the agent comes back.
        node.ok_or_else(|| Refusal::Unavailable("the token's pod is not known yet".to_owned()))
    }

    fn recall(&self, key: &[u8; 32]) -> Option<Result<Identity, Refusal>> {
        let now = self.clock.now();
        if let Some(refusal) = recall(&self.refused, key, now.monotonic) {
            return Some(Err(refusal));
        }
        let identity = recall(&self.remembered, key, now.monotonic)?;
        let end = identity.valid_until();
        let wall_says_over = end.is_some_and(|end| end <= now.wall);
        (!wall_says_over).then_some(Ok(identity))
    }
}

type Memory<T> = Mutex<HashMap<[u8; 32], Remembered<T>>>;

fn recall<T: Clone>(memory: &Memory<T>, key: &[u8; 32], now: Moment) -> Option<T> {
    let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    let found = memory.get(key).filter(|found| found.until > now)?;
    Some(found.what.clone())
}

fn remember<T: Clone>(memory: &Memory<T>, key: [u8; 32], what: &T, left: Duration, now: Moment) {
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    if memory.len() >= REMEMBERED_MAX {
        memory.retain(|_key, one| one.until > now);
    }
    if memory.len() < REMEMBERED_MAX {
        let what = what.clone();
        let until = now.after(left);
        memory.insert(key, Remembered { what, until });
    }
}

fn sha256(text: &str) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    let mut key = [0; 32];
    for (to, from) in key.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    key
}

/// When the token runs out, by its own claim. The API server has verified the token; one that is no
/// JWT, or claims no end, is reviewed again when the review is forgotten.
fn expiry(token: &str) -> Option<UnixSeconds> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Some(UnixSeconds::new(claims.exp))
}

#[cfg(test)]
mod tests;
