//! The two small things every room of the simulation needs: a lock that survives a panic elsewhere,
//! and identifiers drawn from dice that were handed in.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes the lock even if another thread panicked while it held it: the data of a simulation stays
/// useful to the test that reports that panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A random (version 4) UUID from the dice given, so that a seed gives the same identifiers again.
pub(crate) fn uuid(dice: &mut fastrand::Rng) -> String {
    // Version and variant bits sit at fixed places of the 128.
    let bits = (dice.u128(..) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let mut text = String::with_capacity(36);
    for (at, digit) in hex.chars().enumerate() {
        if matches!(at, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::uuid;

    #[test]
    fn identifiers_are_version_4_and_follow_the_seed() {
        let one = uuid(&mut fastrand::Rng::with_seed(7));
        assert_eq!(one.len(), 36);
        assert_eq!(one.as_bytes()[14], b'4', "{one}");
        assert!(b"89ab".contains(&one.as_bytes()[19]), "{one}");
        assert_eq!(one, uuid(&mut fastrand::Rng::with_seed(7)));
        assert_ne!(one, uuid(&mut fastrand::Rng::with_seed(8)));
    }
}
