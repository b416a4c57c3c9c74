//! The agent: answers the pods of one node as the metadata service would.

pub mod clock;
pub mod config;
pub mod data;
pub mod doorbell;
pub mod response;
pub mod snapshot;
pub mod tally;
