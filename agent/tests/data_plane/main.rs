//! The data plane through real sockets, with both drivers.

mod container;
mod contract;
mod hostile;
mod lifecycle;
mod limits;
mod parking;
mod passthrough;
mod support;
