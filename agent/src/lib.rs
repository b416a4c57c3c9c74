//! Under construction.

pub mod fence;
pub mod handover;
pub mod intercept;
