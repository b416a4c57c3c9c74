//! Asks a metadata address who answers there, as a pod would.
//!
//! Three ways to stand where a pod stands, or near it:
//! - in a pod: `kiam-agent intercept probe` needs no privilege, and goes through whatever this
//!   cluster's network really does. It is the honest one;
//! - on the node, without any privilege: [`telltale`] tells whether our rules are there at all, and
//!   lead to the agent. It says nothing about the interfaces that pods' requests arrive on;
//! - on the node, with `NET_ADMIN` and `SYS_ADMIN`: [`from_namespace`] makes a network namespace
//!   with an interface whose name the rules match. It needs no pod, so it works on an empty node;
//!   a CNI that drops what comes from interfaces it did not make leaves it without an answer
//!   ([`Outcome::Silent`]), which is not held against anyone.

mod namespace;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::witness::Witness;
use crate::intercept::rules::{METADATA_PORT, Rules, TELLTALE_PORT};
pub use namespace::{ProbeError, from_namespace};

/// For connecting and for each read: the agent is on this node.
const STEP_TIME_MAX: Duration = Duration::from_millis(1_500);
const RESPONSE_BYTES_MAX: usize = 4_096;

/// A reset, or what an ICMP error becomes.
const REFUSALS: [io::ErrorKind; 5] = [
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::HostUnreachable,
    io::ErrorKind::NetworkUnreachable,
    io::ErrorKind::PermissionDenied,
];

/// Who answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// An agent.
    Agent,
    /// The node's own metadata service: pods can have the node's credentials.
    Leak,
    /// The connection was refused: the rules hold and no agent listens.
    Refused,
    /// Nobody.
    Silent,
    /// Something that is neither.
    Stranger,
}

impl Outcome {
    /// For people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Agent => "the agent answers",
            Self::Leak => "LEAK: the node's own metadata service answers",
            Self::Refused => {
                "refused: nothing answers, and the node's credentials are out of reach"
            }
            Self::Silent => "silence: no answer and no refusal",
            Self::Stranger => {
                "something answers that is neither the agent nor the metadata service"
            }
        }
    }
}

/// Connects to port 80 of `metadata` and asks for kiam's `/ping`. Blocks for a few seconds at most.
pub fn ask(metadata: IpAddr) -> Outcome {
    let address = SocketAddr::new(metadata, METADATA_PORT);
    outcome(TcpStream::connect_timeout(&address, STEP_TIME_MAX).and_then(exchange))
}

/// Whether the rules that the node itself meets are in place and lead to an agent: the worse of both
/// families' outcomes. `None` when neither can be tried, because the node has no route there. `witness`
/// knows when one arrived that got no answer because there are too many connections. Blocks for a few
/// seconds at most.
pub fn telltale(rules: &Rules, witness: &Witness) -> Option<Outcome> {
    let outcomes = telltales(rules, witness);
    let bad = outcomes.iter().find(|outcome| **outcome != Outcome::Agent);
    bad.or(outcomes.first()).copied()
}

/// The same, one for each family that can be tried. They go where the rules in place lead, whoever's
/// those are.
pub fn telltales(rules: &Rules, witness: &Witness) -> Vec<Outcome> {
    rules
        .redirects()
        .into_iter()
        .filter(|redirect| redirect.host.is_some())
        .filter_map(
            |redirect| match connect(redirect.metadata, witness).and_then(exchange) {
                // Said by this node's own routing, before any rule was met.
                Err(error) if error.kind() == io::ErrorKind::NetworkUnreachable => None,
                _no_answer if witness.was_turned_away() => Some(Outcome::Agent),
                exchanged => Some(outcome(exchanged)),
            },
        )
        .collect()
}

fn outcome(exchanged: io::Result<Vec<u8>>) -> Outcome {
    match exchanged {
        Ok(response) => classify(&response),
        Err(error) if REFUSALS.contains(&error.kind()) => Outcome::Refused,
        Err(_silence) => Outcome::Silent,
    }
}

/// From a port that `witness` knows before the connection can arrive.
fn connect(metadata: IpAddr, witness: &Witness) -> io::Result<TcpStream> {
    let address = SocketAddr::new(metadata, TELLTALE_PORT);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)?;
    let anywhere: IpAddr = match metadata {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    socket.bind(&SocketAddr::new(anywhere, 0).into())?;
    let port = socket
        .local_addr()?
        .as_socket()
        .map_or(0, |here| here.port());
    witness.expect(port);
    socket.connect_timeout(&address.into(), STEP_TIME_MAX)?;
    Ok(socket.into())
}

fn exchange(mut stream: TcpStream) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(STEP_TIME_MAX))?;
    stream.set_write_timeout(Some(STEP_TIME_MAX))?;
    stream
        .write_all(b"GET /ping HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n\r\n")?;
    let mut response = Vec::new();
    let limit = u64::try_from(RESPONSE_BYTES_MAX).unwrap_or(u64::MAX);
    stream.take(limit).read_to_end(&mut response)?;
    Ok(response)
}

/// The agent answers `pong`; the real service has no such path and says so in its own name, as the
/// agent does elsewhere, so the body decides.
fn classify(response: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(response);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1);
    match status {
        Some("200") if body.trim() == "pong" => Outcome::Agent,
        Some("404" | "401" | "403") => Outcome::Leak,
        _ => Outcome::Stranger,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(response: &str, expected: Outcome) {
        assert_eq!(classify(response.as_bytes()), expected);
    }

    #[test]
    fn who_answers_is_told_by_the_answer() {
        check("HTTP/1.1 200 OK\r\nServer: x\r\n\r\npong", Outcome::Agent);
        check(
            "HTTP/1.1 404 Not Found\r\nServer: EC2ws\r\n\r\n<html>",
            Outcome::Leak,
        );
        check("HTTP/1.1 401 Unauthorized\r\n\r\n", Outcome::Leak);
        check("HTTP/1.1 200 OK\r\n\r\nhello", Outcome::Stranger);
        check("", Outcome::Stranger);
        check("SSH-2.0", Outcome::Stranger);
    }
}
