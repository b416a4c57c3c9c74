//! What sockets wait for, and telling them when it happens.
//!
//! Sockets are registered when they first wait, and only then: the client of a new connection has
//! mostly said something by the time it is accepted. News is edge-triggered, so that a socket nobody
//! waits for is told of once, and each socket remembers what it was told until it finds it no longer so.

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

#[derive(Debug)]
struct Known {
    /// Tells this socket from earlier ones at its place.
    generation: u32,
    /// What it was told and has not found to be no longer so: that it is readable (`IN`), that it always
    /// will be, as nothing more comes (`RDHUP`), that there is room to send (`OUT`).
    told: EventFlags,
    /// Told about room to send at all.
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
            known.told |= flags;
            if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                known.told |= EventFlags::RDHUP | EventFlags::OUT;
            }
            if known.told.contains(EventFlags::RDHUP) {
                known.told |= EventFlags::IN;
            }
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
            told: EventFlags::empty(),
            sends: false,
            waker: None,
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
                Direction::In => known.told.contains(EventFlags::IN),
                Direction::Out => known.told.contains(EventFlags::OUT),
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
            Direction::In => known.told.remove(EventFlags::IN | EventFlags::RDHUP),
            Direction::Out => known.told.remove(EventFlags::OUT),
        });
    }

    /// There was less to receive than was asked for: the kernel tells when there is more, and has
    /// perhaps told already that there never will be. (A client that sends urgent data, which none does,
    /// gets less as well, and its own request waits for its next byte.)
    pub(super) fn is_drained(&self) {
        self.with(|known| {
            let always = known.told.contains(EventFlags::RDHUP);
            known.told.set(EventFlags::IN, always);
        });
    }

    /// From now on `socket`, which is the one that was registered, is told about room to send too.
    pub(super) fn sends(&self, socket: impl AsFd) -> io::Result<()> {
        if self.with(|known| known.sends) {
            return Ok(());
        }
        let flags = INCOMING | EventFlags::OUT;
        epoll::modify(&self.all.epoll, socket, self.mark(), flags)?;
        self.with(|known| known.sends = true);
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    fn is_ready(source: &Source) -> bool {
        source
            .poll(Direction::In, &Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn news_of_a_closed_socket_is_not_for_the_next_at_its_place() {
        let sources = Rc::new(Sources::new().unwrap());
        let (socket, mut client) = pair();
        let before = sources.add(&socket).unwrap();
        // Somebody else has it too, so that closing it here does not end the registration.
        let _elsewhere = socket.try_clone().unwrap();
        let place = before.place;
        drop((socket, before));
        let (socket, mut next_client) = pair();
        let next = sources.add(&socket).unwrap();
        assert_eq!(next.place, place);
        client.write_all(b"to the one before").unwrap();
        sources.listen(false).unwrap();
        assert_eq!(sources.events.borrow().len(), 1, "the kernel tells");
        assert!(!is_ready(&next));
        next_client.write_all(b"to this one").unwrap();
        sources.listen(false).unwrap();
        assert!(is_ready(&next));
    }

    #[test]
    fn nothing_is_told_of_what_was_removed() {
        let sources = Rc::new(Sources::new().unwrap());
        let (socket, mut client) = pair();
        let source = sources.add(&socket).unwrap();
        source.remove(&socket);
        client.write_all(b"to somebody else").unwrap();
        sources.listen(false).unwrap();
        assert!(sources.events.borrow().is_empty());
    }
}
