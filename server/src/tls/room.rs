//! How many connections agents may have, by how many files the process may have open.
//!
//! A process at that limit accepts nobody, and can call nobody either: not STS, not the API server,
//! so that what it holds for the agents that are there would run out. So agents are turned away
//! before that; they find another replica.

use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// For the admin port, the watches and reviews of the API server, the files of certificates, the
/// kernel, and whatever libraries open.
const RESERVE: u64 = 128;
/// However low the limit is, one in so many files is an agent's.
const SHARE_MIN: u64 = 4;
/// Fewer than this are worth a word.
const FEW: usize = 1_024;

/// The room there is.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    seats: Arc<Semaphore>,
    max: usize,
}

/// A connection's seat; given back when dropped.
#[derive(Debug)]
pub(crate) struct Seat(#[expect(dead_code, reason = "held")] OwnedSemaphorePermit);

impl Room {
    /// As much as `open_max` files allow beside `fetchers` calls to STS; `None` is no limit.
    pub(crate) fn fit(open_max: Option<u64>, fetchers: NonZeroUsize) -> Self {
        let fetchers = u64::try_from(fetchers.get()).unwrap_or(u64::MAX);
        let reserve = RESERVE.saturating_add(fetchers);
        let fits = |open_max: u64| {
            let left = open_max.saturating_sub(reserve);
            left.max(open_max / SHARE_MIN).max(1)
        };
        let max = open_max.map_or(u64::MAX, fits);
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let max = max.min(Semaphore::MAX_PERMITS);
        if max < FEW {
            warn!(
                connections_max = max,
                open_files_max = open_max,
                reserve,
                "the limit of open files is low: agents beyond it are turned away"
            );
        }
        Self {
            seats: Arc::new(Semaphore::new(max)),
            max,
        }
    }

    /// A seat, when there is one.
    pub(super) fn seat(&self) -> Option<Seat> {
        let seat = Arc::clone(&self.seats).try_acquire_owned();
        seat.ok().map(Seat)
    }

    /// How many there are in all, taken or not.
    pub(super) const fn max(&self) -> usize {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(open_max: Option<u64>, fetchers: usize, expected: usize) {
        let room = Room::fit(open_max, NonZeroUsize::new(fetchers).unwrap());
        assert_eq!(room.max(), expected);
    }

    #[test]
    fn something_is_kept_for_calls() {
        check(None, 8, Semaphore::MAX_PERMITS);
        check(Some(524_288), 8, 524_152);
        check(Some(1_024), 8, 888);
        check(Some(1_024), 64, 832);
        check(Some(128), 8, 32);
        check(Some(1_024), usize::MAX, 256);
        check(Some(0), 8, 1);
    }

    #[test]
    fn a_seat_is_there_again_when_it_was_left() {
        let room = Room::fit(Some(8), NonZeroUsize::MIN);
        let first = room.seat().unwrap();
        let second = room.seat().unwrap();
        assert!(room.seat().is_none());
        drop(first);
        let _third = room.seat().unwrap();
        assert!(room.seat().is_none());
        drop(second);
    }
}
