//! One connection: a request goes out, an answer comes back whole or not at all.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Asker, Failure};
use crate::clock;

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: String,
    /// Whether it is the last on its connection.
    pub close: bool,
}

impl Answer {
    /// The body of a 200.
    pub(crate) fn ok(self) -> Result<String, Failure> {
        if self.status == 200 {
            Ok(self.body)
        } else {
            Err(Failure::Status(self.status))
        }
    }
}

/// An open connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    timeout: Duration,
}

/// No answer of the contract is longer; a longer one is garbled.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

impl Connection {
    /// Connects as the asker's pod. `timeout` bounds this and each answer.
    pub(crate) fn open(asker: &Asker, timeout: Duration) -> Result<Self, Failure> {
        let socket = socket(asker, timeout).map_err(|_reason| Failure::Local)?;
        let connected = socket.connect_timeout(&asker.target.into(), timeout);
        connected.map_err(|reason| unconnected(&reason))?;
        Ok(Self {
            stream: TcpStream::from(socket),
            buffer: Vec::with_capacity(4096),
            timeout,
        })
    }

    /// One request, one answer.
    pub(crate) fn exchange(&mut self, head: &str) -> Result<Answer, Failure> {
        let deadline = clock::now() + self.timeout;
        self.stream
            .write_all(head.as_bytes())
            .map_err(|_reason| Failure::Closed)?;
        self.buffer.clear();
        loop {
            if let Some(answer) = parse(&self.buffer)? {
                return Ok(answer);
            }
            if self.buffer.len() > ANSWER_BYTES_MAX {
                return Err(Failure::Garbled);
            }
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                return Err(Failure::TimedOut);
            }
            self.stream
                .set_read_timeout(Some(left))
                .map_err(|_reason| Failure::Closed)?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Failure::Closed),
                Ok(read) => self
                    .buffer
                    .extend_from_slice(chunk.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What a read time-out is called depends on the system.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Failure::TimedOut);
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(Failure::TimedOut);
                }
                Err(_reset) => return Err(Failure::Closed),
            }
        }
    }
}

/// A socket that is the asker's pod, and not connected yet.
fn socket(asker: &Asker, timeout: Duration) -> io::Result<Socket> {
    let domain = Domain::for_address(asker.target);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if let Some(source) = asker.source {
        // Ports in TIME_WAIT may be taken again at once: one address makes many calls.
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_write_timeout(Some(timeout))?;
    Ok(socket)
}

/// What a failed connect means.
fn unconnected(reason: &io::Error) -> Failure {
    let meant = MEANINGS.iter().find(|(kind, _)| *kind == reason.kind());
    meant.map_or(Failure::Unreachable, |(_, failure)| *failure)
}

/// What connecting ends with, save all the ways in which there is no way.
const MEANINGS: [(io::ErrorKind, Failure); 5] = [
    (io::ErrorKind::ConnectionRefused, Failure::Refused),
    (io::ErrorKind::ConnectionReset, Failure::Closed),
    (io::ErrorKind::TimedOut, Failure::ConnectTimedOut),
    // The pod's address has no port left.
    (io::ErrorKind::AddrNotAvailable, Failure::Local),
    (io::ErrorKind::AddrInUse, Failure::Local),
];

/// One whole answer at the front of `bytes`, or `None` while it is not all there.
fn parse(bytes: &[u8]) -> Result<Option<Answer>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let status = response
        .parse(bytes)
        .map_err(|_not_http| Failure::Garbled)?;
    let httparse::Status::Complete(head) = status else {
        return Ok(None);
    };
    let value = |name: &str| {
        let header = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| str::from_utf8(header.value).ok())
    };
    let length: usize = value("content-length")
        .unwrap_or("0")
        .parse()
        .map_err(|_number| Failure::Garbled)?;
    let Some(body) = bytes.get(head..head.saturating_add(length)) else {
        return Ok(None);
    };
    Ok(Some(Answer {
        status: response.code.unwrap_or_default(),
        body: str::from_utf8(body)
            .map_err(|_text| Failure::Garbled)?
            .to_owned(),
        close: value("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_connect_says_whose_fault_it_is() {
        let of = |kind: io::ErrorKind| unconnected(&kind.into());
        assert_eq!(of(io::ErrorKind::ConnectionRefused), Failure::Refused);
        assert_eq!(of(io::ErrorKind::TimedOut), Failure::ConnectTimedOut);
        assert_eq!(of(io::ErrorKind::AddrNotAvailable), Failure::Local);
        assert_eq!(of(io::ErrorKind::NetworkUnreachable), Failure::Unreachable);
    }

    #[track_caller]
    fn check(bytes: &str, expected: Result<Option<(u16, &str, bool)>, Failure>) {
        let got = parse(bytes.as_bytes());
        let got = got.map(|answer| answer.map(|a| (a.status, a.body, a.close)));
        assert_eq!(
            got,
            expected.map(|a| a.map(|(s, b, c)| (s, b.to_owned(), c)))
        );
    }

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        check(
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            Ok(Some((200, "ok", false))),
        );
        check("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok", Ok(None));
        check("HTTP/1.1 200 OK\r\ncontent-le", Ok(None));
        check("HTTP/1.1 404 Not Found\r\n\r\n", Ok(Some((404, "", false))));
        check(
            "HTTP/1.1 503 x\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n",
            Ok(Some((503, "", true))),
        );
        check("SSH-2.0-OpenSSH\r\n", Err(Failure::Garbled));
        check(
            "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
            Err(Failure::Garbled),
        );
    }
}
