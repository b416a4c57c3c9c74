//! One worker: everything its connections share, and what happens when its doorbell rings.
//!
//! All of it lives on one thread, so it is cells and counted references, no atomics and no waiting
//! for each other.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use kiam_wire::process::seldom::Seldom;
use rustc_hash::FxHashMap;

use super::answer::{Answerer, Asking, Door, Sought};
use super::connection;
use super::descriptor;
use super::limits::Limits;
use super::moment::Moment;
use super::passthrough::Fetcher;
use super::peers::{Peer, Peers};
use super::places::Places;
use super::schedule::Breaks;
use super::seam::{self, Listener, Stopper, Stream};
use super::turns::{Beat, Turns};
use super::watch::Watch;
use crate::buffer::wipe;
use crate::clock::{Now, later, monotonic};
use crate::doorbell::{Bell, Eager};
use crate::intercept::witness::Witness;
use crate::snapshot::Reader;
use crate::tally::{Limited, TallyOf, add};

/// Between two looks through all connections.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
/// Connections accepted in a row before those that are open come first.
const ACCEPTS_MAX: u32 = 16;
/// Answer buffers kept for the next connection that needs one.
const SPARE_BUFFERS_MAX: usize = 64;
/// An answer and some pipelined ones.
const BUFFER_BYTES: usize = 4 * 1024;
/// A buffer that grew beyond this is not kept.
const BUFFER_BYTES_KEPT_MAX: usize = 64 * 1024;

/// What the rest of the process may see of a worker.
#[derive(Debug, Clone, Default)]
pub(super) struct Signals {
    /// Requests are parked: tick often, and ring when something is published.
    pub(super) eager: Arc<Eager>,
    /// Nobody is let in yet.
    pub(super) closed: Arc<AtomicBool>,
    /// The worker is to end.
    pub(super) draining: Arc<AtomicBool>,
    /// And closes connections that have nothing to do.
    pub(super) closing: Arc<AtomicBool>,
}

/// What a worker is made of.
pub(super) struct Parts {
    pub(super) limits: Limits,
    pub(super) answerer: Answerer,
    pub(super) fetcher: Option<Fetcher>,
    pub(super) token_hop_limit: Option<std::num::NonZeroU8>,
    pub(super) reader: Reader,
    pub(super) tally: TallyOf,
    pub(super) witness: Option<Arc<Witness>>,
    pub(super) waiting: UnixDatagram,
    /// Its own doorbell's.
    pub(super) bell: Bell,
    pub(super) breaks: Breaks,
    pub(super) signals: Signals,
    pub(super) ticker: Thread,
}

/// One worker.
pub(super) struct Worker {
    pub(super) limits: Limits,
    pub(super) answerer: Answerer,
    pub(super) fetcher: Option<Fetcher>,
    pub(super) token_hop_limit: Option<std::num::NonZeroU8>,
    pub(super) peers: Peers,
    pub(super) tally: TallyOf,
    reader: RefCell<Reader>,
    moment: RefCell<Moment>,
    places: RefCell<Places>,
    /// Those who wait for their pod, by their places.
    parked: RefCell<FxHashMap<usize, Rc<Watch>>>,
    swept_at: Cell<Instant>,
    spare: RefCell<Vec<Vec<u8>>>,
    rings: Beat,
    sweeps: Beat,
    bell: Bell,
    breaks: Breaks,
    witness: Option<Arc<Witness>>,
    waiting: UnixDatagram,
    signals: Signals,
    ticker: Thread,
    stop_accepting: Stopper,
    /// One reference for each task that accepts, and this one.
    accepting: Rc<()>,
    /// One of its listening sockets has ended.
    deaf: Cell<bool>,
}

impl Worker {
    pub(super) fn new(parts: Parts) -> Self {
        let now = Now::read();
        let Parts {
            limits,
            answerer,
            fetcher,
            token_hop_limit,
            reader,
            tally,
            witness,
            waiting,
            bell,
            breaks,
            signals,
            ticker,
        } = parts;
        Self {
            peers: Peers::new(&limits),
            limits,
            answerer,
            fetcher,
            token_hop_limit,
            tally,
            reader: RefCell::new(reader),
            moment: RefCell::new(Moment::new(now)),
            places: RefCell::default(),
            parked: RefCell::default(),
            swept_at: Cell::new(now.monotonic),
            spare: RefCell::default(),
            rings: Beat::default(),
            sweeps: Beat::default(),
            bell,
            breaks,
            witness,
            waiting,
            signals,
            ticker,
            stop_accepting: Stopper::default(),
            accepting: Rc::default(),
            deaf: Cell::new(false),
        }
    }

