//! Watches the cluster: the only place of the server that names kube.
//!
//! It lists and follows pods, namespaces and, where their annotations count, `ServiceAccount`s, and
//! turns what the API server says into [`ClusterEvent`]s. It decides nothing. Objects are trimmed
//! while they are parsed ([`objects`]), because a cluster's pods as the API server shows them are
//! fifty times the size of what is needed. A watch never gives up: whatever goes wrong is waited out
//! with a growing, jittered delay, and what was missed meanwhile is listed again.

mod api;
mod connection;
mod follow;
mod objects;

pub use api::{ApiError, EventNote, KubeApi, Reviewed, Taint};
pub use connection::{Connection, ConnectionError, Source};
pub use follow::{Following, follow};

#[cfg(doc)]
use crate::nodes::ClusterEvent;
