//! Waking a worker from another thread: one byte on a socket pair.
//!
//! The runtime has no wakers that other threads may use, so a worker reads the pair through its own
//! ring like any socket. A bell that has been rung and not yet answered is not rung again, so the
//! pair never fills, however often something is published.

mod protocol;

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use self::protocol::Rung;
pub use self::protocol::{Eager, published};

/// What the protocol is made of; a model checker has its own.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

/// The outside end: rings.
#[derive(Debug, Clone)]
pub struct Bell {
    rung: Arc<Rung>,
    outside: Arc<UnixStream>,
}

/// The worker's end: is rung.
#[derive(Debug)]
pub struct Doorbell {
    rung: Arc<Rung>,
}

/// A bell, its doorbell, and the socket on which the worker waits for a byte.
pub fn pair() -> io::Result<(Bell, Doorbell, UnixStream)> {
    let (outside, inside) = UnixStream::pair()?;
    outside.set_nonblocking(true)?;
    let rung = Arc::new(Rung::new());
    let bell = Bell {
        rung: Arc::clone(&rung),
        outside: Arc::new(outside),
    };
    Ok((bell, Doorbell { rung }, inside))
}

impl Bell {
    /// Wakes the worker unless a ring is already on its way. Never blocks.
    pub fn ring(&self) {
        if !self.rung.ring() {
            return;
        }
        let mut outside: &UnixStream = &self.outside;
        if outside.write(&[1]).is_err() {
            // The worker is gone, or the pair is full of rings it has yet to read.
            self.rung.take_back();
        }
    }
}

impl Doorbell {
    /// Says that the ring was heard. Call it before looking at what changed: what changes after
    /// this rings again.
    pub fn answer(&self) {
        self.rung.answer();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn many_rings_are_one_byte_until_answered() {
        let (bell, doorbell, mut inside) = pair().unwrap();
        for _ in 0..100_000 {
            bell.ring();
        }
        let mut bytes = [0; 8];
        assert_eq!(inside.read(&mut bytes).unwrap(), 1);
        doorbell.answer();
        bell.ring();
        assert_eq!(inside.read(&mut bytes).unwrap(), 1);
    }

    #[test]
    fn ringing_a_worker_that_is_gone_does_nothing() {
        let (bell, _doorbell, inside) = pair().unwrap();
        drop(inside);
        bell.ring();
        bell.ring();
    }
}
