//! The runtime on the ring, and the only file that names it.
//!
//! `accept` is never dropped: a dropped accept leaks the connection it was about to return. To stop
//! accepting, use its [`Stopper`], or shut the listening socket down from outside. Receiving and sending
//! may be dropped at any time; the buffer under way is then freed by the runtime once the kernel is done
//! with it.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use io_uring::IoUring;
use monoio::buf::{IoBuf as _, IoBufMut as _};
use monoio::io::{AsyncReadRent as _, AsyncWriteRent as _, CancelHandle, Canceller};
use monoio::{IoUringDriver, RuntimeBuilder};
use nix::sys::socket::{self, MsgFlags};

/// Entries of the submission ring: more than this many operations at once cost another system
/// call, nothing else.
const RING_ENTRIES: u32 = 1024;
/// What [`Stream::receive_now`] takes at a time. Nearly every request has less; memory that nothing
/// arrives in is not to be touched.
const NOW_BYTES: usize = 512;

/// A ring that is worth having, best first.
///
/// One without flags is not among them: only kernels older than 5.19 need it, and there an accept on a
/// non-blocking socket fails at once when nobody is waiting, so that every connection would wait for the
/// next tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ring {
    /// From Linux 6.1 on.
    Deferred,
    /// From Linux 5.19 on.
    Cooperative,
}

impl Ring {
    const ALL: [Self; 2] = [Self::Deferred, Self::Cooperative];

    fn builder(self) -> io_uring::Builder {
        let mut builder = IoUring::builder();
        match self {
            Self::Deferred => builder.setup_single_issuer().setup_defer_taskrun(),
            Self::Cooperative => builder.setup_coop_taskrun(),
        };
        builder
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Deferred => "single issuer and deferred task work",
            Self::Cooperative => "cooperative task work: the kernel is older than 6.1",
        }
    }
}

/// What `build` makes of the best ring that this kernel knows.
fn best_ring<T>(build: impl Fn(Ring) -> io::Result<T>) -> io::Result<(T, Ring)> {
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for ring in Ring::ALL {
        match build(ring) {
            Ok(built) => return Ok((built, ring)),
            Err(error) => last = error,
        }
    }
    if last.kind() == io::ErrorKind::InvalidInput {
        // How a kernel says that it does not know a flag.
        let too_old = "the kernel is older than 5.19, where rings accept connections late";
        return Err(io::Error::new(io::ErrorKind::Unsupported, too_old));
    }
    Err(last)
}

/// One worker's runtime. Built and run on the same thread, as the ring's flags demand.
pub(in crate::data) struct Runtime(monoio::Runtime<IoUringDriver>);

impl Runtime {
    /// Builds the best that works here, and says which one it is.
    ///
    /// The flags are worth a third of the processor time of a kept-alive request: without them each
    /// completion interrupts the thread.
    pub(super) fn new() -> io::Result<(Self, &'static str)> {
        // The probe also finds out whether the kernel knows the operations that are used.
        if !monoio::utils::detect_uring() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                IoUring::new(2).map_or_else(
                    |error| format!("io_uring_setup: {error}"),
                    |_| "the kernel lacks operations".to_owned(),
                ),
            ));
        }
        let (runtime, ring) = best_ring(|ring| {
            RuntimeBuilder::<IoUringDriver>::new()
                .with_entries(RING_ENTRIES)
                .uring_builder(ring.builder())
                .build()
        })?;
        Ok((Self(runtime), ring.reason()))
    }

    /// Runs until `future` is done; what was spawned and is not done by then is dropped.
    pub(super) fn run<F: Future>(&mut self, future: F) -> F::Output {
        self.0.block_on(future)
    }
}

/// Runs `future` on this thread's runtime, beside everything else.
pub(super) fn spawn(future: impl Future<Output = ()> + 'static) {
    drop(monoio::spawn(future));
}

/// A listening socket.
pub(in crate::data) struct Listener(monoio::net::TcpListener);

impl Listener {
    /// Takes over a bound, listening, non-blocking socket.
    pub(super) fn new(listener: std::net::TcpListener) -> io::Result<Self> {
        monoio::net::TcpListener::from_std(listener).map(Self)
    }

    /// The next connection, or an error once `stopper` says so. Never drop this future before it is
    /// done.
    pub(super) async fn accept(&self, stopper: &Stopper) -> io::Result<(Stream, SocketAddr)> {
        let (stream, peer) = self.0.cancelable_accept(stopper.handle()).await?;
        Ok((Stream::new(stream), peer))
    }
}

/// Ends accepts on the same thread without losing a connection: one that was accepted just before is
/// still returned.
#[derive(Default)]
pub(super) struct Stopper {
    canceller: RefCell<Canceller>,
    /// Ends whatever begins with it.
    stopped: OnceCell<CancelHandle>,
}

impl Stopper {
    /// Once and for all.
    pub(super) fn stop(&self) {
        self.stopped.get_or_init(|| {
            let canceller = self.canceller.take();
            let stopped = canceller.handle();
            drop(canceller.cancel());
            stopped
        });
    }

