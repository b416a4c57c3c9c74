//! A real server process in a simulated world: what reaches which agent, when, and who is let in.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    clippy::large_futures,
    reason = "a test that meets the unexpected stops where it stands, and tells one story in one place"
)]

#[path = "edge_server/crowds.rs"]
mod crowds;
#[path = "edge_server/harness.rs"]
mod harness;
#[path = "edge_server/identity.rs"]
mod identity;
#[path = "edge_server/migration.rs"]
mod migration;
#[path = "edge_server/operations.rs"]
mod operations;
#[path = "edge_server/pods.rs"]
mod pods;
