//! Metadata paths that are fetched from the real service, when an operator says so.
//!
//! Nothing of the client's request is passed on but the path, and that only when it means to
//! everyone what it means to us: a rebuilt GET without a body on a fresh connection, with the
//! agent's own session. kiam passed on heads and bodies, and paths its own router did not
//! recognise; each of those was a way to the node's credentials.
//!
//! Whatever the regular expression says, never fetched are paths
//! - with `%`, `//`, `..`, `;`, `\`, or anything but printable ASCII,
//! - with a segment (in any case of letters) that begins with `iam`, `security-credentials`,
//!   `identity-credentials`, `user-data`, `managed-ssh-keys`, or an `api` followed by `token`,
//!
//! the latter unless the expression names exactly that path: one alternative of it is
//! `^/the/path$` with nothing in it that means anything but itself (`\.` and `\-` are themselves).
//! Even so the token route and role credentials of this agent's own routes are answered by the
//! agent and never get here.

mod exact;
mod upstream;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use regex::Regex;

use self::upstream::{Get, Head, Problem};
use super::Passthrough;
use super::seam::Stream;
use super::watch::Watch;
use crate::clock::{later, monotonic};
use crate::response::{DATE_BYTES, Status};

/// Segments that lead to credentials or secrets of the node.
const FORBIDDEN: [&str; 5] = [
    "iam",
    "security-credentials",
    "identity-credentials",
    "user-data",
    "managed-ssh-keys",
];

/// Fetches what is allowed.
#[derive(Debug)]
pub(super) struct Fetcher {
    allow: Regex,
    named: Vec<String>,
    endpoint: SocketAddr,
    timeout: Duration,
    body_bytes_max: u64,
    session: RefCell<Session>,
}

/// The agent's own IMDSv2 session.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Session {
    /// Not asked for yet, or dropped after a 401.
    None,
    /// Good until then.
    Token(Vec<u8>, Instant),
    /// The service has no tokens; asked again then.
    Without(Instant),
}

/// How a fetch went, as the client's connection sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetched {
    /// The answer has been passed on.
    Passed {
        /// The real service's.
        status: u16,
        /// The connection ends.
        close: bool,
    },
    /// Nothing has been sent; send this.
    Instead(Status),
    /// Something has been sent, and cannot be finished.
    Broken,
}

impl Fetcher {
    pub(super) fn new(passthrough: &Passthrough) -> Self {
        let Passthrough {
            allow,
            endpoint,
            timeout,
            body_bytes_max,
        } = passthrough;
        Self {
            allow: allow.clone(),
            named: exact::paths(allow.as_str()),
            endpoint: *endpoint,
            timeout: *timeout,
            body_bytes_max: *body_bytes_max,
            session: RefCell::new(Session::None),
        }
    }

    /// Whether a raw path may be fetched.
    pub(super) fn allows(&self, path: &str) -> bool {
        if !means_itself(path) || !self.allow.is_match(path) {
            return false;
        }
        !is_forbidden(path) || self.named.iter().any(|named| named == path)
    }

    /// Fetches `path` and passes the answer on to `client`.
    pub(super) async fn fetch(
        &self,
        watch: &Watch,
        client: &mut Stream,
        path: &str,
        (close, head_only): (bool, bool),
        date: &[u8; DATE_BYTES],
    ) -> Fetched {
        let deadline = later(monotonic(), self.timeout);
        watch.until(deadline);
        // A second try only when the session was refused, which a new one mends.
        for _attempt in 0..2 {
            let token = match self.token(watch).await {
                Ok(token) => token,
                Err(problem) => return Fetched::Instead(problem.status()),
            };
            let get = Get {
                path,
                token: token.as_deref(),
            };
            let (mut upstream, head) = match upstream::get(watch, self.endpoint, get).await {
                Ok(answer) => answer,
                Err(problem) => return Fetched::Instead(problem.status()),
            };
            if head.status == 401 && token.is_some() {
                *self.session.borrow_mut() = Session::None;
                continue;
            }
            if head
                .length
                .is_some_and(|length| length > self.body_bytes_max)
            {
                return Fetched::Instead(Status::BadGateway);
            }
            let relay = upstream::Relay {
                watch,
                client,
                date,
                close,
                head_only,
                body_bytes_max: self.body_bytes_max,
            };
            return relay.pass(&mut upstream, head).await;
        }
        Fetched::Instead(Status::BadGateway)
    }

