//! The agent: answers the pods of one node as the metadata service would.

pub mod clock;
pub mod config;
pub mod control;
pub mod data;
pub mod doorbell;
pub mod drain;
pub mod hardening;
pub mod logging;
pub mod metrics;
pub mod readiness;
pub mod response;
pub mod snapshot;
pub mod tally;
