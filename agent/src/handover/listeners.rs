//! Passes the listening sockets from the running agent to its successor, so that an upgrade resets
//! nobody.
//!
//! Why the sockets themselves: when a listening socket is closed, the kernel resets every connection
//! in its accept queue and every handshake under way. Two agents that each bind the port
//! (`SO_REUSEPORT`) therefore lose some when the old one closes, however empty its queue was a
//! moment before, unless `net.ipv4.tcp_migrate_req` is set (Linux 5.14), which nobody may count on.
//! A socket that the successor holds as well is never closed: its queue goes on.
//!
//! The successor connects to a Unix socket in the hand-over directory; only the same user is
//! answered. One message carries all descriptors, each with the address it listens on, which the
//! successor can ask of the socket itself. Once the successor says that it serves, the old agent
//! stops accepting; until then both do, and a successor that fails to start costs nothing.

use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::directory::Directory;

const SOCKET: &str = "listeners.sock";
/// `SCM_MAX_FD` is 253; nobody has as many workers times addresses.
pub const LISTENERS_MAX: usize = 128;
/// The predecessor answers from its control thread.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// What the message says beside the descriptors: this format.
const HELLO: &[u8] = b"kiam listeners 1";
/// What the successor says once it serves.
pub const RELIEVED: &[u8] = b"serving";

/// The running agent's end.
#[derive(Debug)]
pub struct Offer {
    socket: UnixListener,
    place: Place,
}

impl Offer {
    /// Takes the place of whatever offered before: the latest agent is the one to succeed.
    pub fn open(directory: &Directory) -> io::Result<Self> {
        Self::open_in(directory.path())
    }

    fn open_in(directory: &Path) -> io::Result<Self> {
        // Bound beside and renamed, so that no successor finds a socket that is not listened on.
        let beside = directory.join(format!(".{SOCKET}.{:08x}", fastrand::u32(..)));
        let socket = UnixListener::bind(&beside)?;
        socket.set_nonblocking(true)?;
        let file = file_at(&beside)?;
        std::fs::rename(&beside, directory.join(SOCKET))?;
        let directory = directory.to_owned();
        Ok(Self {
            socket,
            place: Place { directory, file },
        })
    }

    /// For the control thread's runtime; take descriptors over with [`hand`].
    pub fn into_parts(self) -> (UnixListener, Place) {
        (self.socket, self.place)
    }

