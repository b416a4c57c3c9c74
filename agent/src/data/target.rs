//! Which of our routes a target means.
//!
//! Clients write the same path in several ways, so ours are matched on the percent-decoded path
//! with doubled slashes collapsed and the query left out:
//!
//! | target | is |
//! |---|---|
//! | `/any/meta-data/...`, `/any/api/token` | ours, whatever the one segment `any` is |
//! | `//latest//meta-data/...`, `%2f`, `%73ecurity-credentials` | what it decodes to |
//! | a `.` or `..` segment, plain or encoded | not ours: 404 |
//! | an encoding that is cut off or no hexadecimal; a decoded control or non-ASCII character | 400 |
//! | `/a/b/meta-data/...`, `security-credentials;x` | not ours: 404, and never fetched for anyone |
//!
//! What is not ours may be fetched from the real service, if that is allowed at all; that is
//! decided on the raw target (see `passthrough`), so that nothing is fetched that decodes to
//! something else.

use super::limits::HEAD_BYTES_MAX;

/// What a target means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// `api/token`
    Token,
    /// `meta-data/iam/security-credentials[/]` and the extended form.
    RoleList,
    /// `meta-data/iam/security-credentials/ROLE`
    Credentials(&'a str),
    /// `meta-data/iam/security-credentials-extended/ROLE`
    Extended(&'a str),
    /// `meta-data/iam/info`
    Info,
    /// `meta-data/placement/region`
    Region,
    /// `meta-data/placement/availability-zone[/]`
    AvailabilityZone,
    /// `dynamic/instance-identity/document`
    IdentityDocument,
    /// kiam's `/ping`
    Ping,
    /// kiam's `/health`
    Health,
    /// The container door's `/v1/credentials`.
    ContainerCredentials,
    /// Anything else.
    Other,
}

/// Room for a decoded path.
pub(super) struct Scratch([u8; HEAD_BYTES_MAX]);

impl Scratch {
    pub(super) const fn new() -> Self {
        Self([0; HEAD_BYTES_MAX])
    }
}

/// A target that decodes to nothing sensible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Undecodable;

/// What nearly every target is, found without a look at all of its bytes for what could be odd:
/// the plainest spelling of our own. `None` says nothing; whatever is found here, the long way would
/// find as well.
pub(super) fn usual(target: &str) -> Option<Route<'_>> {
    const LIST: &str = "/latest/meta-data/iam/security-credentials/";
    let Some(role) = target.strip_prefix(LIST) else {
        return (target == "/latest/api/token").then_some(Route::Token);
    };
    if role.is_empty() {
        return Some(Route::RoleList);
    }
    // No dots, slashes or escapes: nothing that could mean something else.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    role.bytes().all(plain).then_some(Route::Credentials(role))
}

/// The path of a raw target: without its query.
pub(super) fn path(target: &str) -> &str {
    if !any(target.as_bytes(), |byte| byte == b'?') {
        return target;
    }
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// The query of a raw target.
pub(super) fn query(target: &str) -> &str {
    target.split_once('?').map_or("", |(_, query)| query)
}

/// Whether a path already is what it decodes to, and has no segment that begins with a dot. Most
/// are, and cost no copy.
pub(super) fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    let odd = any(bytes, |byte| byte == b'%' || !byte.is_ascii_graphic());
    let pairs = bytes.iter().zip(bytes.get(1..).unwrap_or_default());
    let slashed = pairs.fold(0, |found, (a, b)| {
        let second = u8::from(*b == b'/') | u8::from(*b == b'.');
        found | u8::from(*a == b'/') & second
    });
    !odd && slashed == 0
}

/// Looks at every byte whatever it finds, because that way the compiler looks at sixteen at once.
fn any(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(false, |found, byte| found | is(*byte))
}

