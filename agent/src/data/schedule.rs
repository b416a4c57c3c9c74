//! How the kernel schedules a worker beside whatever else runs on the node.
//!
//! Beside three busy processes a core, a worker at the usual priority answers its slowest percent
//! twenty times later than on a quiet node; `SCHED_RR` undoes that. It is safe because a worker
//! runs some 20 µs per request and then blocks; because one that always has something to do takes
//! [`Breaks`] all the same; and because `RLIMIT_RTTIME` has the kernel end the process should a bug
//! make it run on without blocking; it then starts again and no other process of the node has starved.
//!
//! Needs `CAP_SYS_NICE`. Without it a worker says so and serves as it is: a missing capability must
//! not take credentials away.

use std::cell::Cell;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

use super::Scheduling;
use super::ticker::USUAL;

/// What `--scheduling nice` asks for; 0 is usual and -20 the most.
const NICENESS: i32 = -10;
/// How long a real-time thread may run without blocking, microseconds. Four times what lies between
/// two breaks, which are taken when the ticker rings.
const UNBLOCKED_US_MAX: u64 = 2_000_000;
const UNBLOCKED_MAX: Duration = Duration::from_micros(UNBLOCKED_US_MAX);
/// Between two breaks, at least.
const BREAK_INTERVAL: Duration = Duration::from_millis(100);
/// Long enough for the kernel to put the thread to sleep, too short for anyone to notice.
const BREAK: Duration = Duration::from_micros(50);
const _: () = assert!(BREAK_INTERVAL.as_micros() < USUAL.as_micros());
const _: () = assert!(USUAL.as_millis() * 4 <= UNBLOCKED_MAX.as_millis());

/// When a real-time worker lets go of its processor though there is something to do: a flood is no
/// bug for which the process should end.
#[derive(Debug)]
pub(super) struct Breaks {
    /// `None` for workers that the kernel takes the processor from anyway.
    taken_at: Option<Cell<Instant>>,
}

impl Breaks {
    pub(super) fn new(scheduling: Scheduling, now: Instant) -> Self {
        Self {
            taken_at: match scheduling {
                Scheduling::Other | Scheduling::Nice => None,
                Scheduling::RoundRobin => Some(Cell::new(now)),
            },
        }
    }

    /// Takes one if it is time. Call it at least as often as the ticker rings.
    pub(super) fn take(&self, now: Instant) {
        if self.is_due(now) {
            // Nobody unparks a worker.
            park_timeout(BREAK);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let Some(taken_at) = &self.taken_at else {
            return false;
        };
        let due = now.saturating_duration_since(taken_at.get()) >= BREAK_INTERVAL;
        if due {
            taken_at.set(now);
        }
        due
    }
}

/// Schedules the calling thread, which is the last thing that it needs a privilege for.
pub(super) fn schedule(scheduling: Scheduling) {
    prioritise(scheduling);
    crate::hardening::without_capabilities();
}

fn prioritise(scheduling: Scheduling) {
    let result = match scheduling {
        Scheduling::Other => return,
        Scheduling::Nice => {
            setpriority_process(Some(gettid()), NICENESS).map_err(|error| error.to_string())
        }
        Scheduling::RoundRobin => round_robin(),
    };
    match result {
        Ok(()) => tracing::info!(?scheduling, "the worker is scheduled as asked"),
        Err(error) => tracing::warn!(
            ?scheduling,
            error,
            "the worker is scheduled like any other process; give the container CAP_SYS_NICE"
        ),
    }
}

fn round_robin() -> Result<(), String> {
    // First the limit, so that there is no moment without it.
    let before = getrlimit(Resource::Rttime);
    let limit = Some(
        before
            .maximum
            .map_or(UNBLOCKED_US_MAX, |max| max.min(UNBLOCKED_US_MAX)),
    );
    setrlimit(
        Resource::Rttime,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )
    .map_err(|error| error.to_string())?;
    set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Min,
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::RoundRobin),
    )
    .map_err(|error| format!("{error:?}"))
}

/// Binds the calling thread to the `worker`-th processor that this process may use.
pub(super) fn pin(worker: usize) {
    let result = sched_getaffinity(None).and_then(|allowed| {
        let processors: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|processor| allowed.is_set(*processor))
            .collect();
        let Some(mine) = processors.iter().cycle().nth(worker) else {
            return Ok(());
        };
        let mut set = CpuSet::new();
        set.set(*mine);
        sched_setaffinity(None, &set)
    });
    if let Err(error) = result {
        tracing::warn!(worker, %error, "the worker is not pinned to a processor");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::monotonic;

    #[test]
    fn a_real_time_worker_sleeps_long_before_the_kernel_ends_it() {
        let start = monotonic();
        let breaks = Breaks::new(Scheduling::RoundRobin, start);
        let mut slept_at = start;
        // Always busy: it looks up only when the ticker rings.
        for ring in 1..100 {
            let now = start + USUAL * ring;
            if breaks.is_due(now) {
                slept_at = now;
            }
            assert!(now.saturating_duration_since(slept_at) < UNBLOCKED_MAX / 2);
        }
        assert!(!breaks.is_due(start + USUAL * 99 + BREAK_INTERVAL / 2));
    }

    /// Whether or not it may be real-time here: there is no moment without the limit.
    #[test]
    fn a_real_time_worker_has_a_limit() {
        // On a thread of its own, which takes what it was given with it.
        let limit = std::thread::spawn(|| {
            prioritise(Scheduling::RoundRobin);
            getrlimit(Resource::Rttime)
        });
        let limit = limit.join().unwrap();
        let is_limited = |microseconds: Option<u64>| {
            microseconds.is_some_and(|microseconds| microseconds <= UNBLOCKED_US_MAX)
        };
        assert!(is_limited(limit.current) && is_limited(limit.maximum));
    }

    #[test]
    fn nobody_else_takes_breaks() {
        let start = monotonic();
        for scheduling in [Scheduling::Other, Scheduling::Nice] {
            assert!(!Breaks::new(scheduling, start).is_due(start + UNBLOCKED_MAX));
        }
    }
}