    /// For an accept. One that begins after the stop ends at once.
    fn handle(&self) -> CancelHandle {
        let stopped = self.stopped.get().cloned();
        stopped.unwrap_or_else(|| self.canceller.borrow().handle())
    }
}

/// A connection. Dropping it closes it too, through the ring and a little later than
/// [`Stream::close`].
pub(in crate::data) struct Stream {
    socket: monoio::net::TcpStream,
    /// Operations that have begun and were not seen to end, so that the runtime may hold the descriptor.
    under_way: Cell<u32>,
}

impl Stream {
    const fn new(socket: monoio::net::TcpStream) -> Self {
        Self {
            socket,
            under_way: Cell::new(0),
        }
    }

    /// Opens a connection.
    pub(super) async fn connect(address: SocketAddr) -> io::Result<Self> {
        monoio::net::TcpStream::connect_addr(address)
            .await
            .map(Self::new)
    }

    /// Waits, then receives into the free capacity of `buffer`, after what it holds.
    pub(super) async fn receive(&mut self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let held = buffer.len();
        self.begins();
        let (result, slice) = self.socket.read(buffer.slice_mut(held..)).await;
        self.ended();
        (result, slice.into_inner())
    }

    /// The same without waiting, and [`NOW_BYTES`] at most: [`io::ErrorKind::WouldBlock`] when nothing
    /// has arrived.
    pub(super) fn receive_now(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let held = buffer.len();
        buffer.resize(buffer.capacity().min(held + NOW_BYTES), 0);
        let free = buffer.get_mut(held..).unwrap_or_default();
        let received = retried(|| socket::recv(self.number(), free, MsgFlags::MSG_DONTWAIT));
        buffer.truncate(held + received.as_ref().map_or(0, |bytes| *bytes));
        received
    }

    /// Waits, then sends some of `buffer`, from `start` on.
    pub(super) async fn send(
        &mut self,
        buffer: Vec<u8>,
        start: usize,
    ) -> (io::Result<usize>, Vec<u8>) {
        self.begins();
        let (result, slice) = self.socket.write(buffer.slice(start..)).await;
        self.ended();
        (result, slice.into_inner())
    }

    /// The same without waiting: [`io::ErrorKind::WouldBlock`] when the socket's buffer is full, which
    /// that of a new connection never is.
    pub(super) fn send_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        retried(|| socket::send(self.number(), bytes, flags))
    }

    /// Ready when there is something to receive, or nothing more will come. Takes nothing out, so
    /// it may be dropped without loss.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.begins();
        let ready = self.socket.readable(false).await;
        self.ended();
        ready
    }

    /// Says that nothing more will be sent.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        self.begins();
        let finished = self.socket.shutdown().await;
        self.ended();
        finished
    }

    /// Closes at once, unless the runtime is not done with the descriptor: then as soon as it is.
    pub(super) fn close(self) {
        if self.under_way.get() > 0 {
            return;
        }
        if let Err(error) = nix::unistd::close(self.socket) {
            tracing::debug!(%error, "closing a connection");
        }
    }

    fn begins(&self) {
        self.under_way.set(self.under_way.get() + 1);
    }

    /// Not called for an operation whose future was dropped: that one counts for ever.
    fn ended(&self) {
        self.under_way.set(self.under_way.get().saturating_sub(1));
    }

    /// The descriptor's number.
    pub(super) fn number(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Again when a signal came between.
fn retried(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(bytes) => return Ok(bytes),
        }
    }
}

/// The socket a worker waits on for its doorbell.
pub(in crate::data) struct Wire(monoio::net::UnixStream);

impl Wire {
    /// Takes over the worker's end of a doorbell.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        monoio::net::UnixStream::from_std(socket).map(Self)
    }

    /// Waits for a ring; `false` when nobody is left to ring.
    pub(super) async fn rung(&mut self, mut buffer: Vec<u8>) -> (bool, Vec<u8>) {
        buffer.clear();
        let (result, buffer) = self.0.read(buffer).await;
        (result.is_ok_and(|bytes| bytes > 0), buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_knows_no_flags_gets_no_ring() {
        let tried = RefCell::new(Vec::new());
        let refused = best_ring(|ring| {
            tried.borrow_mut().push(ring);
            Err::<(), _>(io::Error::from_raw_os_error(22))
        });
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("older than 5.19"), "{error}");
        assert_eq!(*tried.borrow(), Ring::ALL);
    }

    #[test]
    fn the_best_ring_that_is_known_is_taken() {
        let old = |ring| match ring {
            Ring::Deferred => Err(io::Error::from_raw_os_error(22)),
            Ring::Cooperative => Ok(()),
        };
        assert_eq!(best_ring(old).unwrap().1, Ring::Cooperative);
        assert_eq!(best_ring(|_| Ok(())).unwrap().1, Ring::Deferred);
        // Not the kernel's age: said as it is.
        let none = best_ring(|_| Err::<(), _>(io::Error::from_raw_os_error(12)));
        assert_eq!(none.unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }
}
