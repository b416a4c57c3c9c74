//! The runtime where the ring does not work: one thread, epoll, and plain system calls.
//!
//! Small on purpose: it has what the seam offers and nothing else. It asks the kernel no more than a
//! loop of plain sockets would: a socket is registered when it first has to wait, for what comes in
//! alone, and is not asked again for what it has just shown that it does not have.

mod sources;
mod tasks;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread::park_timeout;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

use self::sources::{Direction, Source, Sources};
use self::tasks::{Call, Tasks};

/// Turns that are taken before the kernel is asked for news, if there are that many to take.
const TURNS_MAX: u32 = 256;
/// After a failure that cannot be.
const PAUSE: Duration = Duration::from_millis(100);

thread_local! {
    /// The runtime that runs on this thread.
    static HERE: RefCell<Option<Rc<Here>>> = const { RefCell::new(None) };
}

/// One runtime, as those that run on it see it.
struct Here {
    tasks: Tasks,
    sources: Rc<Sources>,
}

fn here() -> Option<Rc<Here>> {
    HERE.with_borrow(Clone::clone)
}

fn sources() -> io::Result<Rc<Sources>> {
    here()
        .map(|here| Rc::clone(&here.sources))
        .ok_or_else(|| io::Error::other("no runtime on epoll runs on this thread"))
}

/// Whether a runtime of this kind runs on this thread.
pub(super) fn is_here() -> bool {
    HERE.with_borrow(Option::is_some)
}

/// Runs `future` on this thread's runtime, beside everything else. There must be one ([`is_here`]).
pub(super) fn spawn(future: impl Future<Output = ()> + 'static) {
    if let Some(here) = here() {
        here.tasks.spawn(future);
    }
}

/// One worker's runtime.
pub(in crate::data) struct Runtime(Rc<Here>);

impl Runtime {
    pub(super) fn new() -> io::Result<Self> {
        let here = Here {
            tasks: Tasks::default(),
            sources: Rc::new(Sources::new()?),
        };
        // A seccomp profile that forbids it is found out before anyone is served, not after.
        here.sources.listen(false)?;
        Ok(Self(Rc::new(here)))
    }

    /// Runs until `future` is done; what was spawned and is not done by then is dropped.
    pub(super) fn run<F: Future>(&mut self, future: F) -> F::Output {
        let _entered = Entered::new(&self.0);
        let mut future = pin!(future);
        let root = Call::of_root();
        let waker = Waker::from(Arc::clone(&root));
        waker.wake_by_ref();
        loop {
            for _ in 0..TURNS_MAX {
                let Some(called) = tasks::next() else { break };
                if self.0.tasks.turn(&called) || !Arc::ptr_eq(&called, &root) {
                    continue;
                }
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker))
                {
                    return output;
                }
            }
            if let Err(error) = self.0.sources.listen(tasks::all_wait()) {
                // Nothing that a descriptor of our own and a buffer of our own can come to.
                tracing::error!(%error, "epoll_wait");
                park_timeout(PAUSE);
            }
        }
    }
}

/// While a runtime runs.
struct Entered<'a>(&'a Rc<Here>);

impl<'a> Entered<'a> {
    fn new(runtime: &'a Rc<Here>) -> Self {
        HERE.set(Some(Rc::clone(runtime)));
        Self(runtime)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.tasks.clear();
        HERE.set(None);
    }
}

async fn ready(source: &Source, direction: Direction) {
    poll_fn(|cx| source.poll(direction, cx)).await;
}

/// A listening socket.
pub(in crate::data) struct Listener {
    socket: TcpListener,
    source: Source,
}

impl Listener {
    /// Takes over a bound, listening socket.
    pub(super) fn new(socket: TcpListener) -> io::Result<Self> {
        // Whoever has it too may be quicker, and accepting would wait for the next.
        socket.set_nonblocking(true)?;
        let source = sources()?.add(&socket)?;
        Ok(Self { socket, source })
    }

