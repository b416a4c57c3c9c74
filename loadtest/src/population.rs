//! The pods that may be asked for right now, and what each must be given.
//!
//! A pod is taken out a while before it is deleted, so that no dialogue is judged by a pod that
//! vanished under it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::dialogue::{Failure, Obtained};

/// A pod that must be answered, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The pod's address: requests come from it. `None` for the pod this program itself is in.
    pub ip: Option<IpAddr>,
    /// The name of its role.
    pub role: Arc<str>,
}

/// Says which role an access key id was issued for.
pub(crate) trait Issuer: Sync {
    /// The name of the role, if the key id is known.
    fn role_of(&self, access_key_id: &str) -> Option<String>;
}

impl Target {
    /// Whether a pod that obtained this was given what is its own.
    pub(crate) fn check(&self, obtained: &Obtained, issuer: &dyn Issuer) -> Result<(), Failure> {
        if obtained.role != *self.role {
            return Err(Failure::WrongRole);
        }
        match issuer.role_of(&obtained.access_key_id) {
            Some(role) if role == *self.role => Ok(()),
            _ => Err(Failure::WrongCredentials),
        }
    }
}

/// All pods that may be asked for.
#[derive(Debug, Default)]
pub(crate) struct Population(Mutex<Vec<Target>>);

impl Population {
    fn lock(&self) -> MutexGuard<'_, Vec<Target>> {
        // A panicking thread leaves the list whole: each change is one call on the vector.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this pod is asked for.
    pub(crate) fn insert(&self, target: Target) {
        self.lock().push(target);
    }

    /// From now on it is not.
    pub(crate) fn remove(&self, ip: IpAddr) {
        let mut targets = self.lock();
        if let Some(at) = targets.iter().position(|target| target.ip == Some(ip)) {
            targets.swap_remove(at);
        }
    }

    /// One of them; `dice` is uniform in `[0, 1)`.
    pub(crate) fn pick(&self, dice: f64) -> Option<Target> {
        let targets = self.lock();
        #[expect(
            clippy::as_conversions,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a length that is far below 2^52"
        )]
        let at = (dice * targets.len() as f64) as usize;
        targets.get(at).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sts;

    impl Issuer for Sts {
        fn role_of(&self, access_key_id: &str) -> Option<String> {
            access_key_id.strip_prefix("KEY-").map(str::to_owned)
        }
    }

    #[track_caller]
    fn check(role: &str, key: &str, expected: Result<(), Failure>) {
        let target = Target {
            ip: Some([127, 0, 0, 2].into()),
            role: "reader".into(),
        };
        let obtained = Obtained {
            role: role.into(),
            access_key_id: key.into(),
        };
        assert_eq!(target.check(&obtained, &Sts), expected);
    }

    #[test]
    fn a_pod_must_get_its_own() {
        check("reader", "KEY-reader", Ok(()));
        check("writer", "KEY-reader", Err(Failure::WrongRole));
        check("reader", "KEY-writer", Err(Failure::WrongCredentials));
        check("reader", "unknown", Err(Failure::WrongCredentials));
    }

    #[test]
    fn only_pods_that_are_in_are_picked() {
        let population = Population::default();
        assert_eq!(population.pick(0.5), None);
        for last in 1..=3 {
            population.insert(Target {
                ip: Some([127, 0, 0, last].into()),
                role: "r".into(),
            });
        }
        population.remove([127, 0, 0, 2].into());
        let picked = [0.0, 0.49, 0.5, 0.999].map(|dice| population.pick(dice).unwrap().ip);
        assert!(!picked.contains(&Some(IpAddr::from([127, 0, 0, 2]))));
    }
}
