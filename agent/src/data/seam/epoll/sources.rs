//! What sockets wait for, and telling them when it happens.
//!
//! Sockets are registered when they first wait, and only then: the client of a new connection has
//! mostly said something by the time it is accepted. News is edge-triggered, so that a socket nobody
//! waits for costs nothing, and each socket remembers what it was told until it finds it no longer so.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use slab::Slab;

/// News taken from the kernel at a time.
const EVENTS_MAX: usize = 256;
/// What every registered socket is told: that there is something to receive, and that nothing more
/// will come.
const INCOMING: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

/// Of which there is one for each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// Something to receive, or the end of it.
    In,
    /// Room to send.
    Out,
}

#[derive(Debug, Default)]
struct Known {
    /// Tells this socket from earlier ones at its place.
    generation: u32,
    readable: bool,
    /// Nothing more will come, and there is always that to receive.
    ended: bool,
    writable: bool,
    /// Told about room to send too.
    sends: bool,
    waker: Option<Waker>,
}

/// All sockets of one runtime that wait or have waited.
pub(super) struct Sources {
    epoll: OwnedFd,
    known: RefCell<Slab<Known>>,
    generation: Cell<u32>,
    events: RefCell<Vec<Event>>,
}

impl Sources {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            known: RefCell::default(),
            generation: Cell::new(0),
            events: RefCell::new(Vec::with_capacity(EVENTS_MAX)),
        })
    }

    /// Waits for news, or only looks for some, and tells everyone whom it is about.
    pub(super) fn listen(&self, wait: bool) -> io::Result<()> {
        let mut events = self.events.borrow_mut();
        events.clear();
        let at_once = Timespec::default();
        let timeout = (!wait).then_some(&at_once);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut known = self.known.borrow_mut();
        for event in events.iter() {
            let (generation, place) = parts(event.data.u64());
            // Of a socket that was closed while a child of this process still had it.
            let about = known
                .get_mut(place)
                .filter(|known| known.generation == generation);
            let (Some(known), flags) = (about, event.flags) else {
                continue;
            };
            let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            known.ended |= gone || flags.contains(EventFlags::RDHUP);
            known.readable |= known.ended || flags.contains(EventFlags::IN);
            known.writable |= gone || flags.contains(EventFlags::OUT);
            if let Some(waker) = known.waker.take() {
                waker.wake();
            }
        }
        Ok(())
    }

    /// Registers a socket.
    pub(super) fn add(self: &Rc<Self>, socket: impl AsFd) -> io::Result<Source> {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let known = Known {
            generation,
            ..Known::default()
        };
        let place = self.known.borrow_mut().insert(known);
        let source = Source {
            all: Rc::clone(self),
            place,
            generation,
        };
        epoll::add(&self.epoll, socket, source.mark(), INCOMING)?;
        Ok(source)
    }
}

/// Both halves of an event's mark.
fn parts(mark: u64) -> (u32, usize) {
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
    let place = usize::try_from(half(mark)).unwrap_or(usize::MAX);
    (half(mark >> 32), place)
}

/// One socket's registration. Closing the socket ends it for the kernel; one that others have too is
/// taken out first ([`Source::remove`]).
pub(super) struct Source {
    all: Rc<Sources>,
    place: usize,
    generation: u32,
}

impl Source {
    fn mark(&self) -> EventData {
        let place = u64::try_from(self.place).unwrap_or(u64::MAX);
        EventData::new_u64(u64::from(self.generation) << 32 | place)
    }

    fn with<T: Default>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.all.known.borrow_mut();
        known.get_mut(self.place).map(look).unwrap_or_default()
    }

    /// Ready when the socket is, as far as is known: it may turn out not to be.
    pub(super) fn poll(&self, direction: Direction, cx: &Context<'_>) -> Poll<()> {
        self.with(|known| {
            let ready = match direction {
                Direction::In => known.readable,
                Direction::Out => known.writable,
            };
            if !ready
                && known
                    .waker
                    .as_ref()
                    .is_none_or(|one| !one.will_wake(cx.waker()))
            {
                known.waker = Some(cx.waker().clone());
            }
            ready
        })
        .then_some(())
        .map_or(Poll::Pending, Poll::Ready)
    }

    /// It turned out not to be: the kernel tells when that changes.
    pub(super) fn is_not(&self, direction: Direction) {
        self.with(|known| match direction {
            Direction::In => (known.readable, known.ended) = (false, false),
            Direction::Out => known.writable = false,
        });
    }

    /// There was less to receive than was asked for: the kernel tells when there is more, and has
    /// perhaps told already that there never will be.
    pub(super) fn is_drained(&self) {
        self.with(|known| known.readable = known.ended);
    }

    /// From now on `socket`, which is the one that was registered, is told about room to send too.
    pub(super) fn sends(&self, socket: impl AsFd) -> io::Result<()> {
        if self.with(|known| std::mem::replace(&mut known.sends, true)) {
            return Ok(());
        }
        let flags = INCOMING | EventFlags::OUT;
        epoll::modify(&self.all.epoll, socket, self.mark(), flags)?;
        Ok(())
    }

    /// Ends the registration of a socket that stays open elsewhere.
    pub(super) fn remove(&self, socket: impl AsFd) {
        if let Err(error) = epoll::delete(&self.all.epoll, socket) {
            tracing::debug!(%error, "a socket cannot be taken out of the poll");
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.all.known.borrow_mut().try_remove(self.place);
    }
}
