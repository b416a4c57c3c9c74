//! How the kernel schedules a worker beside whatever else runs on the node.
//!
//! Beside three busy processes a core, a worker at the usual priority answers its slowest percent
//! twenty times later than on a quiet node; `SCHED_RR` undoes that. It is safe because a worker
//! runs some 20 µs per request and then blocks, and because `RLIMIT_RTTIME` has the kernel end the
//! process should a bug make it run on without blocking; it then starts again and no other process
//! of the node has starved.
//!
//! Needs `CAP_SYS_NICE`. Without it a worker says so and serves as it is: a missing capability must
//! not take credentials away.

use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};
use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

use super::Scheduling;

/// What `--scheduling nice` asks for; 0 is usual and -20 the most.
const NICENESS: i32 = -10;
/// How long a real-time thread may run without blocking, microseconds. A thousand times what the
/// longest answer takes.
const UNBLOCKED_US_MAX: u64 = 500_000;

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
