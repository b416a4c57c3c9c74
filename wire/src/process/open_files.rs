//! How many files the process may have open: most of them are connections.
//!
//! Many containers start with a limit of 1024 that they may raise. At the limit nobody is accepted
//! and nobody can be called, so each program keeps its connections below it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Raises the limit as far as that goes without privileges.
pub fn raise() {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of open files cannot be raised");
    }
}

/// The limit as it is; `None` when there is none.
pub fn max() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_goes_as_far_up_as_it_may() {
        raise();
        let now = getrlimit(Resource::Nofile);
        assert_eq!((max(), now.current), (now.maximum, now.maximum));
    }
}