    /// Hands `listeners` to a successor that is waiting. `false` when none is.
    ///
    /// # Errors
    /// The successor is another user or went away; keep accepting and offer again.
    pub fn hand_to_waiting(&self, listeners: &[TcpListener]) -> io::Result<bool> {
        match self.socket.accept() {
            Ok((successor, _address)) => hand(&successor, listeners).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Where an offer is found.
#[derive(Debug)]
pub struct Place {
    directory: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

impl Place {
    /// Offers anew when whoever looks finds another's offer, or none. `None` when it still stands.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn renew(&self) -> io::Result<Option<Offer>> {
        if file_at(&self.directory.join(SOCKET)).is_ok_and(|file| file == self.file) {
            return Ok(None);
        }
        Offer::open_in(&self.directory).map(Some)
    }
}

fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    let status = std::fs::symlink_metadata(path)?;
    Ok((status.dev(), status.ino()))
}

/// Hands `listeners` to the successor at the other end.
pub fn hand(successor: &UnixStream, listeners: &[TcpListener]) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(successor)?;
    if peer.uid != rustix::process::geteuid() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "another user asked for the listening sockets",
        ));
    }
    if listeners.len() > LISTENERS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more listening sockets than fit in one message",
        ));
    }
    successor.set_nonblocking(false)?;
    successor.set_write_timeout(Some(ANSWER_TIME_MAX))?;
    let descriptors: Vec<BorrowedFd<'_>> = listeners.iter().map(AsFd::as_fd).collect();
    let mut space =
        [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = rustix::net::sendmsg(
        successor,
        &[IoSlice::new(HELLO)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    if sent != HELLO.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// What a running agent handed over.
#[derive(Debug)]
pub struct Taken {
    /// Its listening sockets.
    pub listeners: Vec<TcpListener>,
    /// It goes on accepting until it is told.
    pub predecessor: Predecessor,
}

/// The agent that handed its sockets over. Dropped, it goes on as before.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

impl Predecessor {
    /// Where its end can be heard: nothing more is said there.
    ///
    /// # Errors
    /// No more files may be opened.
    pub fn line(&self) -> io::Result<UnixStream> {
        let line = self.0.try_clone()?;
        line.set_nonblocking(true)?;
        Ok(line)
    }

    /// Tells it that this agent serves: it stops accepting.
    pub fn relieve(mut self) -> io::Result<()> {
        self.0.set_write_timeout(Some(ANSWER_TIME_MAX))?;
        self.0.write_all(RELIEVED)
    }
}

/// Asks a running agent for its listening sockets. Blocks for two seconds at most.
///
/// `None` when no agent runs: then the successor binds its own.
///
/// # Errors
/// An agent runs, but did not hand anything over in time, or not in a form we know.
pub fn take(directory: &Directory) -> io::Result<Option<Taken>> {
    let stream = match UnixStream::connect(directory.path().join(SOCKET)) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    let mut greeting = [0; HELLO.len()];
    let mut space =
        [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut greeting)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    // Taken out first: what is not kept is closed.
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            RecvAncillaryMessage::ScmCredentials(_) | _ => None,
        })
        .flatten()
        .collect();
    if greeting.get(..received.bytes) != Some(HELLO) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the running agent does not speak this form of hand-over",
        ));
    }
    let listeners: Vec<TcpListener> = descriptors.into_iter().map(TcpListener::from).collect();
    for listener in &listeners {
        if !rustix::net::sockopt::socket_acceptconn(listener)? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the running agent handed over something that does not listen",
            ));
        }
    }
    Ok(Some(Taken {
        listeners,
        predecessor: Predecessor(stream),
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{SocketAddr, TcpStream};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::super::directory::tests::in_memory;
    use super::*;

    #[test]
    fn without_a_predecessor_there_is_nothing_to_take() {
        let (_guard, directory) = in_memory();
        assert!(take(&directory).unwrap().is_none());
        drop(Offer::open(&directory).unwrap());
        assert!(
            take(&directory).unwrap().is_none(),
            "nobody listens there any more"
        );
    }

    #[test]
    fn a_predecessor_that_does_not_answer_is_an_error() {
        let (_guard, directory) = in_memory();
        let _silent = Offer::open(&directory).unwrap();
        assert!(take(&directory).is_err());
    }

    #[test]
    fn connections_waiting_to_be_accepted_survive_their_listener() {
        let (_guard, directory) = in_memory();
        let offer = Offer::open(&directory).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut waiting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        std::thread::scope(|scope| {
            let successor = scope.spawn(|| take(&directory).unwrap().unwrap());
            wait(|| {
                offer
                    .hand_to_waiting(std::slice::from_ref(&listener))
                    .unwrap()
            });
            let listeners = successor.join().unwrap().listeners;
            drop(listener);
            let (mut accepted, _peer) = listeners[0].accept().unwrap();
            accepted.write_all(b"served").unwrap();
            drop(accepted);
            let mut answer = String::new();
            waiting.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "served");
        });
    }

    #[test]
    fn an_offer_that_was_pushed_aside_is_made_again() {
        let (_guard, directory) = in_memory();
        let (_socket, place) = Offer::open(&directory).unwrap().into_parts();
        assert!(place.renew().unwrap().is_none(), "it stands");
        drop(Offer::open(&directory).unwrap());
        let (_socket, again) = place.renew().unwrap().unwrap().into_parts();
        assert!(again.renew().unwrap().is_none());
        std::fs::remove_file(directory.path().join(SOCKET)).unwrap();
        assert!(again.renew().unwrap().is_some());
    }

    #[track_caller]
    fn wait(mut done: impl FnMut() -> bool) {
        for _ in 0..2_000 {
            if done() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        panic!("waited for two seconds");
    }

    /// Answers until told to stop, as an agent's worker does.
    fn serve(listener: &TcpListener, stop: &AtomicBool) {
        listener.set_nonblocking(true).unwrap();
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((mut accepted, _peer)) => {
                    accepted.set_nonblocking(false).unwrap();
                    let mut request = [0; 4];
                    accepted.read_exact(&mut request).unwrap();
                    accepted.write_all(b"pong").unwrap();
                }
                Err(_none) => std::thread::park_timeout(Duration::from_micros(200)),
            }
        }
    }

    fn call(address: SocketAddr) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"ping")?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)
    }

    /// Twenty upgrades under constant new connections: not one may fail.
    #[test]
    fn upgrades_under_traffic_lose_nothing() {
        const UPGRADES: usize = 20;
        let (_guard, directory) = in_memory();
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap();
        let finished = AtomicBool::new(false);
        let calls = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        while !finished.load(Ordering::Relaxed) {
                            call(address).unwrap();
                            calls.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            let mut listener = first;
            for _ in 0..UPGRADES {
                let stop = AtomicBool::new(false);
                let before = calls.load(Ordering::Relaxed);
                listener = std::thread::scope(|agent| {
                    let worker = agent.spawn(|| serve(&listener, &stop));
                    let offer = Offer::open(&directory).unwrap();
                    wait(|| calls.load(Ordering::Relaxed) > before + 20);
                    let successor = agent.spawn(|| take(&directory).unwrap().unwrap());
                    wait(|| {
                        offer
                            .hand_to_waiting(std::slice::from_ref(&listener))
                            .unwrap()
                    });
                    stop.store(true, Ordering::Relaxed);
                    worker.join().unwrap();
                    successor.join().unwrap().listeners.remove(0)
                });
            }
            // The last one serves those who still wait.
            let stop = AtomicBool::new(false);
            std::thread::scope(|agent| {
                agent.spawn(|| serve(&listener, &stop));
                finished.store(true, Ordering::Relaxed);
                for client in clients {
                    client.join().unwrap();
                }
                stop.store(true, Ordering::Relaxed);
            });
        });
        assert!(calls.load(Ordering::Relaxed) >= UPGRADES * 20);
    }
}