    /// The next connection. May be dropped at any time: nothing is lost.
    pub(super) async fn accept(&self, stopper: &Stopper) -> io::Result<(Stream, SocketAddr)> {
        poll_fn(|cx| {
            loop {
                if stopper.is_stopped(cx) {
                    return Poll::Ready(Err(Errno::CANCELED.into()));
                }
                match self.socket.accept() {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.source.is_not(Direction::In);
                    }
                    accepted => {
                        return Poll::Ready(
                            accepted.map(|(socket, peer)| (Stream::new(socket), peer)),
                        );
                    }
                }
                if self.source.poll(Direction::In, cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

/// Others may have the socket too.
impl Drop for Listener {
    fn drop(&mut self) {
        self.source.remove(&self.socket);
    }
}

/// Ends accepts.
#[derive(Default)]
pub(super) struct Stopper {
    stopped: Cell<bool>,
    accepting: RefCell<Vec<Waker>>,
}

impl Stopper {
    /// Once and for all.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        self.accepting.take().into_iter().for_each(Waker::wake);
    }

    /// If not, whoever asks is called when it is.
    fn is_stopped(&self, cx: &Context<'_>) -> bool {
        let mut accepting = self.accepting.borrow_mut();
        if !accepting.iter().any(|one| one.will_wake(cx.waker())) {
            accepting.push(cx.waker().clone());
        }
        self.stopped.get()
    }
}

/// A connection.
pub(in crate::data) struct Stream {
    socket: TcpStream,
    /// Once it has had to wait.
    source: OnceCell<Source>,
}

impl Stream {
    /// Whether it blocks does not matter: nothing here lets it.
    const fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            source: OnceCell::new(),
        }
    }

    pub(super) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, None)?;
        let stream = Self::new(socket.into());
        match connect(&stream.socket, &address) {
            Ok(()) => return Ok(stream),
            Err(Errno::INPROGRESS | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        stream.has_room().await?;
        socket_error(&stream.socket)??;
        Ok(stream)
    }

    fn source(&self) -> io::Result<&Source> {
        if let Some(source) = self.source.get() {
            return Ok(source);
        }
        let source = sources()?.add(&self.socket)?;
        Ok(self.source.get_or_init(|| source))
    }

    /// Waits, then receives into the free capacity of `buffer`, after what it holds.
    pub(super) async fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            ready(self.source()?, Direction::In).await;
            match self.receive_now(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
    }

    /// The same without waiting.
    pub(super) fn receive_now(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let free = buffer.capacity() - buffer.len();
        if free == 0 {
            return Ok(0);
        }
        let received = retried(|| {
            recv(&self.socket, spare_capacity(buffer), RecvFlags::DONTWAIT).map(|(bytes, _)| bytes)
        });
        if let Some(source) = self.source.get() {
            match &received {
                Ok(bytes) if *bytes < free => source.is_drained(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    source.is_not(Direction::In);
                }
                Ok(_) | Err(_) => {}
            }
        }
        received
    }

    /// Waits, then sends some of `bytes`.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.send_now(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return sent,
            }
            if let Some(source) = self.source.get() {
                source.is_not(Direction::Out);
            }
            self.has_room().await?;
        }
    }

    /// The same without waiting.
    pub(super) fn send_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        retried(|| send(&self.socket, bytes, flags))
    }

    /// Ready when there is something to receive, or nothing more will come. Takes nothing out.
    pub(super) async fn readable(&self) -> io::Result<()> {
        let source = self.source()?;
        loop {
            ready(source, Direction::In).await;
            // Whoever received last may have taken just as much as there was.
            let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            match retried(|| recv(&self.socket, &mut [0][..], look).map(|(bytes, _)| bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    source.is_not(Direction::In);
                }
                looked => return looked.map(drop),
            }
        }
    }

    async fn has_room(&self) -> io::Result<()> {
        let source = self.source()?;
        source.sends(&self.socket)?;
        ready(source, Direction::Out).await;
        Ok(())
    }

    /// Says that nothing more will be sent.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    /// The descriptor's number.
    pub(super) fn number(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Again when a signal came between.
fn retried(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// The socket a worker waits on for its doorbell.
pub(in crate::data) struct Wire {
    socket: UnixStream,
    source: Source,
}

impl Wire {
    /// Takes over the worker's end of a doorbell, which does not block.
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        let source = sources()?.add(&socket)?;
        Ok(Self { socket, source })
    }

    /// Waits for a ring; `false` when nobody is left to ring.
    pub(super) async fn rung(&mut self, buffer: &mut Vec<u8>) -> bool {
        loop {
            ready(&self.source, Direction::In).await;
            buffer.clear();
            match recv(&self.socket, spare_capacity(buffer), RecvFlags::DONTWAIT) {
                Ok((bytes, _)) => {
                    // One byte at a time; the next is a new edge.
                    self.source.is_drained();
                    return bytes > 0;
                }
                Err(Errno::AGAIN) => self.source.is_not(Direction::In),
                Err(Errno::INTR) => {}
                Err(_gone) => return false,
            }
        }
    }
}
