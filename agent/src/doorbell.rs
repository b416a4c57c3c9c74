//! Waking a worker from another thread: one byte on a socket pair.
//!
//! The runtime has no wakers that other threads may use, so a worker reads the pair through its own
//! ring like any socket. A bell that has been rung and not yet answered is not rung again, so the
//! pair never fills, however often something is published.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The outside end: rings.
#[derive(Debug, Clone)]
pub struct Bell {
    rung: Arc<AtomicBool>,
    outside: Arc<UnixStream>,
}

/// The worker's end: is rung.
#[derive(Debug)]
pub struct Doorbell {
    rung: Arc<AtomicBool>,
}

/// A bell, its doorbell, and the socket on which the worker waits for a byte.
pub fn pair() -> io::Result<(Bell, Doorbell, UnixStream)> {
    let (outside, inside) = UnixStream::pair()?;
    outside.set_nonblocking(true)?;
    let rung = Arc::new(AtomicBool::new(false));
    let bell = Bell {
        rung: Arc::clone(&rung),
        outside: Arc::new(outside),
    };
    Ok((bell, Doorbell { rung }, inside))
}

impl Bell {
    /// Wakes the worker unless a ring is already on its way. Never blocks.
    pub fn ring(&self) {
        if self.rung.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut outside: &UnixStream = &self.outside;
        if outside.write(&[1]).is_err() {
            // The worker is gone, or the pair is full of rings it has yet to read. Either way the
            // next ring may try again.
            self.rung.store(false, Ordering::SeqCst);
        }
    }
}

impl Doorbell {
    /// Says that the ring was heard. Call it before looking at what changed: what changes after
    /// this rings again.
    pub fn answer(&self) {
        // A swap, not a store: what changed is read with a relaxed load next, and a store lets
        // that load go first, so that a change and its ring in between would both be missed. A
        // swap also reads: either it sees the ring, and with it all that changed before, or the
        // ring comes after it and writes a byte of its own.
        let _rung: bool = self.rung.swap(false, Ordering::SeqCst);
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
