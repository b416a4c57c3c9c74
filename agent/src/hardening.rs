//! Of the privileges it was started with, the agent keeps only what it still has a use for.
//!
//! What else makes a process a poor place to look for secrets is in [`kiam_wire::process::hardening`],
//! the server's as well. System calls are the container runtime's to filter: the profile for it is in
//! `deploy/seccomp`. A kernel that refuses is reported and lived with: pods still need their credentials.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
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
