//! What both programs are as processes: how they are hardened, how many files they may have open, and
//! their own numbers.

pub mod hardening;
pub mod numbers;
pub mod open_files;