/// Whether a decoded path could climb out of where it seems to be. Never resolved, so that nothing
/// does.
pub(super) fn is_dotted(path: &str) -> bool {
    path.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// Decodes a path that is not plain: `%xx` becomes what it says, doubled slashes one.
pub(super) fn decode<'s>(path: &str, scratch: &'s mut Scratch) -> Result<&'s str, Undecodable> {
    let mut length = 0;
    let mut rest = path.as_bytes();
    let mut previous = 0;
    while let Some((&first, tail)) = rest.split_first() {
        let byte = if first == b'%' {
            let (&[high, low], tail) = tail.split_first_chunk::<2>().ok_or(Undecodable)?;
            rest = tail;
            hexadecimal(high)? << 4 | hexadecimal(low)?
        } else {
            rest = tail;
            first
        };
        if !(0x20..0x7f).contains(&byte) {
            return Err(Undecodable);
        }
        if byte == b'/' && previous == b'/' {
            continue;
        }
        *scratch.0.get_mut(length).ok_or(Undecodable)? = byte;
        length += 1;
        previous = byte;
    }
    let decoded = scratch.0.get(..length).unwrap_or_default();
    std::str::from_utf8(decoded).map_err(|_not_ascii| Undecodable)
}

fn hexadecimal(digit: u8) -> Result<u8, Undecodable> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(Undecodable),
    }
}

/// Whether a raw target is that of session tokens, in whichever way it is written.
pub(super) fn is_token(target: &str) -> bool {
    if let Some(route) = usual(target) {
        return route == Route::Token;
    }
    let raw = path(target);
    if is_plain(raw) {
        return route(raw) == Route::Token;
    }
    is_token_decoded(raw)
}

/// Kept out of the usual way: the scratch space is as large as a head.
#[cold]
#[inline(never)]
fn is_token_decoded(raw: &str) -> bool {
    let mut scratch = Scratch::new();
    decode(raw, &mut scratch)
        .is_ok_and(|decoded| !is_dotted(decoded) && route(decoded) == Route::Token)
}

/// Which route a path is that is plain, or decoded and not dotted.
pub(super) fn route(path: &str) -> Route<'_> {
    let Some(rest) = path.strip_prefix('/') else {
        return Route::Other;
    };
    match rest {
        "ping" => return Route::Ping,
        "health" => return Route::Health,
        "v1/credentials" | "v1/credentials/" => return Route::ContainerCredentials,
        _ => {}
    }
    // Any one segment. It is short, so that a plain loop is the quickest.
    let Some(version) = rest.bytes().position(|byte| byte == b'/') else {
        return Route::Other;
    };
    let rest = rest.get(version + 1..).unwrap_or_default();
    if version == 0 {
        return Route::Other;
    }
    if let Some(iam) = rest.strip_prefix("meta-data/iam/") {
        return credentials(iam);
    }
    match rest {
        "api/token" => Route::Token,
        "meta-data/placement/region" => Route::Region,
        "meta-data/placement/availability-zone" | "meta-data/placement/availability-zone/" => {
            Route::AvailabilityZone
        }
        "dynamic/instance-identity/document" => Route::IdentityDocument,
        _ => Route::Other,
    }
}

