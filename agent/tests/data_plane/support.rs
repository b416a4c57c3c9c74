//! A data plane of its own for each test, pods on 127.x addresses, and clients that speak bytes.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "node.rs"]
mod node;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use kiam_agent::clock::Now;
use kiam_agent::data::{self, DataConfig, DriverChoice, Plane};
use kiam_agent::snapshot::store::Doors;
use kiam_agent::snapshot::{Publisher, Store};
use kiam_agent::tally::Tallies;
use kiam_wire::keys::VerificationKeys;
use kiam_wire::{CredentialId, Credentials, Delta, Full, Pod, PodState, Update};

pub(crate) use self::node::revision;

/// Nothing in a test may take longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

pub(crate) const BOTH: [DriverChoice; 2] = [DriverChoice::IoUring, DriverChoice::Epoll];

pub(crate) struct Agent {
    pub(crate) plane: Option<Plane>,
    pub(crate) store: Store,
    pub(crate) publisher: Publisher,
    pub(crate) tallies: Tallies,
    pub(crate) revision: u64,
}

pub(crate) fn config(driver: DriverChoice) -> DataConfig {
    DataConfig {
        audit_log: true,
        ..node::config(driver)
    }
}

impl Agent {
    /// Starts with an empty snapshot.
    pub(crate) fn start(config: DataConfig) -> Self {
        let now = Now::read();
        let publisher = Publisher::new(now);
        let tallies = Tallies::new(config.workers.get());
        let plane = data::start(config, &publisher, &tallies).expect("the data plane starts");
        Self {
            plane: Some(plane),
            store: Store::new(Doors::Both),
            publisher,
            tallies,
            revision: 0,
        }
    }

    /// Starts with `pods` and the credentials of everyone who refers to some.
    pub(crate) fn with(config: DataConfig, pods: Vec<Pod>) -> Self {
        let mut agent = Self::start(config);
        agent.full(pods, None);
        agent
    }

    pub(crate) fn full(&mut self, pods: Vec<Pod>, keys: Option<VerificationKeys>) {
        self.revision += 1;
        let credentials = pods
            .iter()
            .filter_map(|pod| match pod.state {
                PodState::Granted(id) => Some(credentials(id, 3600)),
                PodState::Pending(_) | PodState::Refused(_) | PodState::NoRole => None,
            })
            .collect();
        self.apply(Update::Full(Full {
            revision: revision(self.revision),
            pods,
            credentials,
            keys: keys.map(Arc::new),
        }));
    }

    pub(crate) fn delta(&mut self, pods: Vec<Pod>, credentials: Vec<Arc<Credentials>>) {
        let from = revision(self.revision);
        self.revision += 1;
        self.apply(Update::Delta(Delta {
            from,
            to: revision(self.revision),
            pods,
            removed_pods: vec![],
            credentials,
            keys: None,
        }));
    }

    pub(crate) fn apply(&mut self, update: Update) {
        let now = Now::read();
        self.store.apply(update, now).expect("no gap");
        self.publish();
    }

    pub(crate) fn publish(&mut self) {
        self.publisher.publish(self.store.snapshot(Now::read()));
        self.plane.as_ref().expect("running").ringer().ring();
    }

    pub(crate) fn door(&self) -> SocketAddr {
        self.plane.as_ref().expect("running").listening()[0]
    }

    pub(crate) fn container_door(&self) -> SocketAddr {
        self.plane.as_ref().expect("running").container_listening()[0]
    }

    /// What a metric says now.
    pub(crate) fn metric(&self, line_start: &str) -> Option<f64> {
        let mut registry = prometheus_client::registry::Registry::default();
        self.tallies
            .register(&mut registry, self.publisher.reader());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
        text.lines().find_map(|line| {
            line.strip_prefix(line_start)?
                .strip_prefix(' ')?
                .parse()
                .ok()
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(plane) = self.plane.take() {
            plane.drain(Duration::from_secs(2));
        }
    }
}

/// The address of the `n`-th pod.
pub(crate) fn ip(n: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 1, n).into()
}

pub(crate) fn id(n: u8) -> CredentialId {
    node::id(n.into())
}

pub(crate) fn pod(n: u8, state: PodState) -> Pod {
    node::pod(n.into(), ip(n), state)
}

pub(crate) fn granted(n: u8) -> Pod {
    pod(n, PodState::Granted(id(n)))
}

pub(crate) fn credentials(id: CredentialId, life_s: i64) -> Arc<Credentials> {
    let &[a, b, c, d, ..] = id.as_bytes();
    node::credentials(u32::from_be_bytes([a, b, c, d]), life_s)
}

/// A connection from a pod's address.
pub(crate) fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(to),
        socket2::Type::STREAM,
        None,
    )
    .expect("a socket");
    socket
        .bind(&SocketAddr::new(from, 0).into())
        .expect("binds");
    socket.connect(&to.into()).expect("connects");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("times out");
    stream.set_write_timeout(Some(PATIENCE)).expect("times out");
    stream.set_nodelay(true).expect("no delay");
    stream
}

/// One response, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (have, value) = line.split_once(": ")?;
            have.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Reads one response; `None` when the connection ended before one began.
pub(crate) fn read_answer(stream: &mut TcpStream, head_only: bool) -> Option<Answer> {
    let mut received = Vec::new();
    let mut byte = [0];
    while !received.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => received.push(byte[0]),
            Ok(_) => {
                assert!(
                    received.is_empty(),
                    "cut off: {}",
                    String::from_utf8_lossy(&received)
                );
                return None;
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("no answer: {error}"),
        }
    }
    let head = String::from_utf8(received).expect("text");
    let mut answer = Answer {
        status: head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .expect("a status"),
        head,
        body: String::new(),
    };
    if !head_only && answer.status != 100 {
        let length = answer
            .header("content-length")
            .map_or(0, |l| l.parse().expect("a number"));
        let mut body = vec![0; length];
        stream.read_exact(&mut body).expect("the whole body");
        answer.body = String::from_utf8(body).expect("text");
    }
    Some(answer)
}

/// Sends `request` on a connection of its own and reads one answer.
pub(crate) fn ask(from: IpAddr, to: SocketAddr, request: &str) -> Answer {
    let mut stream = connect(from, to);
    stream.write_all(request.as_bytes()).expect("sends");
    read_answer(&mut stream, request.starts_with("HEAD")).expect("an answer")
}

pub(crate) fn get(from: IpAddr, to: SocketAddr, path: &str) -> Answer {
    ask(from, to, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

/// A session token for `from`.
pub(crate) fn token(from: IpAddr, to: SocketAddr, ttl: &str) -> String {
    let answer = ask(
        from,
        to,
        &format!(
            "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: {ttl}\r\n\r\n"
        ),
    );
    assert_eq!(answer.status, 200);
    answer.body
}

/// Polls until `done`, for at most [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = kiam_agent::clock::monotonic();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

pub(crate) const LIST: &str = "/latest/meta-data/iam/security-credentials/";
