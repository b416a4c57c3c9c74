//! The agent: see the modules.

pub mod clock;
pub mod data;
pub mod doorbell;
pub mod response;
pub mod snapshot;
pub mod tally;
