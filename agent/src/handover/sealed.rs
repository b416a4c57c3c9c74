//! An envelope around bytes: what they are, which version, how many, and a SHA-256 over it all.
//!
//! The checksum finds accidents, not attackers: who can write the file can read the key beside it.
//! Against people there are the file's owner and mode.

use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

/// What is in the envelope; the first eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What a node should be serving.
    Snapshot,
    /// The key of the IMDSv2 tokens.
    TokenKey,
}

impl Kind {
    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Snapshot => b"kiamsnap",
            Self::TokenKey => b"kiamtkey",
        }
    }

    /// Grows when what is inside can no longer be read by an earlier agent.
    const fn version(self) -> u32 {
        match self {
            Self::Snapshot | Self::TokenKey => 1,
        }
    }
}

/// Why an envelope is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsealed {
    /// The file ends too early, or goes on too long.
    #[error("it was not written to its end")]
    Truncated,
    /// Not one of ours.
    #[error("it is something else")]
    OtherKind,
    /// Of a later agent; this one was rolled back.
    #[error("it was written by a later agent, in version {0}")]
    NewerVersion(u32),
    /// Some byte is another.
    #[error("its checksum is wrong")]
    Corrupted,
}

const MAGIC_BYTES: usize = 8;
const VERSION_BYTES: usize = 4;
const LENGTH_BYTES: usize = 8;
const HEAD_BYTES: usize = MAGIC_BYTES + VERSION_BYTES + LENGTH_BYTES;
const CHECKSUM_BYTES: usize = 32;

/// Closes the envelope.
pub fn seal(kind: Kind, body: &[u8]) -> Zeroizing<Vec<u8>> {
    let length = HEAD_BYTES
        .saturating_add(body.len())
        .saturating_add(CHECKSUM_BYTES);
    // Never grows: growing would leave a copy behind that nobody wipes.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length));
    bytes.extend(kind.magic());
    bytes.extend(kind.version().to_le_bytes());
    bytes.extend(u64::try_from(body.len()).unwrap_or(u64::MAX).to_le_bytes());
    bytes.extend_from_slice(body);
    let checksum = digest(&SHA256, &bytes);
    bytes.extend(checksum.as_ref());
    bytes
}

/// Opens the envelope. Never panics, whatever the bytes.
pub fn open(kind: Kind, bytes: &[u8]) -> Result<&[u8], Unsealed> {
    let (magic, rest) = bytes
        .split_first_chunk::<MAGIC_BYTES>()
        .ok_or(Unsealed::Truncated)?;
    if magic != kind.magic() {
        return Err(Unsealed::OtherKind);
    }
    let (version, rest) = rest
        .split_first_chunk::<VERSION_BYTES>()
        .ok_or(Unsealed::Truncated)?;
    // Before the checksum: a later version may have another one.
    let version = u32::from_le_bytes(*version);
    if version > kind.version() {
        return Err(Unsealed::NewerVersion(version));
    }
    let (length, rest) = rest
        .split_first_chunk::<LENGTH_BYTES>()
        .ok_or(Unsealed::Truncated)?;
    let (body, checksum) = rest
        .split_last_chunk::<CHECKSUM_BYTES>()
        .ok_or(Unsealed::Truncated)?;
    if u64::try_from(body.len()) != Ok(u64::from_le_bytes(*length)) {
        return Err(Unsealed::Truncated);
    }
    let sealed = bytes.len().saturating_sub(CHECKSUM_BYTES);
    let expected = digest(&SHA256, bytes.get(..sealed).unwrap_or_default());
    if expected.as_ref() != checksum {
        return Err(Unsealed::Corrupted);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_sealed_opens(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = seal(Kind::Snapshot, &body);
            prop_assert_eq!(open(Kind::Snapshot, &bytes), Ok(body.as_slice()));
            prop_assert_eq!(open(Kind::TokenKey, &bytes), Err(Unsealed::OtherKind));
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open(Kind::Snapshot, &bytes).is_err());
        }
    }

    #[test]
    fn every_flipped_bit_and_every_other_length_is_refused() {
        let bytes = seal(Kind::TokenKey, b"a body of some length");
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.to_vec();
                flipped[at] ^= 1 << bit;
                assert!(
                    open(Kind::TokenKey, &flipped).is_err(),
                    "byte {at}, bit {bit}"
                );
            }
            assert!(open(Kind::TokenKey, &bytes[..at]).is_err(), "cut at {at}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(open(Kind::TokenKey, &longer), Err(Unsealed::Truncated));
    }

    #[test]
    fn a_later_agents_file_is_named_as_such() {
        let mut bytes = seal(Kind::Snapshot, b"x").to_vec();
        bytes[8] = 2;
        assert_eq!(open(Kind::Snapshot, &bytes), Err(Unsealed::NewerVersion(2)));
    }
}
