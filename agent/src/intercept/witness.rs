//! Whether a connection came here through the rules.
//!
//! The kernel remembers whom a translated connection was addressed to (`SO_ORIGINAL_DST`), and tells
//! without any privilege. A worker asks it for the first connections it accepts, and once one of
//! them was meant for a metadata address never again: one relaxed load per connection remains.
//!
//! The agent's own telltale comes from the node's address, which every hostNetwork pod has too. When they
//! have used up what one address may have, it is turned away without an answer; that it came here counts.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use socket2::SockRef;

use crate::intercept::rules::{METADATA_PORT, is_metadata};

/// Shared by the workers, which write, and the control plane, which reads.
#[derive(Debug, Default)]
pub struct Witness {
    /// Connections seen that were addressed to a metadata address.
    through: AtomicU64,
    /// The port that the agent's own connection comes from; zero is nobody's.
    telltale: AtomicU16,
    /// It came, and was turned away.
    turned_away: AtomicBool,
}

impl Witness {
    /// Whether the next connection should be shown to [`Witness::look`].
    pub fn wants(&self) -> bool {
        self.through.load(Ordering::Relaxed) == 0
    }

    /// Asks the kernel whom this accepted connection was addressed to. One system call.
    pub fn look(&self, connection: &impl AsFd) {
        if came_through(connection) {
            self.through.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The agent is about to connect to itself from this port.
    pub fn expect(&self, port: u16) {
        self.turned_away.store(false, Ordering::SeqCst);
        self.telltale.store(port, Ordering::SeqCst);
    }

    /// A connection from this port came here, and was closed because there are too many.
    pub fn turned_away(&self, port: u16) {
        if port != 0 && port == self.telltale.load(Ordering::SeqCst) {
            self.turned_away.store(true, Ordering::SeqCst);
        }
    }

    /// Whether the one that was expected came here and was turned away.
    pub fn was_turned_away(&self) -> bool {
        self.turned_away.load(Ordering::SeqCst)
    }

    /// Whether any connection came through the rules since this agent started.
    pub fn has_seen(&self) -> bool {
        !self.wants()
    }
}

/// Whether this accepted connection was addressed to a metadata service, before translation or
/// still. The port counts: what the agent itself sends through the rules to another one is no pod's.
pub fn came_through(connection: &impl AsFd) -> bool {
    let socket = SockRef::from(connection);
    let original = match socket.local_addr().ok().and_then(|local| local.as_socket()) {
        Some(SocketAddr::V4(_)) => socket.original_dst_v4(),
        Some(SocketAddr::V6(local)) if local.ip().to_ipv4_mapped().is_some() => {
            // An IPv4 connection on a socket for both families.
            socket.original_dst_v4()
        }
        Some(SocketAddr::V6(_)) => socket.original_dst_v6(),
        None => return false,
    };
    // An error is the ordinary answer for a connection that was not translated.
    original
        .ok()
        .and_then(|original| original.as_socket())
        .is_some_and(|original| is_metadata(original.ip()) && original.port() == METADATA_PORT)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_the_expected_one_counts_as_turned_away() {
        let witness = Witness::default();
        witness.turned_away(0);
        witness.turned_away(4000);
        assert!(!witness.was_turned_away());
        witness.expect(4000);
        witness.turned_away(4001);
        assert!(!witness.was_turned_away());
        witness.turned_away(4000);
        assert!(witness.was_turned_away());
        witness.expect(4001);
        assert!(!witness.was_turned_away());
    }

    #[test]
    fn a_direct_connection_is_no_proof() {
        let witness = Witness::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _peer) = listener.accept().unwrap();
        witness.look(&accepted);
        drop(client);
        assert!(witness.wants() && !witness.has_seen());
    }
}
