//! What SDKs say to the metadata service, request by request and connection by connection.
//!
//! A dialogue is blocking on purpose: one thread, one socket, nothing between the clock and the
//! system call.

mod connection;
mod mix;
mod script;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use connection::Connection;
pub(crate) use mix::{Mix, Weighted, help};
pub(crate) use script::Shape;
use script::{Script, Sharing, Token};

use crate::clock;

/// Why a dialogue did not end with the pod's own credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Failure {
    /// This machine had no socket, port or address left to ask from: nobody was asked.
    Local,
    /// Nobody listens there.
    Refused,
    /// No connection within the time-out.
    ConnectTimedOut,
    /// There is no way to it.
    Unreachable,
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

impl Failure {
    /// Whether the pod was given what is another's: that is never explained.
    pub const fn is_wrong(self) -> bool {
        matches!(self, Self::WrongRole | Self::WrongCredentials)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local => f.write_str("no socket to ask from"),
            Self::Refused => f.write_str("connection refused"),
            Self::ConnectTimedOut => f.write_str("connecting timed out"),
            Self::Unreachable => f.write_str("unreachable"),
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

/// How long a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as the client that it imitates.
    Sdk,
    /// This long: a busy machine does not look like a broken program.
    For(Duration),
}

impl Patience {
    fn with(self, script: &Script) -> Duration {
        match self {
            Self::Sdk => script.timeout,
            Self::For(time) => time,
        }
    }
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
    pub patience: Patience,
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

/// Tokens that clients keep from one dialogue to the next, by pod.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<Holder, Held>>);

/// A client in a pod.
type Holder = (Option<IpAddr>, Shape);

#[derive(Debug)]
struct Held {
    token: String,
    until: Instant,
}

/// Clients ask for a new token this long before the old one ends.
const TOKEN_MARGIN: Duration = Duration::from_secs(20);

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, HashMap<Holder, Held>> {
        // A panicking thread leaves the map whole: each change is one call on it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, holder: Holder) -> Option<String> {
        let tokens = self.lock();
        let held = tokens.get(&holder).filter(|held| clock::now() < held.until);
        held.map(|held| held.token.clone())
    }

    fn put(&self, holder: Holder, token: &str, ttl: Duration) {
        let held = Held {
            token: token.to_owned(),
            until: clock::now() + ttl.saturating_sub(TOKEN_MARGIN),
        };
        self.lock().insert(holder, held);
    }

    fn forget(&self, holder: Holder) {
        self.lock().remove(&holder);
    }
}

impl Asker {
    /// Asks once, from the token to the credentials, as a client that has just started. `took` is told
    /// how long each request took from the moment it was sent, its connection included.
    pub(crate) fn ask(&self, took: impl FnMut(Duration)) -> Result<Obtained, Failure> {
        self.ask_again(&Tokens::default(), took)
    }

    /// Asks once more: as [`ask`](Self::ask), with the tokens that earlier dialogues left. A kept token
    /// that is refused is a failure, because tokens outlive whatever happens to an agent; it is
    /// forgotten, so that it is one failure and not one for each later dialogue.
    pub(crate) fn ask_again(
        &self,
        tokens: &Tokens,
        took: impl FnMut(Duration),
    ) -> Result<Obtained, Failure> {
        let obtained = self.converse(tokens, took);
        if obtained == Err(Failure::Status(401)) {
            tokens.forget((self.source, self.shape));
        }
        obtained
    }

