//! Everything the data plane wants from its runtime: listen, accept, receive, send, close, spawn.
//!
//! There are two, and only the files below name what they are made of: the [`ring`] (monoio on
//! `io_uring`), and [`epoll`], our own, for kernels and seccomp profiles that have no ring. A third would be a
//! day's work here and nothing elsewhere. What their users must know:
//!
//! - `accept` is never dropped: on the ring a dropped accept leaks the connection it was about to return.
//!   To stop accepting, use its [`Stopper`], or shut the listening socket down from outside.
//! - Receiving and sending may be dropped at any time, and what the buffer held goes with them.
//! - What a socket can do at once is done by a plain system call (`receive_now`, `send_now`, `close`).
//!   An operation of the ring costs another turn of the runtime, whose code and data are cold after
//!   each sleep: on short connections that is a tenth of all their processor time.
//! - There are no timers and no wakers for other threads: time and news come in by the doorbell
//!   ([`crate::doorbell`]).

mod epoll;
mod ring;

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;

use super::{DriverChoice, DriverReport};
use crate::buffer::wipe_whole;

/// One worker's runtime. Built and run on the same thread, as the ring demands.
pub(super) enum Runtime {
    Ring(ring::Runtime),
    Epoll(epoll::Runtime),
}

impl Runtime {
    /// Builds the best runtime that works here, and says which one it is and why.
    pub(super) fn build(choice: DriverChoice) -> io::Result<(Self, DriverReport)> {
        let because = match choice {
            DriverChoice::Epoll => "asked for".to_owned(),
            DriverChoice::Auto | DriverChoice::IoUring => match ring::Runtime::new() {
                Ok((runtime, reason)) => {
                    let report = DriverReport {
                        name: "io_uring",
                        reason: reason.to_owned(),
                    };
                    return Ok((Self::Ring(runtime), report));
                }
                Err(error) if choice == DriverChoice::IoUring => return Err(error),
                Err(error) => format!("io_uring does not work here: {error}"),
            },
        };
        let report = DriverReport {
            name: "epoll",
            reason: because,
        };
        Ok((Self::Epoll(epoll::Runtime::new()?), report))
    }

    /// Runs until `future` is done; what was spawned and is not done by then is dropped.
    pub(super) fn run<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::Ring(runtime) => runtime.run(future),
            Self::Epoll(runtime) => runtime.run(future),
        }
    }
}

/// Runs `future` beside everything else on this thread. A panic ends it and is given to
/// `on_panic`; it goes no further, or one connection could take all others down with it.
pub(super) fn spawn(future: impl Future<Output = ()> + 'static, on_panic: impl FnOnce() + 'static) {
    let caught = caught(future, on_panic);
    if epoll::is_here() {
        epoll::spawn(caught);
    } else {
        ring::spawn(caught);
    }
}

/// Combinators, not an async block: that would have room for the future twice.
fn caught(future: impl Future<Output = ()>, on_panic: impl FnOnce()) -> impl Future<Output = ()> {
    AssertUnwindSafe(future).catch_unwind().map(|ended| {
        if ended.is_err() {
            on_panic();
        }
    })
}

/// A buffer that is wiped should whoever waits with it be dropped.
struct Held(Vec<u8>);

impl Held {
    fn given_back(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        wipe_whole(&mut self.0);
    }
}

/// A listening socket.
pub(super) enum Listener {
    Ring(ring::Listener),
    Epoll(epoll::Listener),
}

impl Listener {
    /// Takes over a bound, listening, non-blocking socket.
    pub(super) fn new(listener: TcpListener) -> io::Result<Self> {
        if epoll::is_here() {
            epoll::Listener::new(listener).map(Self::Epoll)
        } else {
            ring::Listener::new(listener).map(Self::Ring)
        }
    }

    /// The next connection, or an error once `stopper` says so. Never drop this future before it is
    /// done.
    pub(super) async fn accept(&self, stopper: &Stopper) -> io::Result<(Stream, SocketAddr)> {
        match self {
            Self::Ring(listener) => {
                let (stream, peer) = listener.accept(&stopper.ring).await?;
                Ok((Stream::Ring(stream), peer))
            }
            Self::Epoll(listener) => {
                let (stream, peer) = listener.accept(&stopper.epoll).await?;
                Ok((Stream::Epoll(stream), peer))
            }
        }
    }
}

