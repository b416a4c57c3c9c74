//! Reaching a connection whose descriptor the runtime has.
//!
//! The runtime gives no descriptor that may be borrowed safely, so one is fetched from this process
//! by number: three system calls, on the few connections whose socket options matter.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use nix::sys::socket::{Shutdown, shutdown};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Of the socket with this number in this process.
///
/// # Errors
/// A seccomp profile may forbid it.
pub(super) fn of(number: RawFd) -> io::Result<OwnedFd> {
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?)
}

/// Makes whatever is under way on the socket with this number end at once, sending as well as
/// receiving. The number is of a connection that is held.
pub(super) fn cut(number: RawFd) {
    if let Err(error) = shutdown(number, Shutdown::Both) {
        tracing::debug!(%error, "a connection cannot be cut off; it has ended already");
    }
}
