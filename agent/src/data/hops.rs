//! How far the packets with a token travel.
//!
//! Concerns connections that ask for a token, and only when `--token-hop-limit` is given. The limit
//! then holds to the connection's end. The kernel gives each packet the limit of the moment, one that
//! is sent again too: a limit that is taken back while a packet may still be under way lets the second
//! copy through. The real service limits its answers to PUT only; a pod is as near for one answer as
//! for the next, so whoever got a token gets the rest.

use std::io;
use std::num::NonZeroU8;
use std::os::fd::RawFd;

use socket2::{Domain, SockRef};

use super::descriptor;

/// Limits what the socket with this number in this process sends from now on.
pub(super) fn limit(number: RawFd, hops: NonZeroU8) -> io::Result<()> {
    let descriptor = descriptor::of(number)?;
    let socket = SockRef::from(&descriptor);
    let hops = u32::from(hops.get());
    // An IPv4 peer of a socket for both families is sent to with the IPv4 limit, so such a socket
    // has both set.
    if socket.domain()? == Domain::IPV6 {
        socket.set_unicast_hops_v6(hops)?;
    }
    socket.set_ttl_v4(hops)
}

/// Whether this works here: where a seccomp profile forbids it, it is better not to start.
pub(super) fn check(number: RawFd) -> io::Result<()> {
    descriptor::of(number).map(drop)
}
