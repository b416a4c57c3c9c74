//! Starting the workers, reaching them while they run, and ending them.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, Thread};
use std::time::Duration;
use std::{fmt, io};

use super::answer::{Answerer, Door};
use super::listen::{Listening, listen};
use super::passthrough::Fetcher;
use super::schedule::Breaks;
use super::seam::{self, Listener, Runtime, Wire};
use super::ticker::{self, Post};
use super::worker::{Parts, Signals, Worker};
use super::{DataConfig, DriverReport, StartError, hops, schedule};
use crate::clock::{later, monotonic};
use crate::doorbell::{self, Doorbell};
use crate::snapshot::{Publisher, Reader};
use crate::tally::{Tallies, TallyOf};

/// The running data plane. Dropping it leaves the workers running.
pub struct Plane {
    listening: Vec<SocketAddr>,
    container_listening: Vec<SocketAddr>,
    driver: DriverReport,
    ringer: Ringer,
    waiting: UnixDatagram,
    /// The listening sockets once more: shutting them down ends the accepts.
    shutters: Vec<TcpListener>,
    /// Ends when the last worker has.
    ended: Receiver<()>,
    present: Present,
    abandon: Arc<AtomicBool>,
    stop_ticking: Arc<AtomicBool>,
    ticker: Thread,
}

/// Which workers are there.
#[derive(Debug, Clone)]
pub struct Present {
    workers: usize,
    /// Each worker has one reference.
    token: Weak<()>,
}

impl Present {
    /// Whether all of them are, which they are until they are told to end: what connects to one that
    /// is not waits for nothing.
    pub fn is_everyone(&self) -> bool {
        self.token.strong_count() >= self.workers
    }
}

/// Tells the workers that something was published.
#[derive(Debug, Clone)]
pub struct Ringer {
    posts: Arc<[Post]>,
}

impl Ringer {
    /// Call it after each [`Publisher::publish`]: parked requests are looked up again at once.
    /// Workers that have none parked are left alone; they look at the snapshot on every request.
    pub fn ring(&self) {
        doorbell::published();
        for post in self.posts.iter().filter(|post| post.is_eager()) {
            post.bell.ring();
        }
    }

    /// Lets the workers accept, where they do not yet.
    pub fn open(&self) {
        for post in self.posts.iter() {
            post.signals.closed.store(false, Ordering::Relaxed);
        }
        self.ring_all();
    }

    fn ring_all(&self) {
        for post in self.posts.iter() {
            post.bell.ring();
        }
    }
}

/// Starts the workers. When this returns, every address is listened on and every worker serves.
///
/// `tallies` must have been made for as many workers as `config` names.
pub fn start(
    config: DataConfig,
    publisher: &Publisher,
    tallies: &Tallies,
) -> Result<Plane, StartError> {
    start_on(Vec::new(), config, publisher, tallies)
}

