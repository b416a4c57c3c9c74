//! A second descriptor of a connection.
//!
//! The runtime gives no descriptor that may be borrowed safely, so one is fetched from this process
//! by number: three system calls, on the few connections whose socket options matter.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Of the socket with this number in this process.
///
/// # Errors
/// A seccomp profile may forbid it.
pub(super) fn of(number: RawFd) -> io::Result<OwnedFd> {
    let process = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?)
}
