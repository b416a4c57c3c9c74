//! More than there should ever be: connections, requests, roles whose sessions end together.
//!
//! Sizes are those that every machine can take in a minute; the nightly run asks for more in
//! `KIAM_FLOOD_CONNECTIONS`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed, and says what it has seen"
)]

#[path = "overload/connections.rs"]
mod connections;
#[path = "overload/outage.rs"]
mod outage;
