//! One HTTP/1 request out of a buffer: what its head says, and where it ends.
//!
//! This file and [`super::target`] are the whole attack surface a pod sees, so they have no state,
//! allocate nothing, and are fuzzed. What is not plainly right is refused:
//!
//! | input | answer |
//! |---|---|
//! | HTTP/1.1, HTTP/1.0 (always closed after) | as the route says |
//! | another version | 505, close |
//! | no `Host`, any `Host` | ignored: behind a DNAT every client says 169.254.169.254 |
//! | bare LF, NUL, control characters, folded headers, white space before the colon | 400, close |
//! | a header we act on, twice (even if equal) | 400, close |
//! | more than [`HEADERS_MAX`] headers, a head over [`HEAD_BYTES_MAX`] | 431, close |
//! | `Content-Length` that is not a plain number; with `Transfer-Encoding` | 400, close |
//! | `Transfer-Encoding` alone, whatever it says | 501, close |
//! | a body up to [`BODY_BYTES_MAX`] | read, thrown away, answered |
//! | a longer one | 413, close |
//! | `Expect: 100-continue` with a body | 100 first, then the answer |
//! | another `Expect` | 417, close |
//! | absolute-form, authority-form and `*` targets | 400, close |
//!
//! Where "close" is said, nothing after the request is read as another one.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::response::Status;

use super::limits::{BODY_BYTES_MAX, HEAD_BYTES_MAX, HEADERS_MAX};

/// A request as far as this agent cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// What is wanted.
    pub method: Method,
    /// The raw target: starts with `/`, printable ASCII or bytes above it.
    pub target: &'a str,
    /// The connection ends after the answer.
    pub close: bool,
    /// `X-aws-ec2-metadata-token`.
    pub token: Option<&'a [u8]>,
    /// `X-aws-ec2-metadata-token-ttl-seconds`.
    pub token_ttl: Option<&'a [u8]>,
    /// `Authorization`.
    pub authorization: Option<&'a [u8]>,
    /// `X-Forwarded-For` is there: the request came through somebody else's proxy.
    pub forwarded: bool,
    /// Head and body together.
    pub bytes: usize,
}

/// The methods that any route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// PUT
    Put,
    /// Any other token.
    Other,
}

/// What a buffer begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A whole request, its body included.
    Whole(Request<'a>),
    /// The beginning of one.
    Partial,
    /// A whole head whose body is not there yet. `expects`: the client waits for a 100 first.
    Bodyless {
        /// Waits for `100 Continue`.
        expects: bool,
    },
    /// Nothing to be answered but this; the connection ends.
    Refused(Status),
}

/// Looks at the beginning of `buffer`.
pub fn parse(buffer: &[u8]) -> Parsed<'_> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut []);
    let head_bytes = match head.parse_with_uninit_headers(buffer, &mut headers) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if buffer.len() < HEAD_BYTES_MAX => return Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Parsed::Refused(Status::HeadTooLarge);
        }
        Err(httparse::Error::Version) => return Parsed::Refused(Status::VersionNotSupported),
        Err(_) => return Parsed::Refused(Status::BadRequest),
    };
    if head_bytes > HEAD_BYTES_MAX {
        return Parsed::Refused(Status::HeadTooLarge);
    }
    if has_bare_line_feed(buffer.get(..head_bytes).unwrap_or_default()) {
        return Parsed::Refused(Status::BadRequest);
    }
    match facts(&head, head_bytes) {
        Ok((mut request, body)) => {
            request.bytes = head_bytes + body.bytes;
            if request.bytes <= buffer.len() {
                Parsed::Whole(request)
            } else {
                Parsed::Bodyless {
                    expects: body.expects,
                }
            }
        }
        Err(status) => Parsed::Refused(status),
    }
}

/// The parser takes a line feed alone for a line end. Proxies differ about it, so we do not. It
/// refuses a carriage return alone, so their numbers differ exactly when a line feed is bare.
///
/// Counted in sums of one byte each, which the compiler turns into vector instructions; the usual
/// way costs more than the rest of the parsing.
fn has_bare_line_feed(head: &[u8]) -> bool {
    // Whole vectors, and few enough that the difference in one chunk fits.
    const CHUNK_BYTES: usize = 112;
    const _: () = assert!(CHUNK_BYTES <= 127 && CHUNK_BYTES.is_multiple_of(16));
    let difference: i32 = head
        .chunks(CHUNK_BYTES)
        .map(|chunk| {
            let difference = chunk.iter().fold(0_i8, |sum, byte| {
                sum.wrapping_add(i8::from(*byte == b'\n'))
                    .wrapping_sub(i8::from(*byte == b'\r'))
            });
            i32::from(difference)
        })
        .sum();
    difference != 0
}

