//! One raw HTTP exchange: a test says exactly what goes out, and sees exactly what came back.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// The rest.
    pub body: String,
}

/// Connects from `from`, sends `request` and reads until the other side closes.
pub fn exchange(to: SocketAddr, from: Option<IpAddr>, request: &[u8]) -> io::Result<Reply> {
    let mut stream = connect(to, from)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let garbled = || io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(garbled)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok(Reply {
        status: status.ok_or_else(garbled)?,
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}

/// One GET without more headers than it needs.
pub fn get(to: SocketAddr, from: Option<IpAddr>, path: &str) -> io::Result<Reply> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    exchange(to, from, request.as_bytes())
}

/// A connection from `from`, with generous time limits.
pub(crate) fn connect(to: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = from {
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.connect_timeout(&to.into(), TIMEOUT)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}