    fn converse(
        &self,
        tokens: &Tokens,
        mut took: impl FnMut(Duration),
    ) -> Result<Obtained, Failure> {
        let script = self.shape.script();
        let close = if script.sharing == Sharing::NothingAndClose {
            "connection: close\r\n"
        } else {
            ""
        };
        let common = format!("host: 169.254.169.254\r\n{close}{}", script.headers);
        let mut open = None;
        let mut exchange = |line: &str, headers: &str| {
            let head = format!("{line} HTTP/1.1\r\n{common}{headers}\r\n");
            let sent = clock::now();
            let mut connection = match open.take() {
                Some(connection) => connection,
                None => Connection::open(self, self.patience.with(&script))?,
            };
            let answer = connection.exchange(&head)?;
            took(clock::now().saturating_duration_since(sent));
            if script.sharing == Sharing::All && !answer.close {
                open = Some(connection);
            }
            Ok::<_, Failure>(answer)
        };
        let token = self.token(tokens, &mut exchange)?;
        let mut role = exchange(&format!("GET {}", script.list), &token)?.ok()?;
        if !self.matter() {
            PLACEHOLDER_ROLE.clone_into(&mut role);
        }
        let line = format!("GET {}", script.document(&role));
        let mut document = String::new();
        for _ in 0..script.documents_asked {
            document = exchange(&line, &token)?.ok()?;
        }
        if let Some(aside) = script.aside {
            exchange(&format!("GET {aside}"), &token)?;
        }
        obtained(role, &document)
    }

    /// The header that carries the token, or nothing.
    fn token(
        &self,
        tokens: &Tokens,
        exchange: &mut impl FnMut(&str, &str) -> Result<connection::Answer, Failure>,
    ) -> Result<String, Failure> {
        let script = self.shape.script();
        let (kept, ttl_s) = match script.token {
            Token::Without => return Ok(String::new()),
            Token::Fresh { ttl_s } => (false, ttl_s),
            Token::Kept { ttl_s } => (true, ttl_s),
        };
        let holder = (self.source, self.shape);
        let held = if kept { tokens.get(holder) } else { None };
        let token = if let Some(token) = held {
            token
        } else {
            let length = if script.says_length {
                "content-length: 0\r\n"
            } else {
                ""
            };
            let headers = format!("x-aws-ec2-metadata-token-ttl-seconds: {ttl_s}\r\n{length}");
            let token = exchange("PUT /latest/api/token", &headers)?.ok()?;
            let token = if self.matter() {
                token
            } else {
                PLACEHOLDER_TOKEN.to_owned()
            };
            if kept {
                tokens.put(holder, &token, Duration::from_secs(ttl_s.into()));
            }
            token
        };
        Ok(format!("x-aws-ec2-metadata-token: {token}\r\n"))
    }

    fn matter(&self) -> bool {
        self.answers == Answers::Matter
    }

    /// One GET without a token: the status alone.
    pub(crate) fn status(&self, path: &str) -> Result<u16, Failure> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: 169.254.169.254\r\n\r\n");
        Ok(
            Connection::open(self, self.patience.with(&self.shape.script()))?
                .exchange(&head)?
                .status,
        )
    }
}

