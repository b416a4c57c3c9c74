//! IMDSv2 session tokens: stateless, so that they outlive the process and need no memory.

use std::fmt;

use zeroize::Zeroizing;

/// Makes and checks tokens. Survives the agent in the hand-over directory, so that tokens do too.
#[derive(Clone)]
pub struct TokenKey {
    current: Zeroizing<[u8; Self::BYTES]>,
    previous: Option<Zeroizing<[u8; Self::BYTES]>>,
}

impl TokenKey {
    /// Bytes of a key.
    pub const BYTES: usize = 32;

    /// A key from random bytes.
    pub fn new(key: [u8; Self::BYTES]) -> Self {
        Self {
            current: Zeroizing::new(key),
            previous: None,
        }
    }

    /// Also accepts tokens made with an earlier key.
    #[must_use]
    pub fn accepting(mut self, previous: [u8; Self::BYTES]) -> Self {
        self.previous = Some(Zeroizing::new(previous));
        self
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey")
            .field("accepts_previous", &self.previous.is_some())
            .finish_non_exhaustive()
    }
}