    /// The session's token; `None` when the service has none to give.
    async fn token(&self, watch: &Watch) -> Result<Option<Vec<u8>>, Problem> {
        let now = monotonic();
        match &*self.session.borrow() {
            Session::Token(token, until) if now < *until => return Ok(Some(token.clone())),
            Session::Without(until) if now < *until => return Ok(None),
            Session::None | Session::Token(..) | Session::Without(_) => {}
        }
        let token = upstream::session(watch, self.endpoint).await?;
        *self.session.borrow_mut() = token.as_ref().map_or_else(
            || Session::Without(later(now, Duration::from_mins(1))),
            |token| {
                // A little less than was asked for, so that it never ends on the way.
                let life = Duration::from_secs(upstream::SESSION_S - 120);
                Session::Token(token.clone(), later(now, life))
            },
        );
        Ok(token)
    }
}

/// Whether every parser reads the same in it.
fn means_itself(path: &str) -> bool {
    path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_graphic())
        && !path.contains(['%', ';', '\\', '#', '?'])
        && !path.contains("//")
        && !path.contains("..")
        && !path.contains("/./")
        && !path.ends_with("/.")
}

fn is_forbidden(path: &str) -> bool {
    let begins = |segment: &str, word: &str| {
        segment
            .get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word))
    };
    let forbidden = path
        .split('/')
        .any(|segment| FORBIDDEN.iter().any(|word| begins(segment, word)));
    let mut segments = path.split('/');
    let token = segments
        .by_ref()
        .any(|segment| segment.eq_ignore_ascii_case("api"))
        && segments.any(|segment| begins(segment, "token"));
    forbidden || token
}

/// The head a client gets, from the real service's.
fn rewritten(head: &Head, date: &[u8; DATE_BYTES], close: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.to_string().as_bytes());
    out.extend_from_slice(b" \r\nServer: EC2ws\r\nDate: ");
    out.extend_from_slice(date);
    for (name, value) in &head.kept {
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
    }
    if let Some(length) = head.length {
        out.extend_from_slice(b"\r\nContent-Length: ");
        out.extend_from_slice(length.to_string().as_bytes());
    }
    if close {
        out.extend_from_slice(b"\r\nConnection: close");
    }
    out.extend_from_slice(b"\r\n\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(regexp: &str, path: &str, expected: bool) {
        let fetcher = Fetcher::new(&Passthrough {
            allow: Regex::new(regexp).unwrap(),
            endpoint: "127.0.0.1:1".parse().unwrap(),
            timeout: Duration::from_secs(1),
            body_bytes_max: 1,
        });
        assert_eq!(fetcher.allows(path), expected, "{path} by {regexp}");
    }

    #[test]
    fn expressions_are_unanchored_and_see_the_raw_path() {
        check("foo.*", "/bar/foo", true);
        check("foo.*", "/bar", false);
        check("^$", "/", false);
        check(
            "^/latest/meta-data/placement/",
            "/latest/meta-data/placement/region",
            true,
        );
    }

    /// kiam's S4: what its router did not take for credentials went to the real service.
    #[test]
    fn nothing_is_fetched_that_means_something_else_to_someone() {
        for path in [
            "/latest/meta-data/iam/security-credentials/%0a",
            "/latest/meta-data/iam/security-credentials;x/y",
            "/a/b/meta-data/iam/security-credentials/x",
            "/latest/%6deta-data/instance-id",
            "/latest//meta-data/instance-id",
            "/latest/x/../meta-data/instance-id",
            "/latest/./meta-data/instance-id",
            "/latest/meta-data\\iam",
            "/latest/meta-data/\u{ef}am",
            "/latest/meta-data/instance-id#x",
            "/latest/meta-data/instance id",
        ] {
            check(".*", path, false);
        }
        check(".*", "/latest/meta-data/instance-id", true);
    }

    /// kiam's S7: these were protected by the expression alone.
    #[test]
    fn secrets_need_to_be_named() {
        for path in [
            "/latest/user-data",
            "/latest/USER-DATA",
            "/latest/user-data/",
            "/latest/meta-data/IAM/info",
            "/latest/meta-data/iam/",
            "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
            "/latest/meta-data/managed-ssh-keys/active-keys/x",
            "/latest/api/token",
            "/latest/API/Token",
        ] {
            check(".*", path, false);
            check("^/latest/", path, false);
        }
        check("^/latest/user-data$", "/latest/user-data", true);
        check("^/a$|^/latest/user-data$", "/latest/user-data", true);
        check("/latest/user-data", "/latest/user-data", false);
        check("^/latest/user.data$", "/latest/user-data", false);
        check("^/latest/user-data.*$", "/latest/user-data", false);
        check("^/(latest)/user-data$", "/latest/user-data", false);
    }
}