#[derive(Clone, Copy)]
struct Body {
    bytes: usize,
    expects: bool,
}

fn facts<'a>(
    head: &httparse::Request<'_, 'a>,
    head_bytes: usize,
) -> Result<(Request<'a>, Body), Status> {
    let mut found = Found::default();
    for header in head.headers.iter() {
        found.take(header)?;
    }
    let target = head.path.unwrap_or_default();
    if !target.starts_with('/') {
        return Err(Status::BadRequest);
    }
    // HTTP/1.0 clients that want to keep a connection are no longer made; closing is always right.
    let old = head.version == Some(0);
    let request = Request {
        method: match head.method.unwrap_or_default() {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "PUT" => Method::Put,
            _ => Method::Other,
        },
        target,
        close: old || found.close,
        token: found.token,
        token_ttl: found.token_ttl,
        authorization: found.authorization,
        forwarded: found.forwarded,
        bytes: head_bytes,
    };
    let bytes = match (found.content_length, found.transfer_encoding) {
        (Some(_), true) => return Err(Status::BadRequest),
        (None, true) => return Err(Status::NotImplemented),
        (None, false) => 0,
        (Some(length), false) => length,
    };
    if bytes > BODY_BYTES_MAX {
        return Err(Status::ContentTooLarge);
    }
    let expects = match found.expect {
        None => false,
        Some(expect) if expect.eq_ignore_ascii_case(b"100-continue") => !old,
        Some(_) => return Err(Status::ExpectationFailed),
    };
    Ok((request, Body { bytes, expects }))
}

/// The headers that change what is done.
#[derive(Default)]
struct Found<'a> {
    close: bool,
    token: Option<&'a [u8]>,
    token_ttl: Option<&'a [u8]>,
    authorization: Option<&'a [u8]>,
    forwarded: bool,
    content_length: Option<usize>,
    transfer_encoding: bool,
    expect: Option<&'a [u8]>,
}

impl<'a> Found<'a> {
    fn take(&mut self, header: &httparse::Header<'a>) -> Result<(), Status> {
        let (name, value) = (header.name, header.value);
        // By length first: most headers are told apart without looking at a letter.
        match name.len() {
            6 if name.eq_ignore_ascii_case("expect") => once(&mut self.expect, value),
            10 if name.eq_ignore_ascii_case("connection") => {
                self.close |= lists_close(value);
                Ok(())
            }
            13 if name.eq_ignore_ascii_case("authorization") => {
                once(&mut self.authorization, value)
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                once(&mut self.content_length, length(value)?)
            }
            15 if name.eq_ignore_ascii_case("x-forwarded-for") => {
                self.forwarded = true;
                Ok(())
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                if std::mem::replace(&mut self.transfer_encoding, true) {
                    return Err(Status::BadRequest);
                }
                Ok(())
            }
            24 if name.eq_ignore_ascii_case("x-aws-ec2-metadata-token") => {
                once(&mut self.token, value)
            }
            36 if name.eq_ignore_ascii_case("x-aws-ec2-metadata-token-ttl-seconds") => {
                once(&mut self.token_ttl, value)
            }
            _ => Ok(()),
        }
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Status> {
    if place.replace(value).is_some() {
        return Err(Status::BadRequest);
    }
    Ok(())
}

/// Digits alone: no sign, no list, no hexadecimal.
fn length(value: &[u8]) -> Result<usize, Status> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Status::BadRequest);
    }
    // More digits than fit are a number too large, not a malformed one.
    let text = std::str::from_utf8(value).map_err(|_not_digits| Status::BadRequest)?;
    Ok(text.parse().unwrap_or(usize::MAX / 2))
}

