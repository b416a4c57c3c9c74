//! Buffers that have held secrets, which nobody else is to find in memory that was freed.
//!
//! A vector that grows on its own leaves its old memory as it was. So whatever may hold a token or
//! credentials grows here, and is wiped before it goes.

use std::hint::black_box;

/// Overwrites what the buffer holds, and empties it. What lay beyond its length is not touched:
/// right for a buffer that has only grown since it was last wiped.
pub(crate) fn wipe(buffer: &mut Vec<u8>) {
    buffer.fill(0);
    // So that the compiler cannot find that nobody reads it.
    black_box(buffer.as_mut_slice());
    buffer.clear();
}

/// Overwrites the first `bytes` of the buffer's memory, as far as it goes, and empties it. Right where
/// nothing has ever lain behind them.
pub(crate) fn wipe_first(buffer: &mut Vec<u8>, bytes: usize) {
    buffer.clear();
    buffer.resize(bytes.min(buffer.capacity()), 0);
    black_box(buffer.as_mut_slice());
    buffer.clear();
}

/// Overwrites all of the buffer's memory, and empties it.
pub(crate) fn wipe_whole(buffer: &mut Vec<u8>) {
    wipe_first(buffer, usize::MAX);
}

/// Sees that `more` bytes can be appended without the buffer moving by itself.
pub(crate) fn reserve(buffer: &mut Vec<u8>, more: usize) {
    if buffer.capacity() - buffer.len() < more {
        move_to(buffer, (buffer.len() + more).max(buffer.capacity() * 2));
    }
}

/// Moves the buffer's contents to memory of this capacity, and wipes where they were.
#[cold]
#[inline(never)]
pub(crate) fn move_to(buffer: &mut Vec<u8>, capacity: usize) {
    let mut elsewhere = Vec::with_capacity(capacity.max(buffer.len()));
    elsewhere.extend_from_slice(buffer);
    wipe_whole(buffer);
    *buffer = elsewhere;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wiped_is_zero() {
        let mut buffer = Vec::with_capacity(8);
        buffer.extend_from_slice(b"secret");
        wipe(&mut buffer);
        assert!(buffer.is_empty());
        buffer.resize(6, 1);
        buffer.truncate(2);
        wipe_whole(&mut buffer);
        assert!(buffer.is_empty());
        assert_eq!(buffer.capacity(), 8);
    }

    #[test]
    fn as_much_is_wiped_as_was_used() {
        let mut buffer = Vec::with_capacity(8);
        buffer.resize(8, 1);
        buffer.truncate(1);
        wipe_first(&mut buffer, 5);
        assert!(buffer.is_empty());
        buffer.extend_from_slice(&[0; 5]);
        wipe_first(&mut buffer, 100);
        assert_eq!(buffer.capacity(), 8);
    }

    #[test]
    fn a_buffer_that_grows_keeps_what_it_holds() {
        let mut buffer = b"held".to_vec();
        reserve(&mut buffer, 3);
        assert!(buffer.capacity() >= 7);
        let place = buffer.as_ptr();
        buffer.extend_from_slice(b"new");
        assert_eq!(
            (buffer.as_slice(), buffer.as_ptr()),
            (&b"heldnew"[..], place)
        );
        move_to(&mut buffer, 0);
        assert_eq!(buffer, b"heldnew");
    }
}
