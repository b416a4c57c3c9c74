//! The data plane through real sockets, with both drivers.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::too_many_lines,
    reason = "a test that cannot go on has failed, and a table is as long as it is"
)]

mod container;
mod contract;
mod hostile;
mod lifecycle;
mod limits;
mod parking;
mod passthrough;
mod support;
