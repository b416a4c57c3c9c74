//! Reaching a connection whose descriptor the runtime has.
//!
//! The runtime gives no descriptor that may be borrowed safely, only its number. Ending a connection takes
//! no more than that. For a socket's options a second descriptor is fetched, on the few connections whose
//! options matter: this process sends it to itself. `pidfd_getfd` would take fewer system calls, but
//! container runtimes' default seccomp profiles forbid it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, sendmsg, shutdown};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Of the socket with this number in this process.
///
/// # Errors
/// The process may open no more files.
pub(super) fn of(number: RawFd) -> io::Result<OwnedFd> {
    // A pair of its own each time: nobody can ever be given what another asked for.
    let (there, here) = UnixDatagram::pair()?;
    let descriptors = [number];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let byte = [IoSlice::new(&[0])];
    sendmsg::<()>(there.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
    let mut space = [const { MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut byte = [IoSliceMut::new(&mut byte)];
    recvmsg(&here, &mut byte, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            RecvAncillaryMessage::ScmCredentials(_) | _ => None,
        })
        // The kernel leaves out what there is no room for.
        .ok_or_else(|| io::Error::from(Errno::EMFILE))
}

/// Makes whatever is under way on the socket with this number end at once, sending as well as
/// receiving. `false` when that is not possible: nothing will end then.
pub(super) fn cut(number: RawFd) -> bool {
    match shutdown(number, Shutdown::Both) {
        // Reset meanwhile, which ends it as well.
        Ok(()) | Err(Errno::ENOTCONN) => true,
        Err(error) => {
            tracing::debug!(%error, "a connection cannot be cut off; it is closed as it is");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    #[test]
    fn a_second_descriptor_is_of_the_same_socket() {
        let (socket, mut client) = connection();
        let mut second = TcpStream::from(of(socket.as_raw_fd()).unwrap());
        drop(socket);
        client.write_all(b"to the second").unwrap();
        drop(client);
        let mut received = String::new();
        second.read_to_string(&mut received).unwrap();
        assert_eq!(received, "to the second");
        assert!(of(RawFd::MAX).is_err());
    }

    #[test]
    fn what_is_cut_ends_and_says_so() {
        let (mut socket, client) = connection();
        let number = socket.as_raw_fd();
        assert!(cut(number));
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
        drop(client);
        let nowhere = std::fs::File::open("/dev/null").unwrap();
        assert!(!cut(nowhere.as_raw_fd()), "no socket");
    }
}