/// The same on sockets of an agent that runs already. An address that has none among `inherited` is
/// bound, and is then nobody else's; those whose address is not wanted are closed.
pub fn start_on(
    mut inherited: Vec<TcpListener>,
    config: DataConfig,
    publisher: &Publisher,
    tallies: &Tallies,
) -> Result<Plane, StartError> {
    let workers = config.workers.get();
    let mut bind = |addresses: &[SocketAddr]| -> Result<Vec<Listening>, StartError> {
        addresses
            .iter()
            .map(|address| listen(*address, workers, &mut inherited))
            .collect()
    };
    let metadata = bind(&config.listen)?;
    let container = bind(&config.container_listen)?;
    if let (Some(_), Some(socket)) = (
        config.token_hop_limit,
        metadata
            .iter()
            .find_map(|listening| listening.sockets.first()),
    ) {
        hops::check(socket.as_raw_fd()).map_err(StartError::HopLimit)?;
    }
    let addresses = |doors: &[Listening]| doors.iter().map(|door| door.address).collect();
    let (listening, container_listening) = (addresses(&metadata), addresses(&container));
    let shutters = metadata
        .iter()
        .chain(&container)
        .flat_map(|door| &door.sockets)
        .map(TcpListener::try_clone)
        .collect::<io::Result<_>>()
        .map_err(StartError::Worker)?;
    let (waiting, report) = waiting_pair().map_err(StartError::Worker)?;
    // Who connects to a socket of this agent's alone would wait for nobody.
    let closed = config.closed && metadata.iter().chain(&container).all(|door| door.shared);
    let (posts, ends) = posts(workers, closed).map_err(StartError::Worker)?;
    let ringer = Ringer { posts };
    let (stop_ticking, abandon) = (Arc::default(), Arc::default());
    let ticker = start_ticker(&ringer, &stop_ticking, config.scheduling)?;
    let (ended_sender, ended) = sync_channel(1);
    let token = Arc::new(());
    let present = Present {
        workers,
        token: Arc::downgrade(&token),
    };
    let crew = Crew {
        config: Arc::new(config),
        publisher,
        tallies,
        report,
        ticker: ticker.clone(),
        abandon: Arc::clone(&abandon),
        ended: ended_sender,
        present: token,
    };
    match crew.start(metadata, container, ends) {
        Ok(driver) => Ok(Plane {
            listening,
            container_listening,
            driver,
            ringer,
            waiting,
            shutters,
            ended,
            present,
            abandon,
            stop_ticking,
            ticker,
        }),
        Err(error) => {
            // Those that did start end again.
            abandon.store(true, Ordering::Relaxed);
            ringer.ring_all();
            stop_ticking.store(true, Ordering::Relaxed);
            ticker.unpark();
            Err(error)
        }
    }
}

fn waiting_pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (inside, outside) = UnixDatagram::pair()?;
    inside.set_nonblocking(true)?;
    outside.set_nonblocking(true)?;
    Ok((inside, outside))
}

/// What one worker is reached by, from its own side.
type End = (Doorbell, UnixStream, Post);

fn posts(workers: usize, closed: bool) -> io::Result<(Arc<[Post]>, Vec<End>)> {
    let mut posts = Vec::with_capacity(workers);
    let mut ends = Vec::with_capacity(workers);
    for _ in 0..workers {
        let (bell, doorbell, wire) = doorbell::pair()?;
        let signals = Signals::default();
        signals.closed.store(closed, Ordering::Relaxed);
        let post = Post { bell, signals };
        posts.push(post.clone());
        ends.push((doorbell, wire, post));
    }
    Ok((posts.into(), ends))
}

fn start_ticker(
    ringer: &Ringer,
    stop: &Arc<AtomicBool>,
    scheduling: super::Scheduling,
) -> Result<Thread, StartError> {
    let (posts, stop) = (Arc::clone(&ringer.posts), Arc::clone(stop));
    let ticker = thread::Builder::new()
        .name("ticker".to_owned())
        .spawn(move || {
            schedule::schedule(scheduling);
            ticker::run(&posts, &stop);
        })
        .map_err(StartError::Worker)?;
    Ok(ticker.thread().clone())
}

/// What all workers are started from.
struct Crew<'a> {
    config: Arc<DataConfig>,
    publisher: &'a Publisher,
    tallies: &'a Tallies,
    report: UnixDatagram,
    ticker: Thread,
    abandon: Arc<AtomicBool>,
    ended: SyncSender<()>,
    present: Arc<()>,
}

/// What one worker takes with it to its thread.
struct Kit {
    number: usize,
    config: Arc<DataConfig>,
    doors: Vec<(Door, TcpListener)>,
    doorbell: Doorbell,
    wire: UnixStream,
    post: Post,
    reader: Reader,
    tally: TallyOf,
    waiting: UnixDatagram,
    ticker: Thread,
    abandon: Arc<AtomicBool>,
    /// Dropped when the worker ends.
    _ended: SyncSender<()>,
    _present: Arc<()>,
}

