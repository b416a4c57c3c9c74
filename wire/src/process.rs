//! What both programs are as processes: how they are hardened, and their own numbers.

pub mod hardening;
pub mod numbers;
