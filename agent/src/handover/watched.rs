//! Until when an agent watched over what is handed over.
//!
//! Where the network shows no way to a pod, nobody can tell afterwards whether an address changed hands
//! while no agent ran. All that can be known is for how long none did: a running agent says every few
//! seconds that it is there, in a file beside the snapshot, by the clock that counts from the machine's
//! start and that nobody sets.

use std::io;
use std::time::Duration;

use super::directory::Directory;

const FILE: &str = "watched";
/// How often a running agent says so.
pub const RENEWAL: Duration = Duration::from_secs(10);
/// How long nobody may have watched. An agent that crashed is started again at once, the second time after
/// 10 s, and the last word may be [`RENEWAL`] old: those starts shall make no pod wait. In that time a pod
/// rarely ends and its address is given to the next: amazon-vpc-cni keeps an address back for 30 s.
pub const UNWATCHED_MAX: Duration = Duration::from_secs(30);
const _: () = assert!(RENEWAL.as_secs() * 2 < UNWATCHED_MAX.as_secs());

/// Says that what is there now is how things stand, `since_boot` ([`crate::clock::since_boot`]).
///
/// # Errors
/// The directory is full or gone.
pub fn renew(directory: &Directory, since_boot: Duration) -> io::Result<()> {
    directory.replace(FILE, &since_boot.as_secs().to_be_bytes())
}

/// Whether an agent watched until a moment ago.
pub fn is_recent(directory: &Directory, since_boot: Duration) -> bool {
    let bytes = match directory.read(FILE, 8) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::warn!(%error, "nobody knows until when an agent watched over the addresses");
            None
        }
    };
    bytes
        .and_then(|bytes| <[u8; 8]>::try_from(bytes.as_slice()).ok())
        .map(|bytes| Duration::from_secs(u64::from_be_bytes(bytes)))
        // One from the future is of another boot.
        .and_then(|then| since_boot.checked_sub(then))
        .is_some_and(|ago| ago <= UNWATCHED_MAX)
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::in_memory;
    use super::*;

    #[test]
    fn only_a_recent_word_counts() {
        let (_guard, directory) = in_memory();
        let at = |seconds| Duration::from_secs(seconds);
        assert!(!is_recent(&directory, at(1_000)), "nobody said anything");
        renew(&directory, at(1_000)).unwrap();
        assert!(is_recent(&directory, at(1_000)));
        assert!(is_recent(&directory, at(1_000) + UNWATCHED_MAX));
        assert!(!is_recent(&directory, at(1_001) + UNWATCHED_MAX));
        assert!(!is_recent(&directory, at(999)), "of another boot");
        directory.replace(FILE, b"damaged").unwrap();
        assert!(!is_recent(&directory, at(1_000)));
    }
}
