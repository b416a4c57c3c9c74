//! Reaching a connection whose descriptor the runtime has.
//!
//! The runtime gives no descriptor that may be borrowed safely, so one is fetched from this process
//! by number: three system calls, on the few connections whose socket options matter.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::net::{Shutdown, shutdown};
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
/// receiving. Where a second descriptor is forbidden nothing happens.
pub(super) fn cut(number: RawFd) {
    let done = of(number).and_then(|socket| Ok(shutdown(socket, Shutdown::Both)?));
    if let Err(error) = done {
        tracing::debug!(%error, "a connection cannot be cut off; it is closed as it is");
    }
}
