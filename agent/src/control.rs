//! The control plane: follows a server and tells operators how it goes.
//!
//! One thread and one runtime; the data plane never waits for anything in here. In reading order:
//!
//! - [`served`]: what the node is served, and the one way to change it.
//! - [`subscription`], [`backoff`], [`outbox`]: what to do, decided without touching anything.
//! - [`tls`], [`bearer`], [`dial`]: one connection and who is at its ends.
//! - [`client`], [`mailbox`]: the stream; [`kernel_first`]: what comes before its words.
//! - [`admin`], [`metrics`]: what operators see.

pub mod admin;
pub mod backoff;
pub mod bearer;
pub mod client;
pub mod dial;
pub mod kernel_first;
pub mod mailbox;
pub mod metrics;
pub mod outbox;
pub mod served;
pub mod subscription;
pub mod tls;
