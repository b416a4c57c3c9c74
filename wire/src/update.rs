//! What a server says on the stream.
//!
//! Parsing is where trust begins: what comes out of [`Parsed`] keeps every limit, and what does not
//! is left out and counted, so that one bad pod cannot take its node's other pods down.

use std::collections::HashSet;
use std::sync::Arc;

use crate::credentials::Credentials;
use crate::identity::{PodUid, Revision};
use crate::keys::VerificationKeys;
use crate::limits::{CREDENTIALS_MAX, PODS_MAX};
use crate::malformed::Malformed;
use crate::pod::Pod;
use crate::proto;

/// One message of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Everything the node should serve.
    Full(Full),
    /// What changed since an earlier revision.
    Delta(Delta),
}

impl Update {
    /// The revision the agent holds once this has been applied.
    pub const fn leads_to(&self) -> Revision {
        match self {
            Self::Full(full) => full.revision,
            Self::Delta(delta) => delta.to,
        }
    }
}

/// Everything the node should serve. Pods not named are not on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Full {
    /// The state this is.
    pub revision: Revision,
    /// The node's pods.
    pub pods: Vec<Pod>,
    /// What granted pods refer to.
    pub credentials: Vec<Arc<Credentials>>,
    /// The cluster's token keys; `None` when the server has none.
    pub keys: Option<Arc<VerificationKeys>>,
}

/// What changed since an earlier revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The revision this may be applied to.
    pub from: Revision,
    /// The revision it leads to.
    pub to: Revision,
    /// New and changed pods, each whole.
    pub pods: Vec<Pod>,
    /// Pods that are gone.
    pub removed_pods: Vec<PodUid>,
    /// New and renewed credentials.
    pub credentials: Vec<Arc<Credentials>>,
    /// `None`: unchanged.
    pub keys: Option<Arc<VerificationKeys>>,
}

/// An update, and what had to be left out of it.
#[derive(Debug)]
pub struct Parsed {
    /// What remains.
    pub update: Update,
    /// Why something was left out; empty when all is well.
    pub left_out: Vec<Malformed>,
    /// Pods of a Delta whose new state is among that. What they were before they are no longer, and whoever
    /// went on to answer it would be wrong in the way that matters.
    pub unreadable: Vec<PodUid>,
}

impl TryFrom<proto::ServerMessage> for Parsed {
    type Error = Malformed;

    fn try_from(message: proto::ServerMessage) -> Result<Self, Malformed> {
        use proto::server_message::Message;
        let (mut left_out, mut unreadable) = (Vec::new(), Vec::new());
        let update = match message
            .message
            .ok_or(Malformed::missing("server_message.message"))?
        {
            Message::Full(message) => Update::Full(full(message, &mut left_out)?),
            Message::Delta(message) => {
                let named: Vec<String> = message.pods.iter().map(|pod| pod.uid.clone()).collect();
                let delta = delta(message, &mut left_out)?;
                unreadable = missing(&named, &delta.pods);
                Update::Delta(delta)
            }
        };
        Ok(Self {
            update,
            left_out,
            unreadable,
        })
    }
}

fn full(message: proto::Full, left_out: &mut Vec<Malformed>) -> Result<Full, Malformed> {
    let proto::Full {
        revision,
        pods,
        credentials,
        keys,
    } = message;
    Ok(Full {
        revision: Revision::parse(revision, "full.revision")?,
        pods: each(pods, PODS_MAX, "full.pods", left_out)?,
        credentials: shared(credentials, "full.credentials", left_out)?,
        keys: verification_keys(keys, left_out),
    })
}

fn delta(message: proto::Delta, left_out: &mut Vec<Malformed>) -> Result<Delta, Malformed> {
    let proto::Delta {
        from,
        to,
        pods,
        removed_pods,
        credentials,
        keys,
    } = message;
    if removed_pods.len() > PODS_MAX {
        return Err(Malformed::too_long("delta.removed_pods"));
    }
    Ok(Delta {
        from: Revision::parse(from, "delta.from")?,
        to: Revision::parse(to, "delta.to")?,
        pods: each(pods, PODS_MAX, "delta.pods", left_out)?,
        removed_pods: removed_pods
            .iter()
            .filter_map(|uid| keep(PodUid::try_new(uid), left_out))
            .collect(),
        credentials: shared(credentials, "delta.credentials", left_out)?,
        keys: verification_keys(keys, left_out),
    })
}

/// Those who were named and are not among `read`, as far as they can be told.
fn missing(named: &[String], read: &[Pod]) -> Vec<PodUid> {
    if named.len() == read.len() {
        return Vec::new();
    }
    let read: HashSet<&str> = read.iter().map(|pod| pod.uid.as_str()).collect();
    let missing = named.iter().filter(|uid| !read.contains(uid.as_str()));
    missing
        .filter_map(|uid| PodUid::try_new(uid).ok())
        .collect()
}

fn keep<T>(result: Result<T, Malformed>, left_out: &mut Vec<Malformed>) -> Option<T> {
    result.map_err(|malformed| left_out.push(malformed)).ok()
}

fn each<M, T: TryFrom<M, Error = Malformed>>(
    messages: Vec<M>,
    max: usize,
    field: &'static str,
    left_out: &mut Vec<Malformed>,
) -> Result<Vec<T>, Malformed> {
    if messages.len() > max {
        return Err(Malformed::too_long(field));
    }
    Ok(messages
        .into_iter()
        .filter_map(|message| keep(T::try_from(message), left_out))
        .collect())
}

fn shared(
    messages: Vec<proto::Credentials>,
    field: &'static str,
    left_out: &mut Vec<Malformed>,
) -> Result<Vec<Arc<Credentials>>, Malformed> {
    let credentials = each::<_, Credentials>(messages, CREDENTIALS_MAX, field, left_out)?;
    Ok(credentials.into_iter().map(Arc::new).collect())
}

fn verification_keys(
    keys: Option<proto::VerificationKeys>,
    left_out: &mut Vec<Malformed>,
) -> Option<Arc<VerificationKeys>> {
    keys.and_then(|keys| keep(VerificationKeys::try_from(keys), left_out))
        .map(Arc::new)
}

impl From<&Update> for proto::ServerMessage {
    fn from(update: &Update) -> Self {
        use proto::server_message::Message;
        let message = match update {
            Update::Full(full) => Message::Full(proto::Full {
                revision: Some(full.revision.into()),
                pods: full.pods.iter().map(proto::Pod::from).collect(),
                credentials: messages(&full.credentials),
                keys: full.keys.as_deref().map(proto::VerificationKeys::from),
            }),
            Update::Delta(delta) => Message::Delta(proto::Delta {
                from: Some(delta.from.into()),
                to: Some(delta.to.into()),
                pods: delta.pods.iter().map(proto::Pod::from).collect(),
                removed_pods: delta.removed_pods.iter().map(ToString::to_string).collect(),
                credentials: messages(&delta.credentials),
                keys: delta.keys.as_deref().map(proto::VerificationKeys::from),
            }),
        };
        Self {
            message: Some(message),
        }
    }
}

fn messages(credentials: &[Arc<Credentials>]) -> Vec<proto::Credentials> {
    credentials
        .iter()
        .map(|credentials| proto::Credentials::from(credentials.as_ref()))
        .collect()
}
