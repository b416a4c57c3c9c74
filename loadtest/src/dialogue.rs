//! What SDKs say to the metadata service, request by request and connection by connection.
//!
//! The shapes were taken from released SDKs: which requests they make, which of them share a
//! connection, and how long they wait. A dialogue is blocking on purpose: one thread, one socket,
//! nothing between the clock and the system call.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::clock;

/// How long released SDKs wait for each answer (botocore, JavaScript v3, Go v1, Rust: 1 s).
pub(crate) const SDK_TIMEOUT: Duration = Duration::from_secs(1);

/// One released client's way of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// boto3, the AWS CLI, the SDKs for Go and Rust at their first call: token, list and credentials on one connection.
    Boto3,
    /// The SDK for JavaScript v3: the same three, each on a connection of its own.
    Js,
    /// Clients from before 2020: no token; list and credentials on one connection.
    V1,
}

impl Shape {
    /// Every shape.
    pub(crate) const ALL: [Self; 3] = [Self::Boto3, Self::Js, Self::V1];

    const fn token(self) -> bool {
        !matches!(self, Self::V1)
    }

    const fn one_connection(self) -> bool {
        !matches!(self, Self::Js)
    }
}

/// Why a dialogue did not end with the pod's own credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// No connection within the time-out.
    Connect,
    /// The connection was closed or reset before the answer was complete.
    Closed,
    /// No complete answer within the time-out.
    TimedOut,
    /// The answer was not HTTP, or its body not what the contract says.
    Garbled,
    /// Another status than 200.
    Status(u16),
    /// The list named another role than the pod's.
    WrongRole,
    /// The credentials were issued for another role than the pod's.
    WrongCredentials,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connect => f.write_str("connection refused"),
            Self::Closed => f.write_str("connection closed"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Garbled => f.write_str("garbled answer"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::WrongRole => f.write_str("wrong role"),
            Self::WrongCredentials => f.write_str("wrong credentials"),
        }
    }
}

/// What is made of the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// The token goes into the next request, the role into its path, the credentials are checked.
    Matter,
    /// Only that there was one: the null server's mean nothing. The requests have the same length
    /// as those to an agent.
    Ignored,
}

/// Who asks, whom, and for what.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    /// The agent's address.
    pub target: SocketAddr,
    /// The pod's address; `None` lets the kernel choose.
    pub source: Option<IpAddr>,
    /// How it asks.
    pub shape: Shape,
    /// What it makes of the answers.
    pub answers: Answers,
    /// How long it waits for each answer.
    pub timeout: Duration,
}

/// What a dialogue ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obtained {
    /// The role as the list names it.
    pub role: String,
    /// The key id of the credentials.
    pub access_key_id: String,
}

/// As long as an agent's token, and as a role of the simulated cluster.
const PLACEHOLDER_TOKEN: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const PLACEHOLDER_ROLE: &str = "role-0000";

const PREFIX: &str = "/latest/meta-data/iam/security-credentials/";

impl Asker {
    /// Asks once, from the token to the credentials. `took` is told how long each request took from
    /// the moment it was sent, its connection included.
    pub(crate) fn ask(&self, mut took: impl FnMut(Duration)) -> Result<Obtained, Failure> {
        let mut connection = None;
        let mut exchange = |head: &str| {
            let sent = clock::now();
            let mut open = match connection.take() {
                Some(open) => open,
                None => Connection::open(self)?,
            };
            let answer = open.exchange(head)?;
            took(clock::now().saturating_duration_since(sent));
            if self.shape.one_connection() && !answer.close {
                connection = Some(open);
            }
            Ok::<Answer, Failure>(answer)
        };
        let token = if self.shape.token() {
            let token = exchange(
                "PUT /latest/api/token HTTP/1.1\r\nhost: 169.254.169.254\r\n\
                 x-aws-ec2-metadata-token-ttl-seconds: 21600\r\ncontent-length: 0\r\n\r\n",
            )?;
            let token = token.ok()?;
            let token = if self.matter() {
                &token
            } else {
                PLACEHOLDER_TOKEN
            };
            format!("x-aws-ec2-metadata-token: {token}\r\n")
        } else {
            String::new()
        };
        let get = |path: &str| {
            format!("GET {PREFIX}{path} HTTP/1.1\r\nhost: 169.254.169.254\r\n{token}\r\n")
        };
        let mut role = exchange(&get(""))?.ok()?;
        if !self.matter() {
            PLACEHOLDER_ROLE.clone_into(&mut role);
        }
        let document = exchange(&get(&role))?.ok()?;
        let document: serde_json::Value =
            serde_json::from_str(&document).map_err(|_not_json| Failure::Garbled)?;
        let field = |name| document.get(name).and_then(serde_json::Value::as_str);
        match (field("Code"), field("AccessKeyId")) {
            (Some("Success"), Some(id)) => Ok(Obtained {
                role,
                access_key_id: id.to_owned(),
            }),
            _ => Err(Failure::Garbled),
        }
    }

    fn matter(&self) -> bool {
        self.answers == Answers::Matter
    }

    /// One GET without a token: the status alone.
    pub(crate) fn status(&self, path: &str) -> Result<u16, Failure> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: 169.254.169.254\r\n\r\n");
        Ok(Connection::open(self)?.exchange(&head)?.status)
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    body: String,
    close: bool,
}

impl Answer {
    fn ok(self) -> Result<String, Failure> {
        if self.status == 200 {
            Ok(self.body)
        } else {
            Err(Failure::Status(self.status))
        }
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    timeout: Duration,
}

/// No answer of the contract is longer; a longer one is garbled.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

impl Connection {
    fn open(asker: &Asker) -> Result<Self, Failure> {
        let connect = || -> io::Result<TcpStream> {
            let domain = Domain::for_address(asker.target);
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            if let Some(source) = asker.source {
                // Ports in TIME_WAIT may be taken again at once: one address makes many calls.
                socket.set_reuse_address(true)?;
                socket.bind(&SocketAddr::new(source, 0).into())?;
            }
            socket.set_tcp_nodelay(true)?;
            socket.connect_timeout(&asker.target.into(), asker.timeout)?;
            let stream = TcpStream::from(socket);
            stream.set_write_timeout(Some(asker.timeout))?;
            Ok(stream)
        };
        let stream = connect().map_err(|_reason| Failure::Connect)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(4096),
            timeout: asker.timeout,
        })
    }

    fn exchange(&mut self, head: &str) -> Result<Answer, Failure> {
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

    #[test]
    fn a_refused_connection_is_told_apart() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        drop(listener);
        let asker = Asker {
            target,
            source: None,
            shape: Shape::Boto3,
            answers: Answers::Matter,
            timeout: SDK_TIMEOUT,
        };
        assert_eq!(asker.ask(|_| {}), Err(Failure::Connect));
    }
}