fn credentials(iam: &str) -> Route<'_> {
    let Some(rest) = iam.strip_prefix("security-credentials") else {
        return match iam {
            "info" | "info/" => Route::Info,
            _ => Route::Other,
        };
    };
    let (extended, rest) = rest
        .strip_prefix("-extended")
        .map_or((false, rest), |rest| (true, rest));
    match rest.strip_prefix('/') {
        None if rest.is_empty() => Route::RoleList,
        None => Route::Other,
        Some("") => Route::RoleList,
        Some(role) if extended => Route::Extended(role),
        Some(role) => Route::Credentials(role),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(target: &str, expected: &str) {
        let raw = path(target);
        let mut scratch = Scratch::new();
        let got = if is_plain(raw) {
            format!("{:?}", route(raw))
        } else {
            match decode(raw, &mut scratch) {
                Ok(path) if is_dotted(path) => "Other".into(),
                Ok(path) => format!("{:?}", route(path)),
                Err(Undecodable) => "undecodable".into(),
            }
        };
        assert_eq!(got, expected, "for {target}");
        if let Some(usual) = usual(target) {
            assert_eq!(got, format!("{usual:?}"), "for {target}");
        }
    }

    #[test]
    fn our_routes_are_found() {
        check("/latest/api/token", "Token");
        check("/2021-03-23/api/token", "Token");
        for base in [
            "/latest/meta-data/iam/security-credentials",
            "/latest/meta-data/iam/security-credentials-extended",
        ] {
            check(base, "RoleList");
            check(&format!("{base}/"), "RoleList");
            check(&format!("{base}?x=y"), "RoleList");
        }
        check(
            "/1.0/meta-data/iam/security-credentials/r",
            r#"Credentials("r")"#,
        );
        check(
            "/latest/meta-data/iam/security-credentials-extended/r",
            r#"Extended("r")"#,
        );
        check("/latest/meta-data/iam/info", "Info");
        check(
            "/latest/meta-data/placement/availability-zone/",
            "AvailabilityZone",
        );
        check("/latest/meta-data/placement/region", "Region");
        check(
            "/latest/dynamic/instance-identity/document",
            "IdentityDocument",
        );
        check("/ping", "Ping");
        check("/health?deep=1", "Health");
        check("/v1/credentials", "ContainerCredentials");
    }

    #[test]
    fn the_usual_spellings_are_known_at_once() {
        for (target, known) in [
            ("/latest/api/token", true),
            ("/latest/meta-data/iam/security-credentials/", true),
            ("/latest/meta-data/iam/security-credentials/a-B_9", true),
            ("/latest/meta-data/iam/security-credentials", false),
            ("/latest/meta-data/iam/security-credentials/a/b", false),
            ("/latest/meta-data/iam/security-credentials/..", false),
            ("/latest/meta-data/iam/security-credentials/a?b", false),
            ("/latest/meta-data/iam/security-credentials/%72", false),
            (
                "/latest/meta-data/iam/security-credentials-extended/",
                false,
            ),
            ("/latest/api/token/", false),
        ] {
            assert_eq!(usual(target).is_some(), known, "for {target}");
            let raw = path(target);
            if let Some(usual) = usual(target) {
                assert!(is_plain(raw) && usual == route(raw), "for {target}");
            }
        }
    }

    #[test]
    fn one_path_has_many_spellings() {
        check(
            "/latest/meta-data/iam/security-credentials//r",
            r#"Credentials("r")"#,
        );
        check("//latest///meta-data/iam/security-credentials/", "RoleList");
        check(
            "/latest/meta-data/iam%2fsecurity-credentials/r",
            r#"Credentials("r")"#,
        );
        check(
            "/%6catest/meta-data/iam/security-credentials%2Fr",
            r#"Credentials("r")"#,
        );
        check(
            "/latest/meta-data/iam/security-credentials/arn:aws:iam::1:role%2Fa%2Fr",
            r#"Credentials("arn:aws:iam::1:role/a/r")"#,
        );
        check(
            "/latest/meta-data/iam/security-credentials/a%20b",
            r#"Credentials("a b")"#,
        );
    }

    #[test]
    fn what_is_not_ours_is_not_taken() {
        for target in [
            "/",
            "/latest",
            "/latest/",
            "/a/b/meta-data/iam/security-credentials/r",
            "/latest/meta-data/iam/security-credentials;x/y",
            "/latest/meta-data/iam/security-credentialsx",
            "/latest/meta-data/iam/../iam/info",
            "/latest/meta-data/iam/security-credentials/%2e%2e",
            "/latest/./meta-data/iam/info",
            "/latest/meta-data/instance-id",
            "/latest/user-data",
            "/ping/",
        ] {
            check(target, "Other");
        }
    }

    #[test]
    fn what_decodes_to_nothing_sensible_is_refused() {
        for target in ["/%", "/%4", "/%zz", "/a%00b", "/a%0ab", "/a%ff", "/\u{e9}"] {
            check(target, "undecodable");
        }
    }
}
