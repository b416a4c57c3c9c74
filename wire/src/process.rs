//! What both programs are as processes: how they are hardened, how many files they may have open, their
//! own numbers, and what their log lines may look like and how often they repeat themselves.

pub mod hardening;
pub mod numbers;
pub mod one_line;
pub mod open_files;
pub mod seldom;
