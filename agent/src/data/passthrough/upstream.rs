//! The conversation with the real metadata service: one request, one fresh connection.

use std::io;
use std::net::SocketAddr;

use super::super::seam::Stream;
use super::super::watch::{Overdue, Watch};
use super::{Fetched, rewritten};
use crate::response::{DATE_BYTES, Status};

/// Seconds the agent's own session lives.
pub(super) const SESSION_S: u64 = 21_600;
/// Bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Header lines of an answer.
const HEADERS_MAX: usize = 64;
/// Bytes of a session token; real ones have 56.
const TOKEN_BYTES_MAX: usize = 1024;
/// Bytes moved at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// What clients get to see of an answer's headers; everything else is between us and the service.
const KEPT: [&str; 4] = ["Content-Type", "Last-Modified", "ETag", "Accept-Ranges"];

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) struct Get<'a> {
    pub(super) path: &'a str,
    pub(super) token: Option<&'a [u8]>,
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    /// `None`: the body ends with the connection.
    pub(super) length: Option<u64>,
    pub(super) kept: Vec<(&'static str, Vec<u8>)>,
    /// What of the body came with the head.
    rest: Vec<u8>,
}

/// Why there is no answer to pass on.
#[derive(Debug)]
pub(super) enum Problem {
    /// It took too long.
    Slow,
    /// It did not speak to us, or not sensibly.
    Bad,
}

impl Problem {
    pub(super) const fn status(&self) -> Status {
        match self {
            Self::Slow => Status::GatewayTimeout,
            Self::Bad => Status::BadGateway,
        }
    }
}

impl From<Overdue> for Problem {
    fn from(_: Overdue) -> Self {
        Self::Slow
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        tracing::debug!(%error, "the real metadata service cannot be spoken to");
        Self::Bad
    }
}

/// Asks; returns the connection, from which the body is yet to be received, and the head.
pub(super) async fn get(
    watch: &Watch,
    endpoint: SocketAddr,
    get: Get<'_>,
) -> Result<(Stream, Head), Problem> {
    let mut request = Vec::with_capacity(512);
    request.extend_from_slice(b"GET ");
    request.extend_from_slice(get.path.as_bytes());
    request.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(token) = get.token {
        request.extend_from_slice(b"X-aws-ec2-metadata-token: ");
        request.extend_from_slice(token);
        request.extend_from_slice(b"\r\n");
    }
    exchange(watch, endpoint, request).await
}

/// Asks for a session; `None` when the service has no such thing.
pub(super) async fn session(
    watch: &Watch,
    endpoint: SocketAddr,
) -> Result<Option<Vec<u8>>, Problem> {
    let request = format!(
        "PUT /latest/api/token HTTP/1.1\r\nContent-Length: 0\r\n\
         X-aws-ec2-metadata-token-ttl-seconds: {SESSION_S}\r\n"
    );
    let (mut stream, head) = exchange(watch, endpoint, request.into_bytes()).await?;
    match head.status {
        200 => {}
        403..=405 => return Ok(None),
        _ => return Err(Problem::Bad),
    }
    let length = head.length.and_then(|length| usize::try_from(length).ok());
    let length = length
        .filter(|length| *length <= TOKEN_BYTES_MAX)
        .ok_or(Problem::Bad)?;
    let mut token = head.rest;
    while token.len() < length {
        token.reserve(length);
        let (result, buffer) = watch.within(stream.receive(token)).await?;
        token = buffer;
        if result? == 0 {
            return Err(Problem::Bad);
        }
    }
    token.truncate(length);
    let sensible = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    sensible.then_some(Some(token)).ok_or(Problem::Bad)
}

