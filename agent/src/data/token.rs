//! IMDSv2 session tokens: stateless, so that they outlive the process and need no memory.
//!
//! A token is a version, its expiry and a MAC over both and the address it was given to, 55
//! characters in all (real ones have 56). The pod need not be known: SDKs ask for a token first,
//! and one that is refused sends some of them back to IMDSv1 for good. A token is worthless from
//! any other address.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use zeroize::Zeroizing;

use kiam_wire::UnixSeconds;

/// Seconds a token may live, as the real service has it.
pub const TTL_S_MAX: u32 = 21_600;
/// Seconds by which two workers may differ about the time: each reads it when its doorbell rings, and
/// agents that share a key may be an instant apart.
const SLACK_S: i64 = 5;
/// Characters of a token.
pub const TOKEN_BYTES: usize = 55;

const VERSION: u8 = 1;
const EXPIRY_BYTES: usize = 8;
const MAC_BYTES: usize = 32;
const RAW_BYTES: usize = 1 + EXPIRY_BYTES + MAC_BYTES;
const _: () = assert!(TOKEN_BYTES == RAW_BYTES.div_ceil(3) * 4 - (3 - RAW_BYTES % 3) % 3);
const _: () = assert!(TOKEN_BYTES < 100);

/// Makes and checks tokens. Survives the agent in the hand-over directory, so that tokens do too:
/// one SDK keeps its token for six hours and never drops it.
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

/// One worker's tokens: the keys, prepared.
pub(super) struct Tokens {
    current: hmac::Key,
    previous: Option<hmac::Key>,
}

/// What a token's life is measured with: wall time, and wall time as it would be had nobody set
/// the clock since this process started. The later is believed, so that a clock that is set back
/// gives no token a second life.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenTime {
    pub(super) wall: UnixSeconds,
    pub(super) steady: UnixSeconds,
}

impl TokenTime {
    fn latest(self) -> i64 {
        self.wall.max(self.steady).get()
    }
}

impl Tokens {
    pub(super) fn new(key: &TokenKey) -> Self {
        let prepare = |key: &[u8; TokenKey::BYTES]| hmac::Key::new(hmac::HMAC_SHA256, key);
        Self {
            current: prepare(&key.current),
            previous: key.previous.as_ref().map(|key| prepare(key)),
        }
    }

    /// A token for `peer` that lives `ttl_s` seconds.
    pub(super) fn make(&self, peer: IpAddr, ttl_s: u32, time: TokenTime) -> [u8; TOKEN_BYTES] {
        // By the time it will be checked with: counted from a wall clock that was set back, it
        // would be dead at birth.
        let expires_at = time.latest().saturating_add(i64::from(ttl_s));
        let mac = hmac::sign(&self.current, &message(peer, expires_at));
        let mut raw = [0; RAW_BYTES];
        let (version, rest) = raw.split_at_mut(1);
        let (expiry, mac_place) = rest.split_at_mut(EXPIRY_BYTES);
        version.fill(VERSION);
        expiry.copy_from_slice(&expires_at.to_be_bytes());
        mac_place.copy_from_slice(mac.as_ref());
        let mut token = [0; TOKEN_BYTES];
        // The lengths are asserted above, so this cannot fail; were it to, the token is worthless.
        let _bytes = URL_SAFE_NO_PAD.encode_slice(raw, &mut token).unwrap_or(0);
        token
    }

