//! What makes the process a poor place to look for secrets.
//!
//! No core dumps, no tracing by other processes of the same user, no privileges gained through
//! programs it starts. A kernel that refuses one of these is reported and lived with: pods still need
//! their credentials.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;
use tracing::warn;

/// Hardens the process. Call it once, before any secret is read and any thread started: what forbids
/// new privileges is each thread's own, and handed down to those it starts.
pub fn harden() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let steps = [
        (
            "forbid core dumps and tracing",
            set_dumpable_behavior(DumpableBehavior::NotDumpable),
        ),
        (
            "limit core dumps to nothing",
            setrlimit(Resource::Core, none),
        ),
        ("forbid new privileges", set_no_new_privs(true)),
    ];
    for (step, result) in steps {
        if let Err(error) = result {
            warn!(%error, "cannot {step}");
        }
    }
    // The allocator asks for huge pages. With thousands of small buffers they cost a server a third of
    // its memory, they make a few MiB of snapshot into tens, and save nothing that can be measured.
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        warn!(%error, "cannot keep to small pages: the process will take more memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardened_process_leaves_no_core() {
        harden();
        assert_eq!(
            rustix::process::dumpable_behavior().unwrap(),
            DumpableBehavior::NotDumpable
        );
        let core = rustix::process::getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
        assert!(rustix::thread::no_new_privs().unwrap());
    }
}