/// What a credentials document says.
fn obtained(role: String, document: &str) -> Result<Obtained, Failure> {
    let document: serde_json::Value =
        serde_json::from_str(document).map_err(|_not_json| Failure::Garbled)?;
    let field = |name| document.get(name).and_then(serde_json::Value::as_str);
    match (field("Code"), field("AccessKeyId")) {
        (Some("Success"), Some(id)) => Ok(Obtained {
            role,
            access_key_id: id.to_owned(),
        }),
        _ => Err(Failure::Garbled),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use super::*;

    const DOCUMENT: &str = r#"{"Code":"Success","AccessKeyId":"ASIA"}"#;

    fn asker(target: SocketAddr, shape: Shape) -> Asker {
        Asker {
            target,
            source: None,
            shape,
            answers: Answers::Matter,
            patience: Patience::Sdk,
        }
    }

    /// A metadata service that knows the role `a/b` and writes down what it is asked.
    fn service() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&asked);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let record = Arc::clone(&record);
                std::thread::spawn(move || serve(&mut stream.unwrap(), number + 1, &record));
            }
        });
        (target, asked)
    }

    fn serve(stream: &mut TcpStream, number: usize, record: &Mutex<Vec<String>>) {
        let mut buffer = [0; 4096];
        while let Ok(read) = stream.read(&mut buffer) {
            if read == 0 {
                return;
            }
            let head = String::from_utf8_lossy(&buffer[..read]).into_owned();
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let short = path
                .replace("/latest/meta-data/iam/security-credentials", "C")
                .replace("/latest/meta-data/placement/availability-zone", "zone")
                .replace("/latest/api/token", "token");
            let with = if head.contains("x-aws-ec2-metadata-token: T") {
                "+T"
            } else {
                ""
            };
            record
                .lock()
                .unwrap()
                .push(format!("{number}{short}{with}"));
            let body = match short.as_str() {
                "token" => "T",
                "zone" => "",
                "C" | "C/" | "C-extended/" => "a/b",
                _ => DOCUMENT,
            };
            let status = if short == "zone" { 404 } else { 200 };
            let answer = format!(
                "HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).unwrap();
        }
    }

    /// Two dialogues of a client; each request is the number of its connection and its path, `C` being
    /// the security-credentials, with `+T` when it carries the token.
    #[track_caller]
    fn check(shape: Shape, expected: &str) {
        let (target, asked) = service();
        let tokens = Tokens::default();
        for _ in 0..2 {
            let obtained = asker(target, shape).ask_again(&tokens, |_| {}).unwrap();
            assert_eq!(obtained.role, "a/b");
        }
        assert_eq!(asked.lock().unwrap().join(" "), expected, "{shape:?}");
    }

    #[test]
    fn clients_with_fresh_tokens() {
        let one = "1token 1C/+T 1C/a/b+T 2token 2C/+T 2C/a/b+T";
        for shape in [
            Shape::Boto3,
            Shape::JavaV2,
            Shape::ObjectStore,
            Shape::MinioPy,
        ] {
            check(shape, one);
        }
        let each = "1token 2C/+T 3C/a/b+T 4token 5C/+T 6C/a/b+T";
        check(Shape::Js, each);
        check(Shape::JsV2, each);
        check(
            Shape::MinioJs,
            "1token 2C/+T 3C//a%2Fb+T 4token 5C/+T 6C//a%2Fb+T",
        );
        check(Shape::Dotnet, "1token 1C+T 1C/a/b+T 2token 2C+T 2C/a/b+T");
        check(
            Shape::Cpp,
            "1token 1C+T 1C/a/b+T 1zone+T 2token 2C+T 2C/a/b+T 2zone+T",
        );
        check(
            Shape::Php,
            "1token 1C-extended/+T 1C-extended/a/b+T 2token 2C-extended/+T 2C-extended/a/b+T",
        );
    }

    #[test]
    fn clients_that_keep_their_token_or_have_none() {
        let kept = "1token 1C/+T 1C/a/b+T 2C/+T 2C/a/b+T";
        for shape in [Shape::GoV1, Shape::GoV2, Shape::Rust, Shape::Awscrt] {
            check(shape, kept);
        }
        check(
            Shape::Ruby,
            "1token 1C-extended/+T 1C-extended/a/b+T 2C-extended/+T 2C-extended/a/b+T",
        );
        check(Shape::V1, "1C/ 1C/a/b 2C/ 2C/a/b");
        check(Shape::GoogleAuth, "1C 1C/a/b 1zone 2C 2C/a/b 2zone");
    }

    #[test]
    fn a_kept_connection_carries_many() {
        let (target, asked) = service();
        let mut requests = 0;
        asker(target, Shape::KeepAlive)
            .ask(|_| requests += 1)
            .unwrap();
        assert_eq!(requests, 12);
        assert!(asked.lock().unwrap().iter().all(|one| one.starts_with('1')));
    }

    #[test]
    fn a_refused_connection_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        drop(listener);
        let refused = asker(target, Shape::Boto3).ask(|_| {});
        assert_eq!(refused, Err(Failure::Refused));
    }

    #[test]
    fn what_this_machine_lacks_is_nobody_elses_failure() {
        let (target, asked) = service();
        let elsewhere = Asker {
            // An address for documentation: no machine has it.
            source: Some([192, 0, 2, 1].into()),
            ..asker(target, Shape::Boto3)
        };
        assert_eq!(elsewhere.ask(|_| {}), Err(Failure::Local));
        assert!(asked.lock().unwrap().is_empty());
    }
}
