//! What both programs are as processes: how they are hardened, how many files they may have open, their
//! own numbers, and how seldom they repeat themselves.

pub mod hardening;
pub mod numbers;
pub mod open_files;
pub mod seldom;