    /// Accepts until the worker is to end.
    pub(super) async fn accept(self: Rc<Self>, listener: Listener, door: Door) {
        let mut trouble = Seldom::default();
        let accepting = Rc::clone(&self.accepting);
        let mut turns = Turns::new(ACCEPTS_MAX);
        self.opened().await;
        while !self.is_draining() {
            if turns.are_up() {
                self.let_others().await;
                // The end may have come meanwhile.
                continue;
            }
            let accepted = pin!(listener.accept(&self.stop_accepting));
            match turns.take(accepted).await {
                Ok((stream, peer)) => {
                    self.admit(stream, peer, door);
                }
                Err(_) if self.is_draining() => break,
                // Somebody else who had it has shut it down: nothing will ever come in by it again.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    tracing::error!(%error, "a listening socket was shut down; its worker ends");
                    self.deafen();
                    break;
                }
                Err(error) => {
                    add(&self.tally.accept_errors);
                    // Usually the limit of open files. What is open goes on, and the kernel keeps
                    // who comes meanwhile; trying again at once would only burn the processor.
                    if let Some(times) = trouble.happened(monotonic(), later) {
                        tracing::warn!(%error, times, "cannot accept connections; trying again on every tick");
                    }
                    self.rings.next().await;
                }
            }
        }
        drop(accepting);
    }

    /// One of its listening sockets is served no longer: it ends, and with it its share of them.
    pub(super) fn deafen(&self) {
        self.deaf.set(true);
        self.bell.ring();
    }

    /// Returns when it may let somebody in.
    async fn opened(&self) {
        while self.signals.closed.load(Ordering::Relaxed) && !self.is_draining() {
            self.rings.next().await;
        }
    }

    fn admit(self: &Rc<Self>, stream: Stream, peer: SocketAddr, door: Door) {
        add(&self.tally.connections);
        self.witness(&stream);
        let open = count(self.places.borrow().len());
        if open >= self.limits.connections_max {
            self.turn_away(peer, Limited::Connections);
            return;
        }
        let now = monotonic();
        let Some(peer) = self.peers.connected(peer.ip().to_canonical(), open, now) else {
            self.turn_away(peer, Limited::PeerConnections);
            return;
        };
        let watch = Rc::new(Watch::new(later(now, self.limits.idle_timeout)));
        let place = self.places.borrow_mut().take(Rc::clone(&watch));
        self.tally.connections_now.fetch_add(1, Ordering::Relaxed);
        let seat = Seat {
            worker: Rc::clone(self),
            peer,
            watch,
            place,
        };
        let worker = Rc::clone(self);
        seam::spawn(connection::serve(stream, seat, door, now), move || {
            add(&worker.tally.panics);
            tracing::error!("a connection panicked; it was closed and the others go on");
        });
    }

    fn turn_away(&self, peer: SocketAddr, limit: Limited) {
        self.tally.limited(limit);
        if let Some(witness) = &self.witness {
            witness.turned_away(peer.port());
        }
    }

    /// Finds out whether this connection came through the rules, until one did.
    fn witness(&self, stream: &Stream) {
        let Some(witness) = self.witness.as_ref().filter(|witness| witness.wants()) else {
            return;
        };
        match descriptor::of(stream.number()) {
            Ok(connection) => witness.look(&connection),
            Err(error) => tracing::debug!(%error, "cannot tell how a connection came here"),
        }
    }

    /// The doorbell has rung: something was published, or time has passed.
    pub(super) fn on_ring(&self) {
        let now = Now::read();
        self.moment.borrow_mut().advance(now);
        self.rings.happen();
        self.breaks.take(now.monotonic);
        let mut reader = self.reader.borrow_mut();
        // Also when nothing is parked: it lets go of the snapshot before, and of its secrets.
        let snapshot = reader.current();
        for watch in self.parked.borrow().values() {
            watch.wake_if(|sought| !sought.is_missing(snapshot, now));
            watch.sweep(now.monotonic);
        }
        if self.is_draining() {
            self.stop_accepting.stop();
        }
        if self.signals.closing.load(Ordering::Relaxed) {
            self.places
                .borrow()
                .iter()
                .for_each(|watch| watch.end_if_idle());
        }
        if now.monotonic.saturating_duration_since(self.swept_at.get()) >= SWEEP_INTERVAL {
            self.swept_at.set(now.monotonic);
            self.places
                .borrow()
                .iter()
                .for_each(|watch| watch.sweep(now.monotonic));
            self.peers.forget(now.monotonic);
            self.sweeps.happen();
        }
    }

    /// Waits until everyone else has had their turn. The ring goes through the kernel, and with it
    /// comes whatever else has arrived.
    pub(super) async fn let_others(&self) {
        self.bell.ring();
        self.rings.next().await;
    }

    /// Waits for the next look through all connections, a quarter to half a second.
    pub(super) async fn next_sweep(&self) {
        self.sweeps.next().await;
    }

    /// Calls `with` with the newest snapshot and the time.
    pub(super) fn look<T>(&self, with: impl FnOnce(&crate::snapshot::Snapshot, &Moment) -> T) -> T {
        let moment = self.moment.borrow();
        with(self.reader.borrow_mut().current(), &moment)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.signals.draining.load(Ordering::Relaxed)
    }

    /// Whether every connection has ended, and none is being accepted.
    pub(super) fn is_done(&self) -> bool {
        Rc::strong_count(&self.accepting) == 1 && self.places.borrow().len() == 0
    }

    /// Whether it can no longer be reached.
    pub(super) const fn is_deaf(&self) -> bool {
        self.deaf.get()
    }

    /// An empty buffer for answers.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.spare
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
    }

    /// Takes a buffer back, wiped: it has held secrets.
    pub(super) fn give_back(&self, mut buffer: Vec<u8>) {
        wipe(&mut buffer);
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_BUFFERS_MAX && buffer.capacity() <= BUFFER_BYTES_KEPT_MAX {
            spare.push(buffer);
        }
    }

    /// Says that requests of `ip` have begun to wait. Never blocks: when the control thread is that
    /// far behind, one message more would not help.
    fn report_waiting(&self, ip: IpAddr) {
        let octets = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        if let Err(error) = self.waiting.send(&octets) {
            tracing::debug!(%error, "a waiting peer could not be reported");
        }
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// A connection's place at its worker; given back when dropped.
pub(super) struct Seat {
    pub(super) worker: Rc<Worker>,
    pub(super) peer: Rc<Peer>,
    pub(super) watch: Rc<Watch>,
    place: usize,
}

impl Seat {
    /// Lets the connection wait for `sought` until `deadline`; `None` when too many wait already.
    pub(super) fn park(&self, sought: &Sought, deadline: Instant) -> Option<Parked<'_>> {
        let worker = &self.worker;
        let waiting = count(worker.parked.borrow().len());
        if waiting >= worker.limits.parked_max {
            worker.tally.limited(Limited::Parked);
            return None;
        }
        let Some(first) = worker.peers.parked(&self.peer, waiting) else {
            worker.tally.limited(Limited::PeerParked);
            return None;
        };
        self.watch.seek(sought.clone(), deadline);
        worker
            .parked
            .borrow_mut()
            .insert(self.place, Rc::clone(&self.watch));
        worker.tally.parked_now.fetch_add(1, Ordering::Relaxed);
        add(&worker.tally.parked);
        // Before the look below, so that no publication is slept through.
        if worker.signals.eager.begin() {
            worker.ticker.unpark();
        }
        if first.0 {
            worker.report_waiting(match sought {
                Sought::Address(ip) => *ip,
                Sought::Uid(_) | Sought::Anyone => self.peer.ip,
            });
        }
        worker.look(|snapshot, moment| {
            self.watch
                .wake_if(|sought| !sought.is_missing(snapshot, moment.now));
        });
        Some(Parked(self))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.worker.places.borrow_mut().leave(self.place);
        self.worker
            .tally
            .connections_now
            .fetch_sub(1, Ordering::Relaxed);
        self.peer.disconnected();
    }
}

/// A connection's place among those that wait; given back when dropped.
pub(super) struct Parked<'a>(&'a Seat);

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        let worker = &self.0.worker;
        let mut parked = worker.parked.borrow_mut();
        parked.remove(&self.0.place);
        if parked.is_empty() {
            worker.signals.eager.end();
        }
        worker.tally.parked_now.fetch_sub(1, Ordering::Relaxed);
        self.0.peer.unparked();
    }
}

/// What an answer depends on, put together.
pub(super) const fn asking<'a>(
    door: Door,
    peer: IpAddr,
    request: &'a super::request::Request<'a>,
    snapshot: &'a crate::snapshot::Snapshot,
    moment: &'a Moment,
    out_of_time: bool,
) -> Asking<'a> {
    Asking {
        door,
        peer,
        request,
        snapshot,
        moment,
        out_of_time,
    }
}
