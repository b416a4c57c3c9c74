//! The null server: the barest epoll loop on plain sockets, a constant answer, no parsing.
//!
//! It is what the agent is measured against: the part of a request that the kernel charges
//! everyone. It answers each read that ends a request head with the same 200, whose body is long
//! enough to be the agent's credentials document and shaped so that every dialogue can end.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::event::epoll;

/// What every request is answered: it passes for a token, a role name and, being JSON, for the
/// credentials of anyone.
const BODY: &str = concat!(
    r#"{"Code":"Success","LastUpdated":"2023-11-14T22:13:20Z","Type":"AWS-HMAC","#,
    r#""AccessKeyId":"ASIANULLSERVER000000","SecretAccessKey":"nullnullnullnullnullnullnullnullnullnull","#,
    r#""Token":""#,
);

/// Length of the session token that fills the document up to a real one's size.
const TOKEN_BYTES: usize = 900;

fn answer() -> Vec<u8> {
    let body = format!(
        "{BODY}{}\",\"Expiration\":\"2033-11-14T22:13:20Z\"}}",
        "n".repeat(TOKEN_BYTES)
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\
         x-aws-ec2-metadata-token-ttl-seconds: 21600\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A null server that has its port and is about to serve.
#[derive(Debug)]
pub(crate) struct Null {
    listener: TcpListener,
}

/// Events taken from the kernel at a time.
const EVENTS_MAX: usize = 256;
/// The listener's mark among the events; connections are marked with their index in the table.
const LISTENER: u64 = u64::MAX;

impl Null {
    /// Listens on `address`; port 0 picks one.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until an error that is not one connection's.
    pub(crate) fn serve(self) -> io::Result<()> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mark = epoll::EventData::new_u64(LISTENER);
        epoll::add(&poll, &self.listener, mark, epoll::EventFlags::IN)?;
        let answer = answer();
        let mut connections = Connections::default();
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            events.clear();
            match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                if event.data.u64() == LISTENER {
                    while let Ok((stream, _peer)) = self.listener.accept() {
                        stream.set_nonblocking(true)?;
                        stream.set_nodelay(true)?;
                        let index = connections.next();
                        let mark = epoll::EventData::new_u64(index);
                        epoll::add(&poll, &stream, mark, epoll::EventFlags::IN)?;
                        connections.put(index, stream);
                    }
                } else {
                    connections.answer(event.data.u64(), &answer);
                }
            }
        }
    }
}

/// Open connections by index; freed indices are used again.
#[derive(Default)]
struct Connections {
    streams: Vec<Option<TcpStream>>,
    free: Vec<u64>,
}

impl Connections {
    fn next(&mut self) -> u64 {
        self.free.pop().unwrap_or_else(|| {
            self.streams.push(None);
            u64::try_from(self.streams.len()).unwrap_or(LISTENER) - 1
        })
    }

    fn slot(&mut self, index: u64) -> Option<&mut Option<TcpStream>> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.streams.get_mut(index))
    }

    fn put(&mut self, index: u64, stream: TcpStream) {
        if let Some(slot) = self.slot(index) {
            *slot = Some(stream);
        }
    }

    /// Answers whatever was read; an end or an error closes the connection.
    fn answer(&mut self, index: u64, answer: &[u8]) {
        let mut buffer = [0; 4096];
        let Some(slot) = self.slot(index) else { return };
        let Some(stream) = slot else { return };
        let open = match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(_) => stream.write_all(answer).is_ok(),
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        if !open {
            *slot = None;
            self.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;
    use crate::dialogue::{Answers, Asker, Patience, Shape};

    #[test]
    fn every_shape_of_dialogue_ends_well() {
        let null = Null::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let target = null.address().unwrap();
        std::thread::spawn(move || null.serve());
        for shape in Shape::value_variants() {
            let asker = Asker {
                target,
                source: None,
                shape: *shape,
                answers: Answers::Ignored,
                patience: Patience::Sdk,
            };
            let mut requests = 0;
            let obtained = asker.ask(|_| requests += 1).unwrap();
            assert_eq!(obtained.access_key_id, "ASIANULLSERVER000000");
            assert!(requests >= 2, "{shape:?}");
        }
    }
}