    /// Whether `token` was given to `peer` and still counts.
    pub(super) fn accepts(&self, token: &[u8], peer: IpAddr, time: TokenTime) -> bool {
        // The decoder asks for room in whole groups.
        let mut raw = [0; RAW_BYTES + 3];
        if token.len() != TOKEN_BYTES
            || URL_SAFE_NO_PAD.decode_slice(token, &mut raw) != Ok(RAW_BYTES)
        {
            return false;
        }
        let Some((&[VERSION], rest)) = raw.split_first_chunk::<1>() else {
            return false;
        };
        let Some((expiry, rest)) = rest.split_first_chunk::<EXPIRY_BYTES>() else {
            return false;
        };
        let Some((mac, _)) = rest.split_first_chunk::<MAC_BYTES>() else {
            return false;
        };
        let expires_at = i64::from_be_bytes(*expiry);
        let now = time.latest();
        if expires_at <= now || expires_at.saturating_sub(now) > i64::from(TTL_S_MAX) + SLACK_S {
            return false;
        }
        let message = message(peer, expires_at);
        // Both take the same time whatever is wrong.
        hmac::verify(&self.current, &message, mac).is_ok()
            || self
                .previous
                .as_ref()
                .is_some_and(|key| hmac::verify(key, &message, mac).is_ok())
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

/// Keeps the key from ever meaning anything else.
const PREFIX: &[u8; 16] = b"kiam imds token\0";
const MESSAGE_BYTES: usize = PREFIX.len() + 1 + EXPIRY_BYTES + 16;

/// What is authenticated.
fn message(peer: IpAddr, expires_at: i64) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    let address = match peer {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let (prefix, rest) = message.split_at_mut(PREFIX.len());
    let (version, rest) = rest.split_at_mut(1);
    let (expiry, place) = rest.split_at_mut(EXPIRY_BYTES);
    prefix.copy_from_slice(PREFIX);
    version.fill(VERSION);
    expiry.copy_from_slice(&expires_at.to_be_bytes());
    place.copy_from_slice(&address.octets());
    message
}

/// The seconds a TTL header asks for; `None` for anything but 1 to [`TTL_S_MAX`] in digits.
pub(super) fn ttl(header: &[u8]) -> Option<u32> {
    if header.is_empty() || header.len() > 5 || !header.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = header
        .iter()
        .fold(0, |sum, digit| sum * 10 + u32::from(*digit - b'0'));
    (1..=TTL_S_MAX).contains(&seconds).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

    fn at(wall: i64, steady: i64) -> TokenTime {
        TokenTime {
            wall: UnixSeconds::new(wall),
            steady: UnixSeconds::new(steady),
        }
    }

    fn tokens(byte: u8) -> Tokens {
        Tokens::new(&TokenKey::new([byte; 32]))
    }

    #[test]
    fn a_token_is_good_for_its_peer_until_it_expires() {
        let tokens = tokens(1);
        let token = tokens.make(PEER, 60, at(1_000, 1_000));
        assert!(token.iter().all(u8::is_ascii_graphic));
        assert!(tokens.accepts(&token, PEER, at(1_000, 1_000)));
        assert!(tokens.accepts(&token, PEER, at(1_059, 1_059)));
        assert!(!tokens.accepts(&token, PEER, at(1_060, 1_060)));
        assert!(!tokens.accepts(&token, "10.0.0.8".parse().unwrap(), at(1_000, 1_000)));
        assert!(!tokens.accepts(&token, "::ffff:10.0.0.8".parse().unwrap(), at(1_000, 1_000)));
    }

    #[test]
    fn a_clock_set_back_gives_no_second_life() {
        let tokens = tokens(1);
        let token = tokens.make(PEER, 60, at(1_000_000, 1_000_000));
        assert!(!tokens.accepts(&token, PEER, at(1_000_000, 1_000_060)));
        assert!(!tokens.accepts(&token, PEER, at(900_000, 900_000)));
    }

    #[test]
    fn a_token_made_after_the_clock_was_set_back_lives_as_long_as_any() {
        let tokens = tokens(1);
        for ttl_s in [1, 60, TTL_S_MAX] {
            let ttl = i64::from(ttl_s);
            let token = tokens.make(PEER, ttl_s, at(1_000, 50_000));
            assert!(tokens.accepts(&token, PEER, at(1_000, 50_000)), "{ttl_s}");
            let (wall, steady) = (1_000 + ttl, 50_000 + ttl);
            assert!(tokens.accepts(&token, PEER, at(wall - 1, steady - 1)));
            assert!(!tokens.accepts(&token, PEER, at(wall, steady)));
        }
    }

    #[test]
    fn a_worker_whose_clock_is_behind_takes_the_longest_token() {
        let tokens = tokens(1);
        let token = tokens.make(PEER, TTL_S_MAX, at(1_001, 1_001));
        assert!(tokens.accepts(&token, PEER, at(1_000, 1_000)));
        assert!(!tokens.accepts(&token, PEER, at(900, 900)));
    }

    #[test]
    fn every_changed_character_spoils_it() {
        let tokens = tokens(1);
        let good = tokens.make(PEER, 60, at(1_000, 1_000));
        for place in 0..TOKEN_BYTES {
            let mut bad = good;
            bad[place] = if bad[place] == b'A' { b'B' } else { b'A' };
            assert!(!tokens.accepts(&bad, PEER, at(1_000, 1_000)), "at {place}");
            assert!(!tokens.accepts(&good[..place], PEER, at(1_000, 1_000)));
        }
        assert!(!tokens.accepts(&[good.as_slice(), b"A"].concat(), PEER, at(1_000, 1_000)));
    }

    #[test]
    fn an_earlier_key_may_still_count() {
        let old = tokens(1).make(PEER, 60, at(1_000, 1_000));
        assert!(!tokens(2).accepts(&old, PEER, at(1_000, 1_000)));
        let both = Tokens::new(&TokenKey::new([2; 32]).accepting([1; 32]));
        assert!(both.accepts(&old, PEER, at(1_000, 1_000)));
    }

    #[test]
    fn a_ttl_is_a_plain_number_in_range() {
        for (header, expected) in [
            ("1", Some(1)),
            ("21600", Some(21_600)),
            ("0", None),
            ("21601", None),
            ("99999999999", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            (" 1", None),
        ] {
            assert_eq!(ttl(header.as_bytes()), expected, "for {header:?}");
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        assert_eq!(
            format!("{:?}", TokenKey::new([7; 32])),
            "TokenKey { accepts_previous: false, .. }"
        );
    }
}
