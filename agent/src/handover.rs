//! What one agent leaves for the next: who may have what, the key of the IMDSv2 tokens, and, when
//! both run at once, the listening sockets themselves.
//!
//! With it a restarted agent answers from its first millisecond, also while every server is down,
//! and an upgrade loses no connection. In reading order:
//! - [`directory`]: where it may be kept at all: memory, ours alone;
//! - [`sealed`]: a checksummed envelope, so that half a file is never taken for a whole one;
//! - [`snapshot`]: what the node should be serving, with everything that makes it stale or foreign;
//! - [`watched`]: until when an agent watched over it;
//! - [`token_key`]: made once per boot, shared by agents side by side;
//! - [`listeners`]: passed from the running agent to its successor.
//!
//! # Invariants
//! - Secrets are written to memory file systems only, for their owner only, and wiped from buffers.
//! - Nothing here is on a request's way, and nothing here can keep an agent from starting: what is
//!   refused is logged with its reason, and the agent begins with nothing.

pub mod directory;
pub mod listeners;
pub mod sealed;
pub mod snapshot;
pub mod token_key;
pub mod watched;

use std::io;

/// The kernel's name for this boot: what was left before it says nothing about now.
///
/// # Errors
/// `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}
