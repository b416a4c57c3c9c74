//! The key of the IMDSv2 tokens: made once, then every agent of this node and boot uses the same.
//!
//! Clients keep a token for up to six hours and never drop it early, so a new key would fail them
//! all. Two agents that start at once agree, because only one of them can create the file.

use std::io;

use zeroize::Zeroizing;

use super::directory::Directory;
use super::sealed::{Kind, Unsealed, open, seal};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
const FILE: &str = "token-key";
const FILE_BYTES_MAX: u64 = 1024;
/// A third agent would have to take the file away between our two looks, twice.
const ATTEMPTS: u32 = 3;

/// Why there is no shared key. The agent then uses one of its own, and says so.
#[derive(Debug, thiserror::Error)]
pub enum NoKey {
    /// The directory or file cannot be used.
    #[error("the token key in the hand-over directory cannot be used")]
    Io(#[from] io::Error),
    /// A later agent's key; it must not be overwritten.
    #[error("the token key in the hand-over directory is of a later agent")]
    Newer(#[source] Unsealed),
    /// Somebody keeps taking it away.
    #[error("the token key in the hand-over directory keeps disappearing")]
    Unsettled,
}

/// The key that is there, or `fresh`, which then is there. A damaged one is replaced.
pub fn load_or_create(
    directory: &Directory,
    fresh: &Zeroizing<[u8; KEY_BYTES]>,
) -> Result<Zeroizing<[u8; KEY_BYTES]>, NoKey> {
    for _ in 0..ATTEMPTS {
        if let Some(bytes) = directory.read(FILE, FILE_BYTES_MAX)? {
            let opened = open(Kind::TokenKey, &bytes);
            match opened.map(<[u8; KEY_BYTES]>::try_from) {
                Ok(Ok(key)) => return Ok(Zeroizing::new(key)),
                Err(newer @ Unsealed::NewerVersion(_)) => return Err(NoKey::Newer(newer)),
                Ok(Err(_)) | Err(_) => {
                    tracing::warn!("the token key was damaged, clients' tokens end now");
                    directory.remove(FILE)?;
                }
            }
        }
        if directory.create_once(FILE, &seal(Kind::TokenKey, fresh.as_slice()))? {
            return Ok(fresh.clone());
        }
    }
    Err(NoKey::Unsettled)
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::in_memory;
    use super::*;

    fn key(byte: u8) -> Zeroizing<[u8; KEY_BYTES]> {
        Zeroizing::new([byte; KEY_BYTES])
    }

    #[test]
    fn the_first_key_stays() {
        let (_guard, directory) = in_memory();
        assert_eq!(load_or_create(&directory, &key(1)).unwrap(), key(1));
        assert_eq!(load_or_create(&directory, &key(2)).unwrap(), key(1));
    }

    #[test]
    fn a_damaged_key_is_replaced_and_a_later_agents_is_not() {
        let (_guard, directory) = in_memory();
        directory.replace(FILE, b"half a fi").unwrap();
        assert_eq!(load_or_create(&directory, &key(3)).unwrap(), key(3));
        let mut newer = seal(Kind::TokenKey, &[4; KEY_BYTES]).to_vec();
        newer[8] = 9;
        directory.replace(FILE, &newer).unwrap();
        assert!(matches!(
            load_or_create(&directory, &key(5)),
            Err(NoKey::Newer(_))
        ));
        assert_eq!(
            directory.read(FILE, 1024).unwrap().unwrap().as_slice(),
            newer
        );
    }

    #[test]
    fn agents_that_start_at_once_agree() {
        let (_guard, directory) = in_memory();
        let keys: Vec<_> = std::thread::scope(|scope| {
            let agents: Vec<_> = (0..8)
                .map(|byte| {
                    let directory = &directory;
                    scope.spawn(move || load_or_create(directory, &key(byte)).unwrap())
                })
                .collect();
            agents
                .into_iter()
                .map(|agent| agent.join().unwrap())
                .collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }
}