/// Sends a request whose last lines are ours, and receives the head of the answer.
async fn exchange(
    watch: &Watch,
    endpoint: SocketAddr,
    mut request: Vec<u8>,
) -> Result<(Stream, Head), Problem> {
    request.extend_from_slice(
        b"Host: 169.254.169.254\r\nUser-Agent: kiam-agent\r\nAccept: */*\r\n\
          Connection: close\r\n\r\n",
    );
    let mut stream = watch.within(Stream::connect(endpoint)).await??;
    send_all(watch, &mut stream, request).await?;
    let mut received = Vec::with_capacity(4096);
    loop {
        if received.len() >= HEAD_BYTES_MAX {
            return Err(Problem::Bad);
        }
        received.reserve(1024);
        let (result, buffer) = watch.within(stream.receive(received)).await?;
        received = buffer;
        if result? == 0 {
            return Err(Problem::Bad);
        }
        if let Some(head) = read_head(&received)? {
            return Ok((stream, head));
        }
    }
}

async fn send_all(watch: &Watch, stream: &mut Stream, mut bytes: Vec<u8>) -> Result<(), Problem> {
    let mut sent = 0;
    while sent < bytes.len() {
        let (result, buffer) = watch.within(stream.send(bytes, sent)).await?;
        bytes = buffer;
        match result? {
            0 => return Err(Problem::Bad),
            more => sent += more,
        }
    }
    Ok(())
}

fn read_head(received: &[u8]) -> Result<Option<Head>, Problem> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let bytes = match response.parse(received) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_malformed) => return Err(Problem::Bad),
    };
    let mut head = Head {
        status: response.code.unwrap_or_default(),
        length: None,
        kept: Vec::new(),
        rest: received.get(bytes..).unwrap_or_default().to_vec(),
    };
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            // The real service never does; undoing it is not worth the code.
            return Err(Problem::Bad);
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).map_err(|_not_text| Problem::Bad)?;
            let length = text.parse().map_err(|_not_a_number| Problem::Bad)?;
            if head
                .length
                .replace(length)
                .is_some_and(|before| before != length)
            {
                return Err(Problem::Bad);
            }
        }
        let kept = KEPT
            .iter()
            .find(|name| header.name.eq_ignore_ascii_case(name));
        if let Some(name) = kept {
            head.kept.push((name, header.value.to_vec()));
        }
    }
    // An interim answer is none; nothing was asked that could need one.
    if head.status < 200 {
        return Err(Problem::Bad);
    }
    Ok(Some(head))
}

/// Passing an answer on.
pub(super) struct Relay<'a> {
    pub(super) watch: &'a Watch,
    pub(super) client: &'a mut Stream,
    pub(super) date: &'a [u8; DATE_BYTES],
    pub(super) close: bool,
    pub(super) head_only: bool,
    pub(super) body_bytes_max: u64,
}

impl Relay<'_> {
    /// Passes `head` and what `upstream` has yet to say on to the client, as it comes.
    pub(super) async fn pass(mut self, upstream: &mut Stream, head: Head) -> Fetched {
        let bodyless = matches!(head.status, 204 | 304);
        let close = self.close || (head.length.is_none() && !bodyless);
        let mut out = rewritten(&head, self.date, close);
        let passed = Fetched::Passed {
            status: head.status,
            close,
        };
        if self.head_only || bodyless {
            return self.send(out).await.map_or(Fetched::Broken, |()| passed);
        }
        let mut left = head.length.unwrap_or(self.body_bytes_max);
        let mut chunk = head.rest;
        loop {
            let bytes = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            if bytes > left {
                chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            }
            left = left.saturating_sub(bytes);
            out.append(&mut chunk);
            if self.send(out).await.is_err() {
                return Fetched::Broken;
            }
            if left == 0 {
                // Without a length this is the limit and not the end.
                return if head.length.is_some() {
                    passed
                } else {
                    Fetched::Broken
                };
            }
            chunk.reserve(CHUNK_BYTES);
            match self.watch.within(upstream.receive(chunk)).await {
                Ok((Ok(0), _)) if head.length.is_none() => return passed,
                Ok((Ok(bytes), buffer)) if bytes > 0 => chunk = buffer,
                Ok(_) | Err(Overdue) => return Fetched::Broken,
            }
            out = Vec::with_capacity(chunk.len());
        }
    }

    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), Problem> {
        send_all(self.watch, self.client, bytes).await
    }
}