/// Ends accepts on the same thread without losing a connection: one that was accepted just before is
/// still returned.
#[derive(Default)]
pub(super) struct Stopper {
    ring: ring::Stopper,
    epoll: epoll::Stopper,
}

impl Stopper {
    /// Once and for all.
    pub(super) fn stop(&self) {
        self.ring.stop();
        self.epoll.stop();
    }
}

/// A connection. Dropping it closes it too, on the ring a little later than [`Stream::close`].
pub(super) enum Stream {
    Ring(ring::Stream),
    Epoll(epoll::Stream),
}

impl Stream {
    /// Opens a connection.
    pub(super) async fn connect(address: SocketAddr) -> io::Result<Self> {
        if epoll::is_here() {
            epoll::Stream::connect(address).await.map(Self::Epoll)
        } else {
            ring::Stream::connect(address).await.map(Self::Ring)
        }
    }

    /// Waits, then receives into the free capacity of `buffer`, after what it holds. Zero bytes: the
    /// other side has closed its half, or `buffer` has no free capacity.
    pub(super) async fn receive(&mut self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Ring(stream) => stream.receive(buffer).await,
            Self::Epoll(stream) => {
                let mut buffer = Held(buffer);
                (stream.receive(&mut buffer.0).await, buffer.given_back())
            }
        }
    }

    /// The same without waiting, and perhaps not all that there is: [`io::ErrorKind::WouldBlock`] when
    /// nothing has arrived.
    pub(super) fn receive_now(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Ring(stream) => stream.receive_now(buffer),
            Self::Epoll(stream) => stream.receive_now(buffer),
        }
    }

    /// Waits, then sends some of `buffer`, from `start` on.
    pub(super) async fn send(
        &mut self,
        buffer: Vec<u8>,
        start: usize,
    ) -> (io::Result<usize>, Vec<u8>) {
        match self {
            Self::Ring(stream) => stream.send(buffer, start).await,
            Self::Epoll(stream) => {
                let buffer = Held(buffer);
                let rest = buffer.0.get(start..).unwrap_or_default();
                (stream.send(rest).await, buffer.given_back())
            }
        }
    }

    /// The same without waiting: [`io::ErrorKind::WouldBlock`] when the socket's buffer is full, which
    /// that of a new connection never is.
    pub(super) fn send_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Ring(stream) => stream.send_now(bytes),
            Self::Epoll(stream) => stream.send_now(bytes),
        }
    }

    /// Ready when there is something to receive, or nothing more will come. Takes nothing out, so
    /// it may be dropped without loss.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Ring(stream) => stream.readable().await,
            Self::Epoll(stream) => stream.readable().await,
        }
    }

    /// Says that nothing more will be sent.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Ring(stream) => stream.finish().await,
            Self::Epoll(stream) => stream.finish(),
        }
    }

    /// Closes at once, unless the runtime is not done with the descriptor: then as soon as it is.
    pub(super) fn close(self) {
        match self {
            Self::Ring(stream) => stream.close(),
            Self::Epoll(stream) => drop(stream),
        }
    }

    /// The descriptor's number.
    pub(super) fn number(&self) -> RawFd {
        match self {
            Self::Ring(stream) => stream.number(),
            Self::Epoll(stream) => stream.number(),
        }
    }
}

/// The socket a worker waits on for its doorbell.
pub(super) enum Wire {
    Ring(ring::Wire),
    Epoll(epoll::Wire),
}

impl Wire {
    /// Takes over the worker's end of a doorbell.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        if epoll::is_here() {
            epoll::Wire::new(socket).map(Self::Epoll)
        } else {
            ring::Wire::new(socket).map(Self::Ring)
        }
    }

    /// Waits for a ring; `false` when nobody is left to ring.
    pub(super) async fn rung(&mut self, mut buffer: Vec<u8>) -> (bool, Vec<u8>) {
        match self {
            Self::Ring(wire) => wire.rung(buffer).await,
            Self::Epoll(wire) => (wire.rung(&mut buffer).await, buffer),
        }
    }
}

#[cfg(test)]
mod tests;
