//! Responses as bytes, rendered once and copied out per request.
//!
//! A response is one buffer, head and body, so that it leaves in one send: split writes cost
//! 40 ms with Nagle and delayed acknowledgements. Two things in it depend on the request, the date
//! and whether the connection closes; both are put in while copying. The copy (about 1.5 KB) is
//! cheaper than counting references and lets pipelined answers leave together.
//!
//! Every response says `Server: EC2ws` and a date as the real service does. Lists, credentials and
//! `iam/info` are `text/plain` like the real service's; the container door says
//! `application/json`, as its contract has it.

use std::fmt;
use std::io::Write as _;

use zeroize::Zeroizing;

use crate::buffer::reserve;

/// Bytes of an HTTP date: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub const DATE_BYTES: usize = 29;

/// Stands where the date goes until it is copied out.
const DATE_PLACE: &[u8; DATE_BYTES] = b"Thu, 01 Jan 1970 00:00:00 GMT";

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// `text/plain`, as all of the real metadata service.
    Text,
    /// `application/json`, for the container door.
    Json,
}

impl Media {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text/plain",
            Self::Json => "application/json",
        }
    }
}

/// What a copy depends on.
#[derive(Debug, Clone, Copy)]
pub struct Manner<'a> {
    /// The date to put in.
    pub date: &'a [u8; DATE_BYTES],
    /// Say `Connection: close`.
    pub close: bool,
    /// Leave the body out: the request was a HEAD.
    pub head_only: bool,
}

/// One rendered response. May hold secrets: wiped when dropped, and never printed.
pub struct Response {
    status: u16,
    /// The head up to the date, the date, an empty line, the body.
    bytes: Zeroizing<Vec<u8>>,
    /// Where the date starts.
    date_at: usize,
    /// Where the empty line starts, including the line end before it.
    head_end: usize,
}

impl Response {
    /// Renders a response. `headers` are added as they are: name, value; neither may hold a line
    /// end, which their sources (constants and checked tokens) cannot.
    pub fn new(status: Status, media: Media, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let extra: usize = headers.iter().map(|(n, v)| n.len() + v.len() + 4).sum();
        // One allocation that is never outgrown: a growing buffer leaves copies of secrets behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(192 + extra + body.len()));
        let mut head = || -> std::io::Result<()> {
            write!(bytes, "HTTP/1.1 {} {}\r\n", status.code(), status.reason())?;
            if !body.is_empty() {
                write!(bytes, "Content-Type: {}\r\n", media.as_str())?;
            }
            write!(bytes, "Content-Length: {}\r\nServer: EC2ws\r\n", body.len())?;
            for (name, value) in headers {
                write!(bytes, "{name}: {value}\r\n")?;
            }
            bytes.write_all(b"Date: ")
        };
        // Writing to a Vec cannot fail.
        head().unwrap_or_default();
        let date_at = bytes.len();
        bytes.extend_from_slice(DATE_PLACE);
        let head_end = bytes.len();
        bytes.extend_from_slice(b"\r\n\r\n");
        bytes.extend_from_slice(body);
        Self {
            status: status.code(),
            bytes,
            date_at,
            head_end,
        }
    }

    /// Appends the response to `out`. Allocates only when `out` is too small.
    pub fn copy_to(&self, out: &mut Vec<u8>, manner: Manner<'_>) {
        let Some((head, tail)) = self.bytes.split_at_checked(self.head_end) else {
            return;
        };
        let Some(head) = head.get(..self.date_at) else {
            return;
        };
        reserve(out, self.bytes.len() + CLOSE.len());
        out.extend_from_slice(head);
        out.extend_from_slice(manner.date);
        if manner.close {
            out.extend_from_slice(CLOSE);
        }
        if manner.head_only {
            out.extend_from_slice(b"\r\n\r\n");
        } else {
            out.extend_from_slice(tail);
        }
    }

    /// The status code.
    pub const fn status(&self) -> u16 {
        self.status
    }
}

const CLOSE: &[u8] = b"\r\nConnection: close";

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// The statuses this agent answers with of its own; a closed set, and a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// 200
    Ok,
    /// 400
    BadRequest,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405
    MethodNotAllowed,
    /// 413
    ContentTooLarge,
    /// 417
    ExpectationFailed,
    /// 431
    HeadTooLarge,
    /// 501
    NotImplemented,
    /// 502
    BadGateway,
    /// 503
    Unavailable,
    /// 504
    GatewayTimeout,
    /// 505
    VersionNotSupported,
}

impl Status {
    /// Every status, for metrics that start at zero.
    pub const ALL: [Self; 14] = [
        Self::Ok,
        Self::BadRequest,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::ContentTooLarge,
        Self::ExpectationFailed,
        Self::HeadTooLarge,
        Self::NotImplemented,
        Self::BadGateway,
        Self::Unavailable,
        Self::GatewayTimeout,
        Self::VersionNotSupported,
    ];

    /// The number.
    pub const fn code(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::ContentTooLarge => 413,
            Self::ExpectationFailed => 417,
            Self::HeadTooLarge => 431,
            Self::NotImplemented => 501,
            Self::BadGateway => 502,
            Self::Unavailable => 503,
            Self::GatewayTimeout => 504,
            Self::VersionNotSupported => 505,
        }
    }

    /// The place of a status number in [`Status::ALL`], and one past its end for any other.
    pub(crate) const fn index_of(code: u16) -> usize {
        match code {
            200 => 0,
            400 => 1,
            401 => 2,
            403 => 3,
            404 => 4,
            405 => 5,
            413 => 6,
            417 => 7,
            431 => 8,
            501 => 9,
            502 => 10,
            503 => 11,
            504 => 12,
            505 => 13,
            _ => Self::ALL.len(),
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::BadRequest => "Bad Request",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::ContentTooLarge => "Content Too Large",
            Self::ExpectationFailed => "Expectation Failed",
            Self::HeadTooLarge => "Request Header Fields Too Large",
            Self::NotImplemented => "Not Implemented",
            Self::BadGateway => "Bad Gateway",
            Self::Unavailable => "Service Unavailable",
            Self::GatewayTimeout => "Gateway Timeout",
            Self::VersionNotSupported => "HTTP Version Not Supported",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &[u8; DATE_BYTES] = b"Sun, 06 Nov 1994 08:49:37 GMT";

    #[track_caller]
    fn check(response: &Response, close: bool, head_only: bool, expected: &str) {
        let mut out = Vec::new();
        response.copy_to(
            &mut out,
            Manner {
                date: DATE,
                close,
                head_only,
            },
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_copy_is_a_whole_response() {
        let response = Response::new(Status::Ok, Media::Text, &[("X-A", "b")], b"role");
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\
                    Server: EC2ws\r\nX-A: b\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
        check(&response, false, false, &format!("{head}\r\nrole"));
        check(&response, false, true, &format!("{head}\r\n"));
        check(
            &response,
            true,
            false,
            &format!("{head}Connection: close\r\n\r\nrole"),
        );
        check(
            &response,
            true,
            true,
            &format!("{head}Connection: close\r\n\r\n"),
        );
    }

    #[test]
    fn an_empty_body_has_no_type() {
        check(
            &Response::new(Status::NotFound, Media::Text, &[], b""),
            false,
            false,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nServer: EC2ws\r\n\
             Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n",
        );
    }

    #[test]
    fn a_response_never_prints_its_body() {
        let response = Response::new(Status::Ok, Media::Text, &[], b"hidden");
        assert!(!format!("{response:?}").contains("hidden"));
    }
}