impl Crew<'_> {
    fn start(
        self,
        metadata: Vec<Listening>,
        container: Vec<Listening>,
        ends: Vec<End>,
    ) -> Result<DriverReport, StartError> {
        let mut sockets = by_worker(Door::Metadata, metadata, ends.len());
        for (all, more) in sockets
            .iter_mut()
            .zip(by_worker(Door::Container, container, ends.len()))
        {
            all.extend(more);
        }
        let mut driver = None;
        for (number, ((doorbell, wire, post), doors)) in ends.into_iter().zip(sockets).enumerate() {
            let tally = self
                .tallies
                .of(number)
                .ok_or_else(|| StartError::Worker(io::ErrorKind::InvalidInput.into()))?;
            let kit = Kit {
                number,
                config: Arc::clone(&self.config),
                doors,
                doorbell,
                wire,
                post,
                reader: self.publisher.reader(),
                tally,
                waiting: self.report.try_clone().map_err(StartError::Worker)?,
                ticker: self.ticker.clone(),
                abandon: Arc::clone(&self.abandon),
                _ended: self.ended.clone(),
                _present: Arc::clone(&self.present),
            };
            let (started, serving) = sync_channel(1);
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || kit.run(&started))
                .map_err(StartError::Worker)?;
            let report = serving
                .recv()
                .map_err(|_ended| StartError::Worker(io::ErrorKind::BrokenPipe.into()))??;
            driver.get_or_insert(report);
        }
        driver.ok_or_else(|| StartError::Worker(io::ErrorKind::InvalidInput.into()))
    }
}

/// Deals the sockets of each address out to the workers; inherited ones may be more than those.
fn by_worker(
    door: Door,
    listening: Vec<Listening>,
    workers: usize,
) -> Vec<Vec<(Door, TcpListener)>> {
    let mut dealt: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for address in listening {
        for (number, socket) in address.sockets.into_iter().enumerate() {
            if let Some(hand) = dealt.get_mut(number % workers) {
                hand.push((door, socket));
            }
        }
    }
    dealt
}

impl Kit {
    /// The worker's thread. The runtime is built here, because its ring belongs to one thread.
    fn run(self, started: &SyncSender<Result<DriverReport, StartError>>) {
        schedule::schedule(self.config.scheduling);
        if self.config.pin_workers {
            schedule::pin(self.number);
        }
        let report = |result| started.send(result).unwrap_or_default();
        match Runtime::build(self.config.driver) {
            Ok((mut runtime, driver)) => {
                self.tally.set_driver(driver.name);
                tracing::info!(
                    worker = self.number,
                    driver = driver.name,
                    reason = driver.reason,
                    "worker starts"
                );
                runtime.run(self.serve(driver, report));
            }
            Err(error) => report(Err(StartError::Driver(error))),
        }
    }

