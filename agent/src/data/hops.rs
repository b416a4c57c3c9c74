//! How far the packets with a token travel.
//!
//! Concerns connections that ask for a token, and only when `--token-hop-limit` is given.

use std::io;
use std::num::NonZeroU8;
use std::os::fd::{OwnedFd, RawFd};

use socket2::{Domain, SockRef};

use super::descriptor;

/// A second descriptor of a connection.
pub(super) struct Socket {
    descriptor: OwnedFd,
    ipv6: bool,
}

impl Socket {
    /// The socket with this number in this process.
    pub(super) fn of(number: RawFd) -> io::Result<Self> {
        let descriptor = descriptor::of(number)?;
        let ipv6 = SockRef::from(&descriptor).domain()? == Domain::IPV6;
        Ok(Self { descriptor, ipv6 })
    }

    /// Limits what is sent from now on; returns what was before.
    pub(super) fn limit(&self, hops: NonZeroU8) -> io::Result<u32> {
        let socket = SockRef::from(&self.descriptor);
        let before = socket.ttl_v4()?;
        self.set(u32::from(hops.get()))?;
        Ok(before)
    }

    /// Undoes [`Socket::limit`].
    pub(super) fn restore(&self, before: u32) -> io::Result<()> {
        self.set(before)
    }

    /// An IPv4 peer of a socket for both families is sent to with the IPv4 limit, so such a socket
    /// has both set.
    fn set(&self, hops: u32) -> io::Result<()> {
        let socket = SockRef::from(&self.descriptor);
        if self.ipv6 {
            socket.set_unicast_hops_v6(hops)?;
        }
        socket.set_ttl_v4(hops)
    }
}

/// Whether this works here: a seccomp profile may forbid it, and then it is better not to start.
pub(super) fn check(number: RawFd) -> io::Result<()> {
    Socket::of(number).map(drop)
}
