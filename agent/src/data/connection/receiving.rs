//! What a connection receives, and where it puts it.
//!
//! Requests hold tokens, so the memory they came into is wiped before it goes, also when a connection
//! is cut off in the middle.

use std::io::ErrorKind;
use std::time::Duration;

use super::super::answer::Door;
use super::super::descriptor::cut;
use super::super::limits::{BODY_BYTES_MAX, HEAD_BYTES_MAX};
use super::{Connection, Ended};
use crate::buffer::{move_to, wipe};
use crate::clock::{later, monotonic};
use crate::tally::Limited;

/// What an idle connection of the metadata door keeps for receiving: a request of an SDK has 200 to
/// 600 bytes.
pub(super) const INPUT_BYTES: usize = 1024;
/// At the container door, where a token of 1 to 2 KiB comes with it.
const INPUT_BYTES_CONTAINER: usize = 3 * 1024;
/// The largest request.
const INPUT_BYTES_MAX: usize = HEAD_BYTES_MAX + BODY_BYTES_MAX;
/// What is read and thrown away after a refusal, so that closing does not tear the answer away.
const LINGER_BYTES_MAX: usize = 64 * 1024;
/// How long that may take.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const _: () = assert!(INPUT_BYTES_CONTAINER <= INPUT_BYTES_MAX);

pub(super) const fn input_bytes(door: Door) -> usize {
    match door {
        Door::Metadata => INPUT_BYTES,
        Door::Container => INPUT_BYTES_CONTAINER,
    }
}

impl Connection<'_> {
    /// Receives more of a request, or the next one.
    pub(super) async fn receive(&mut self) -> Result<(), Ended> {
        self.make_room();
        let fresh = self.input.is_empty();
        let limits = &self.seat.worker.limits;
        if fresh {
            self.seat
                .watch
                .idle_until(later(self.touched, limits.idle_timeout));
        } else {
            self.seat
                .watch
                .until(later(self.began, limits.read_timeout));
        }
        if self.input.len() >= INPUT_BYTES_MAX {
            return Err(Ended);
        }
        match self.receive_more().await {
            Some(0) => return Err(Ended),
            Some(_) => {}
            None => {
                if !fresh {
                    self.seat.worker.tally.limited(Limited::ReadTimeout);
                }
                return Err(Ended);
            }
        }
        self.touched = monotonic();
        if fresh {
            self.began = self.touched;
        }
        Ok(())
    }

    /// Receives behind what there is; how much, zero for the end, `None` when it took too long.
    /// What is received holds tokens, so the buffer comes back even then, to be wiped.
    async fn receive_more(&mut self) -> Option<usize> {
        // What a client says first has mostly come by now. Later it thinks first, and asking in vain
        // would cost what it saves.
        if std::mem::take(&mut self.new) {
            match self.stream.receive_now(&mut self.input) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                received => {
                    self.used = self.used.max(self.input.len());
                    return Some(received.unwrap_or(0));
                }
            }
        }
        let buffer = std::mem::take(&mut self.input);
        let number = self.stream.number();
        let receiving = self.stream.receive(buffer);
        let received = self.seat.watch.within_or_cut(receiving, || cut(number));
        let (in_time, received) = match received.await {
            Ok(received) => (true, Some(received)),
            Err(late) => (false, late),
        };
        let (result, buffer) = received?;
        self.take_back(buffer);
        in_time.then(|| result.unwrap_or(0))
    }

    /// The input's buffer is back from receiving.
    pub(super) fn take_back(&mut self, buffer: Vec<u8>) {
        self.used = self.used.max(buffer.len());
        self.input = buffer;
    }

    /// Moves what is left to the front, and sees that there is room behind it.
    fn make_room(&mut self) {
        let usual = input_bytes(self.door);
        if self.start >= self.input.len() {
            self.input.clear();
            if self.input.capacity() > usual {
                // It grew for one request; idle connections are to be small.
                move_to(&mut self.input, usual);
            }
        } else if self.start > 0 {
            self.input.drain(..self.start);
        }
        self.start = 0;
        if self.input.len() == self.input.capacity() {
            let room = INPUT_BYTES_MAX.min(self.input.capacity().saturating_mul(2));
            move_to(&mut self.input, room);
        }
    }

    /// Closes so that the last answer still arrives: a socket that is closed with something unread
    /// resets the connection, and the answer may be lost with it.
    pub(super) async fn linger(&mut self) -> Result<(), Ended> {
        self.seat.watch.until(later(monotonic(), LINGER_TIMEOUT));
        self.stream.finish().await.map_err(|_error| Ended)?;
        let mut left = LINGER_BYTES_MAX;
        loop {
            wipe(&mut self.input);
            match self.receive_more().await {
                Some(bytes) if bytes > 0 && bytes <= left => left -= bytes,
                Some(_) | None => return Err(Ended),
            }
        }
    }
}