    async fn serve(self, driver: DriverReport, report: impl Fn(Result<DriverReport, StartError>)) {
        let config = &self.config;
        let worker = Rc::new(Worker::new(Parts {
            limits: config.limits.clone(),
            answerer: Answerer::new(config, self.tally.clone()),
            fetcher: config.passthrough.as_ref().map(Fetcher::new),
            token_hop_limit: config.token_hop_limit,
            reader: self.reader,
            tally: self.tally,
            witness: config.witness.clone(),
            waiting: self.waiting,
            bell: self.post.bell,
            breaks: Breaks::new(config.scheduling, monotonic()),
            signals: self.post.signals,
            ticker: self.ticker,
        }));
        let doors: io::Result<Vec<_>> = self
            .doors
            .into_iter()
            .map(|(door, socket)| Ok((door, Listener::new(socket)?)))
            .collect();
        let (doors, mut wire) = match doors.and_then(|doors| Ok((doors, Wire::new(self.wire)?))) {
            Ok(sockets) => sockets,
            Err(error) => return report(Err(StartError::Worker(error))),
        };
        for (door, listener) in doors {
            let accepting = Rc::clone(&worker).accept(listener, door);
            let worker = Rc::clone(&worker);
            seam::spawn(accepting, move || {
                tracing::error!("accepting panicked; its worker ends");
                worker.deafen();
            });
        }
        report(Ok(driver));
        let mut buffer = Vec::with_capacity(16);
        loop {
            let (rung, returned) = wire.rung(buffer).await;
            buffer = returned;
            self.doorbell.answer();
            worker.on_ring();
            let ended = worker.is_deaf() || (worker.is_draining() && worker.is_done());
            if !rung || ended || self.abandon.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

impl Plane {
    /// Bytes of one message on [`Plane::waiting`]: an address as IPv6, IPv4 ones mapped.
    pub const WAITING_BYTES: usize = 16;

    /// Where the metadata door listens, in the order of the configuration.
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Where the container door listens, in the order of the configuration.
    pub fn container_listening(&self) -> &[SocketAddr] {
        &self.container_listening
    }

    /// Which driver runs, and why.
    pub const fn driver(&self) -> &DriverReport {
        &self.driver
    }

    /// Which workers are there.
    pub fn present(&self) -> Present {
        self.present.clone()
    }

    /// Tells the workers that something was published; may be cloned and sent anywhere.
    pub fn ringer(&self) -> Ringer {
        self.ringer.clone()
    }

    /// Where the addresses of parked peers arrive: non-blocking, one datagram of
    /// [`Plane::WAITING_BYTES`] per peer that begins to wait.
    pub fn waiting(&self) -> io::Result<UnixDatagram> {
        self.waiting.try_clone()
    }

    /// The listening sockets once more, for a successor.
    pub fn sockets(&self) -> io::Result<Vec<TcpListener>> {
        self.shutters.iter().map(TcpListener::try_clone).collect()
    }

    /// Stops accepting, lets requests under way finish for at most `grace`, and ends the workers.
    /// Blocks. `true` when every request was answered.
    ///
    /// Not for sockets that another process has: they end for it too.
    pub fn drain(self, grace: Duration) -> bool {
        // First, so that the workers know who shut them down.
        self.tell(|signals| &signals.draining);
        for socket in &self.shutters {
            if let Err(error) = rustix::net::shutdown(socket, rustix::net::Shutdown::Both) {
                tracing::debug!(%error, "a listening socket cannot be shut down");
            }
        }
        self.end(grace, Duration::ZERO)
    }

    /// The same when a successor has the listening sockets, which therefore stay as they are. Idle
    /// connections have half of `grace` to ask once more, and are told then that it was the last
    /// time: one that is closed while its next request is on the way would be reset.
    pub fn retire(self, grace: Duration) -> bool {
        self.end(grace, grace / 2)
    }

    fn tell(&self, what: fn(&Signals) -> &AtomicBool) {
        for post in self.ringer.posts.iter() {
            what(&post.signals).store(true, Ordering::SeqCst);
        }
        self.ringer.ring_all();
        self.ticker.unpark();
    }

    fn end(self, grace: Duration, patience: Duration) -> bool {
        let deadline = later(monotonic(), grace);
        let wait = |until: Duration| match self.ended.recv_timeout(until) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) => false,
        };
        self.tell(|signals| &signals.draining);
        let drained = (!patience.is_zero() && wait(patience)) || {
            self.tell(|signals| &signals.closing);
            wait(deadline.saturating_duration_since(monotonic()))
        };
        if !drained {
            self.abandon.store(true, Ordering::Relaxed);
            self.ringer.ring_all();
            wait(Duration::from_secs(1));
        }
        self.stop_ticking.store(true, Ordering::Relaxed);
        self.ticker.unpark();
        drained
    }
}

impl fmt::Debug for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plane")
            .field("listening", &self.listening)
            .field("container_listening", &self.container_listening)
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}
