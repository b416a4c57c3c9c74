//! How many connections there may be, by how many files the process may have open.
//!
//! At that limit nobody is accepted, so the connections of all workers together are kept below it, and
//! whoever is one too many is told.

use std::num::NonZeroUsize;

use tracing::warn;

use crate::data::Limits;

/// For the admin port, the server, the kernel, the hand-over and whatever libraries open.
const RESERVE: u64 = 128;
/// For a worker's listening sockets, each there twice, its doorbell and its runtime.
const RESERVE_FOR_WORKER: u64 = 16;

/// Peers that fit at the least, where the limits asked for do not.
const PEERS_MIN: u32 = 8;

/// Takes `limits` down to what `open_max` files allow, and says so. A connection takes two files when
/// it may be `passed_on`.
pub fn fit(
    mut limits: Limits,
    workers: NonZeroUsize,
    passed_on: bool,
    open_max: Option<u64>,
) -> Limits {
    let Some(open_max) = open_max else {
        return limits;
    };
    let workers = u64::try_from(workers.get()).unwrap_or(u64::MAX);
    let reserve = RESERVE_FOR_WORKER.saturating_mul(workers) + RESERVE;
    let each = workers.saturating_mul(if passed_on { 2 } else { 1 });
    let most = open_max.saturating_sub(reserve) / each;
    let most = u32::try_from(most).unwrap_or(u32::MAX).max(1);
    if most < limits.connections_max {
        warn!(
            connections_max = limits.connections_max,
            allowed = most,
            open_files_max = open_max,
            reserve,
            workers,
            "the limit of open files allows fewer connections than asked for"
        );
        limits.connections_max = most;
        limits.parked_max = limits.parked_max.min(most);
        // Or a few pods would take all that is left.
        let each = (most / PEERS_MIN).max(1);
        limits.peer_connections_max = limits.peer_connections_max.min(each);
        limits.peer_parked_max = limits.peer_parked_max.min(each);
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(open_max: Option<u64>, workers: usize, passed_on: bool, expected: u32) {
        let workers = NonZeroUsize::new(workers).unwrap();
        let limits = fit(Limits::default(), workers, passed_on, open_max);
        assert_eq!(limits.connections_max, expected);
        assert!(limits.parked_max <= expected);
        let each = limits.peer_connections_max.max(limits.peer_parked_max);
        assert!(each == 1 || each <= expected / 8, "{each}");
    }

    #[test]
    fn connections_fit_the_files_that_may_be_open() {
        check(None, 2, false, Limits::CONNECTIONS_MAX);
        check(Some(1 << 20), 2, true, Limits::CONNECTIONS_MAX);
        check(Some(1024), 2, false, 432);
        check(Some(1024), 2, true, 216);
        check(Some(100), 2, false, 1);
    }
}