fn lists_close(value: &[u8]) -> bool {
    value
        .split(|byte| *byte == b',')
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// Where a request's target lies in the buffer it was parsed from.
pub(super) fn target_range(buffer: &[u8], request: &Request<'_>) -> Range<usize> {
    let start = request.target.as_ptr().addr() - buffer.as_ptr().addr();
    start..start + request.target.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(input: &[u8]) -> String {
        match parse(input) {
            Parsed::Whole(request) => format!(
                "{:?} {}{}",
                request.method,
                request.target,
                if request.close { " close" } else { "" }
            ),
            Parsed::Partial => "partial".into(),
            Parsed::Bodyless { expects } => format!("bodyless {expects}"),
            Parsed::Refused(status) => status.code().to_string(),
        }
    }

    #[track_caller]
    fn check(input: &str, expected: &str) {
        assert_eq!(answer(input.as_bytes()), expected, "for {input:?}");
    }

    #[test]
    fn plain_requests_are_read() {
        check("GET /a HTTP/1.1\r\n\r\n", "Get /a");
        check("HEAD /a?b=c HTTP/1.1\r\nhost: x\r\n\r\n", "Head /a?b=c");
        check("PUT /a HTTP/1.1\r\n\r\n", "Put /a");
        check("BREW /a HTTP/1.1\r\n\r\n", "Other /a");
        check("GET /a HTTP/1.0\r\n\r\n", "Get /a close");
        check(
            "GET /a HTTP/1.1\r\nCONNECTION: keep-alive, Close\r\n\r\n",
            "Get /a close",
        );
        check("\r\nGET /a HTTP/1.1\r\n\r\n", "Get /a");
    }

    #[test]
    fn what_has_not_arrived_is_waited_for() {
        let whole = "PUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        let head = whole.len() - 3;
        for end in 0..whole.len() {
            let expected = if end < head {
                "partial"
            } else {
                "bodyless false"
            };
            assert_eq!(answer(&whole.as_bytes()[..end]), expected);
        }
        check(whole, "Put /a");
        check(
            "PUT /a HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n",
            "bodyless true",
        );
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        check("GET /a HTTP/1.1\n\n", "400");
        check("GET /a HTTP/1.1\r\nA: b\n\r\n", "400");
        check("GET /a HTTP/1.1\r\nA: b\r\n c\r\n\r\n", "400");
        check("GET /a HTTP/1.1\r\nA : b\r\n\r\n", "400");
        check("GET /a HTTP/1.1\r\nA: b\0c\r\n\r\n", "400");
        check("GET /a\0 HTTP/1.1\r\n\r\n", "400");
        check("GET http://a/b HTTP/1.1\r\n\r\n", "400");
        check("CONNECT a:80 HTTP/1.1\r\n\r\n", "400");
        check("OPTIONS * HTTP/1.1\r\n\r\n", "400");
        check("GET /a HTTP/2.0\r\n\r\n", "505");
        check(
            "PUT /a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            "400",
        );
        check("PUT /a HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\na", "400");
        check("PUT /a HTTP/1.1\r\nContent-Length: +1\r\n\r\na", "400");
        check("PUT /a HTTP/1.1\r\nContent-Length: 0x1\r\n\r\na", "400");
        check("PUT /a HTTP/1.1\r\nContent-Length:\r\n\r\n", "400");
        check(
            "PUT /a HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        );
        check(
            "PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "501",
        );
        check(
            "GET /a HTTP/1.1\r\nX-aws-ec2-metadata-token: a\r\nx-aws-ec2-metadata-token: a\r\n\r\n",
            "400",
        );
        check("GET /a HTTP/1.1\r\nExpect: tea\r\n\r\n", "417");
    }

    #[test]
    fn a_bare_line_feed_is_found_wherever_it_is() {
        let head = format!("GET /a HTTP/1.1\r\n{}\r\n", "Name: value\r\n".repeat(40));
        assert!(!has_bare_line_feed(head.as_bytes()));
        for (place, _) in head.match_indices('\r') {
            let mut bare = head.clone();
            bare.remove(place);
            assert!(has_bare_line_feed(bare.as_bytes()), "at {place}");
        }
        for count in [1, 112, 127, 128, 255, 256, 257, 512, 8192] {
            assert!(has_bare_line_feed("\n".repeat(count).as_bytes()), "{count}");
        }
    }

    #[test]
    fn nothing_is_unbounded() {
        check("PUT /a HTTP/1.1\r\nContent-Length: 8193\r\n\r\n", "413");
        check(
            "PUT /a HTTP/1.1\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
            "413",
        );
        let headers = "A: b\r\n".repeat(HEADERS_MAX + 1);
        check(&format!("GET /a HTTP/1.1\r\n{headers}\r\n"), "431");
        check(
            &format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_BYTES_MAX)),
            "431",
        );
        check(&format!("GET /{}", "a".repeat(HEAD_BYTES_MAX)), "431");
    }
}
