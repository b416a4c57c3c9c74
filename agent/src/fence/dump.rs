//! Reads from the kernel how things stand: all links, neighbours and routes.
//!
//! What is left out of such a dump counts as gone, and with it its pod. So a dump counts only when the
//! kernel gave all of it: one that it broke off, for lack of memory say, is an error, and one during which
//! something changed is read again.

use std::io;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use rustix::io::Errno;
use tokio::time::timeout;

use super::messages::{self, Said};
use super::paths::{Change, Paths};

const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;
/// What to ask for, and of which family. Bridges answer for themselves.
const DUMPS: [(u16, u8); 6] = [
    (RTM_GETLINK, AF_UNSPEC),
    (RTM_GETNEIGH, AF_BRIDGE),
    (RTM_GETNEIGH, AF_INET),
    (RTM_GETNEIGH, AF_INET6),
    (RTM_GETROUTE, AF_INET),
    (RTM_GETROUTE, AF_INET6),
];
/// How often one of them may be disturbed. A dump takes milliseconds; where something changes during
/// each of so many, the next attempt to listen comes later.
const ATTEMPTS: usize = 10;
/// The kernel answers in microseconds. One that says nothing for so long is not waited for: an agent that is
/// being started has its predecessor's ports already.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// The kernel was built without that family, or has it switched off: there is nothing of it.
const NOT_HERE: [Errno; 2] = [Errno::OPNOTSUPP, Errno::AFNOSUPPORT];

/// Reads everything on a socket of its own, so that answers and notifications do not mix.
pub(super) async fn dump() -> io::Result<Paths> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_mut().connect(&SocketAddr::new(0, 0))?;
    let mut paths = Paths::default();
    for (kind, family) in DUMPS {
        for change in all(&mut socket, &request(kind, family)).await? {
            // A dump of what is never makes anybody gone.
            drop(paths.on(change));
        }
    }
    Ok(paths)
}

/// What one request is answered with, whole.
async fn all(socket: &mut TokioSocket, request: &[u8]) -> io::Result<Vec<Change>> {
    for _ in 0..ATTEMPTS {
        if socket.send(request).await? != request.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut answer = Answer::default();
        loop {
            let (datagram, _from) = timeout(SILENCE_MAX, socket.recv_from_full())
                .await
                .map_err(io::Error::from)??;
            match answer.take_in(messages::read(&datagram))? {
                Progress::More => {}
                Progress::Whole => return Ok(answer.changes),
                Progress::Disturbed => break,
            }
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        "links, neighbours or routes change faster than they can be read",
    ))
}

/// As much of an answer as has arrived.
#[derive(Debug, Default)]
struct Answer {
    changes: Vec<Change>,
    disturbed: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    More,
    Whole,
    /// To be asked for again.
    Disturbed,
}

impl Answer {
    fn take_in(&mut self, said: Said) -> io::Result<Progress> {
        self.changes.extend(said.changes);
        self.disturbed |= said.interrupted;
        match said.error.map(Errno::from_raw_os_error) {
            Some(error) if !NOT_HERE.contains(&error) => Err(error.into()),
            Some(_) | None if !said.ended => Ok(Progress::More),
            Some(_) | None if self.disturbed => Ok(Progress::Disturbed),
            Some(_) | None => Ok(Progress::Whole),
        }
    }
}

/// A netlink header and 16 zero bytes, the longest of the fixed parts (`struct ifinfomsg`; `struct
/// rtmsg` and `struct ndmsg` have 12, and four zero bytes more end their attributes), with the
/// family first.
fn request(kind: u16, family: u8) -> Vec<u8> {
    const LENGTH: u32 = 32;
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.push(family);
    bytes.extend([0; 15]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Change = Change::Up(7);

    fn said() -> Said {
        Said {
            changes: vec![LINK],
            ..Said::default()
        }
    }

    fn end(error: Option<i32>) -> Said {
        Said {
            ended: true,
            error,
            ..Said::default()
        }
    }

    #[test]
    fn a_whole_answer_counts() {
        let mut answer = Answer::default();
        assert_eq!(answer.take_in(said()).unwrap(), Progress::More);
        assert_eq!(answer.take_in(end(None)).unwrap(), Progress::Whole);
        assert_eq!(answer.changes, [LINK]);
    }

    #[test]
    fn a_refused_or_broken_off_answer_does_not() {
        for refused in [Errno::NOMEM, Errno::PERM, Errno::BUSY] {
            let mut answer = Answer::default();
            drop(answer.take_in(said()));
            let error = answer.take_in(end(Some(refused.raw_os_error())));
            assert_eq!(
                error.unwrap_err().raw_os_error(),
                Some(refused.raw_os_error())
            );
        }
        // A kernel without IPv6 or bridges.
        for absent in NOT_HERE {
            let ended = Answer::default().take_in(end(Some(absent.raw_os_error())));
            assert_eq!(ended.unwrap(), Progress::Whole);
        }
    }

    #[test]
    fn what_changed_meanwhile_is_asked_for_again() {
        let mut answer = Answer::default();
        let disturbed = Said {
            interrupted: true,
            ..said()
        };
        assert_eq!(answer.take_in(disturbed).unwrap(), Progress::More);
        assert_eq!(answer.take_in(said()).unwrap(), Progress::More);
        assert_eq!(answer.take_in(end(None)).unwrap(), Progress::Disturbed);
    }

    #[tokio::test]
    async fn this_machine_tells_all() {
        let mut paths = dump().await.unwrap();
        // The loopback interface is there and has index 1 in every network namespace.
        assert_eq!(paths.expect_back(&[([127, 0, 0, 9].into(), 1)]), []);
        assert_eq!(paths.left().len(), 1);
    }
}
