//! What makes the process a poor place to look for secrets.
//!
//! No core dumps, no tracing by other processes of the same user, no privileges gained through
//! programs it starts, and of those it was started with only what it still has a use for. System
//! calls are the container runtime's to filter: the profile for it is in `deploy/seccomp`. A kernel that refuses one of these is reported and lived with: the pods
//! still need their credentials.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs,
};
use tracing::warn;

/// What rules are kept in place with: the tools' privileges, and a namespace to probe from.
const INTERCEPTING: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_ADMIN);

/// What ports below 1024 and the workers' scheduling need, besides.
const STARTING: CapabilitySet = INTERCEPTING
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_NICE);

/// Hardens the process. Call it once, before any secret is read and any thread started.
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
    // The allocator asks for huge pages, which make a few MiB of snapshot into tens.
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        warn!(%error, "cannot keep to small pages: the process will take more memory");
    }
}

/// Keeps the capabilities that starting takes. From here on files are read as they will be read later,
/// so that one that could not be shows at once.
pub fn while_starting() {
    keep_only(STARTING);
}

/// Keeps those that interception takes, if this agent sees to that, and no other.
pub fn while_serving(intercepts: bool) {
    keep_only(if intercepts {
        INTERCEPTING
    } else {
        CapabilitySet::empty()
    });
}

/// For a thread that talks to pods, and for those it starts.
pub fn without_capabilities() {
    keep_only(CapabilitySet::empty());
}

/// Of the calling thread's capabilities, and of those of threads and programs it starts.
fn keep_only(kept: CapabilitySet) {
    let kept_only = || -> rustix::io::Result<()> {
        let kept = capabilities(None)?.permitted & kept;
        clear_ambient_capability_set()?;
        set_capabilities(
            None,
            CapabilitySets {
                effective: kept,
                permitted: kept,
                inheritable: CapabilitySet::empty(),
            },
        )
    };
    if let Err(error) = kept_only() {
        warn!(%error, "cannot give up privileges");
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

    #[test]
    fn what_was_given_up_does_not_come_back() {
        // Capabilities are a thread's own.
        let thread = std::thread::spawn(|| {
            let before = capabilities(None).unwrap().permitted;
            let check = |kept: CapabilitySet| {
                let now = capabilities(None).unwrap();
                assert_eq!(
                    (now.permitted, now.effective),
                    (before & kept, before & kept)
                );
                assert!(now.inheritable.is_empty());
            };
            while_starting();
            check(STARTING);
            while_serving(true);
            check(INTERCEPTING);
            while_serving(false);
            check(CapabilitySet::empty());
            while_starting();
            check(CapabilitySet::empty());
        });
        thread.join().unwrap();
    }
}
