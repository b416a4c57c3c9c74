//! Who is connected and has not shown who they are, and who may connect besides.
//!
//! A place is taken by a handshake, and kept after it until somebody is known to be there.
//! Places are limited and a client need not say a word to take one, so they are shared by address:
//! - No address has more than a small part of the places.
//! - When all are taken, whoever has none goes before whoever has several: the oldest handshake of
//!   the address with the most makes room. Agents have one each, so those who pile up make room for
//!   them, however many addresses they use to do it.
//! - When all are taken and nobody has more than one, newcomers wait, and everyone is given less
//!   time: that is what all agents of a large cluster coming back at once looks like.
//!
//! Agents connect from their nodes' addresses, and behind an address translation a few of them from
//! one. The machine itself, as 127.0.0.1 or ::1, takes places and is otherwise left alone: whoever is
//! there is no stranger on the network.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

/// How long a handshake may take while there is room.
const PATIENCE: Duration = Duration::from_secs(5);
/// And once three quarters of the places are taken.
const PATIENCE_CROWDED: Duration = Duration::from_secs(2);

/// How long somebody may stay after the handshake without having shown who they are. Agents do so
/// with their first words; the API server may have to be asked about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stay(Duration);

impl Stay {
    /// While there is room.
    pub(super) const USUAL: Self = Self(Duration::from_secs(15));
    /// Once three quarters of the places are taken.
    const CROWDED: Self = Self(Duration::from_secs(10));

    /// That long.
    pub(super) const fn get(self) -> Duration {
        self.0
    }
}

/// The address, when it is not this machine's own.
pub(super) fn stranger(from: IpAddr) -> Option<IpAddr> {
    let own = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    Some(from.to_canonical()).filter(|from| !own.contains(from))
}

/// The places, and who has them.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    max: usize,
    each_max: usize,
    taken: Arc<Mutex<Taken>>,
    freed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    begun: u64,
    /// Oldest first; no address is without any.
    by_address: HashMap<IpAddr, VecDeque<Place>>,
}

#[derive(Debug)]
struct Place {
    number: u64,
    /// Dropped to have the handshake given up.
    _evicted: oneshot::Sender<()>,
}

/// What a newcomer is told.
#[derive(Debug)]
enum Begun {
    /// Go ahead.
    Yes(Unfinished),
    /// Its address has what it may have.
    No,
    /// Ask again when a place has been freed.
    Wait,
}

/// One who has not shown who they are. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Unfinished {
    from: Option<IpAddr>,
    number: u64,
    sources: Sources,
    /// `None`: never.
    evicted: Option<oneshot::Receiver<()>>,
    is_crowded: bool,
}

impl Sources {
    /// `max` places, and at most `each_max` of them for each address.
    pub(crate) fn new(max: usize, each_max: usize) -> Self {
        Self {
            max,
            each_max,
            taken: Arc::default(),
            freed: Arc::default(),
        }
    }

    /// A handshake with this address begins, if it may.
    fn begin(&self, from: IpAddr) -> Begun {
        let from = stranger(from);
        let mut taken = self.lock();
        let has = |from| taken.by_address.get(&from).map_or(0, VecDeque::len);
        let already = from.map_or(0, has);
        if already >= self.each_max {
            return Begun::No;
        }
        if taken.total >= self.max {
            match from {
                Some(_) if already > 0 => return Begun::No,
                Some(_) | None if taken.evict_of_the_many() => {}
                Some(_) | None => return Begun::Wait,
            }
        }
        Begun::Yes(self.place(from, &mut taken))
    }

    /// A place for this address, once there is one; `None` when it has enough.
    pub(crate) async fn place_for(&self, from: IpAddr) -> Option<Unfinished> {
        loop {
            match self.begin(from) {
                Begun::Yes(unfinished) => return Some(unfinished),
                Begun::No => return None,
                Begun::Wait => self.freed().await,
            }
        }
    }

    /// Comes back when a place has been freed since the last time.
    async fn freed(&self) {
        self.freed.notified().await;
    }

    fn place(&self, from: Option<IpAddr>, taken: &mut Taken) -> Unfinished {
        let number = taken.begun;
        taken.begun += 1;
        taken.total += 1;
        let evicted = from.map(|from| {
            let (sender, evicted) = oneshot::channel();
            let place = Place {
                number,
                _evicted: sender,
            };
            taken.by_address.entry(from).or_default().push_back(place);
            evicted
        });
        Unfinished {
            from,
            number,
            sources: self.clone(),
            evicted,
            is_crowded: taken.total * 4 > self.max * 3,
        }
    }

    /// A poisoned lock guards counts that are still right.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Gives up the oldest handshake of the address with the most, if any has several.
    fn evict_of_the_many(&mut self) -> bool {
        // Walks every address, but only when all places are taken, and there are few.
        let most = self
            .by_address
            .iter()
            .filter(|(_from, places)| places.len() > 1)
            .max_by_key(|(_from, places)| places.len())
            .map(|(from, _places)| *from);
        let Some(places) = most.and_then(|from| self.by_address.get_mut(&from)) else {
            return false;
        };
        places.pop_front();
        self.total -= 1;
        true
    }

    fn end(&mut self, from: Option<IpAddr>, number: u64) {
        let Some(from) = from else {
            self.total -= 1;
            return;
        };
        if let Entry::Occupied(mut places) = self.by_address.entry(from) {
            let before = places.get().len();
            places.get_mut().retain(|place| place.number != number);
            // One that was given up is not counted any more.
            self.total -= before - places.get().len();
            if places.get().is_empty() {
                places.remove();
            }
        }
    }
}

impl Unfinished {
    /// How long the handshake may take.
    pub(super) const fn patience(&self) -> Duration {
        if self.is_crowded {
            PATIENCE_CROWDED
        } else {
            PATIENCE
        }
    }

    /// How long they may stay after it.
    pub(super) const fn stay(&self) -> Stay {
        if self.is_crowded {
            Stay::CROWDED
        } else {
            Stay::USUAL
        }
    }

    /// Comes back when it has to make room for another.
    pub(crate) async fn evicted(&mut self) {
        std::future::poll_fn(|context| self.poll_evicted(context)).await;
    }

    /// Ready when it has to make room for another.
    pub(super) fn poll_evicted(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(evicted) = &mut self.evicted else {
            return Poll::Pending;
        };
        // Once it has said so it is not to be asked again.
        if evicted.is_terminated() {
            return Poll::Ready(());
        }
        Pin::new(evicted).poll(context).map(drop)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.sources.lock().end(self.from, self.number);
        self.sources.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[track_caller]
    fn yes(begun: Begun) -> Unfinished {
        match begun {
            Begun::Yes(unfinished) => unfinished,
            Begun::No | Begun::Wait => panic!("{begun:?}"),
        }
    }

    fn is_evicted(unfinished: &mut Unfinished) -> bool {
        unfinished.evicted().now_or_never().is_some()
    }

    #[test]
    fn an_address_has_its_share_and_no_more_until_one_ends() {
        let sources = Sources::new(100, 2);
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let first = yes(sources.begin(ip(1)));
        let second = yes(sources.begin(mapped));
        assert!(matches!(sources.begin(ip(1)), Begun::No));
        let third = yes(sources.begin(ip(2)));
        drop(first);
        let fourth = yes(sources.begin(ip(1)));
        assert!(matches!(sources.begin(mapped), Begun::No));
        drop((second, third, fourth));
        let taken = sources.lock();
        assert!(taken.by_address.is_empty(), "nothing is kept of those gone");
        assert_eq!(taken.total, 0);
    }

    #[test]
    fn those_who_pile_up_make_room_for_those_who_do_not() {
        let sources = Sources::new(6, 4);
        let mut hoards: Vec<Unfinished> =
            [1, 1, 1, 1, 2, 2].map(|n| yes(sources.begin(ip(n)))).into();
        // Full: who has one already gets no more, who has none gets the oldest of the most.
        assert!(matches!(sources.begin(ip(2)), Begun::No));
        let newcomers: Vec<Unfinished> = (3..7).map(|n| yes(sources.begin(ip(n)))).collect();
        let evicted: Vec<bool> = hoards.iter_mut().map(is_evicted).collect();
        assert_eq!(evicted, [true, true, true, false, true, false]);
        // Now everybody has one, and the next one waits.
        assert!(matches!(sources.begin(ip(9)), Begun::Wait));
        drop(hoards);
        assert_eq!(sources.lock().total, 4, "an eviction is counted once");
        let last = yes(sources.begin(ip(9)));
        drop((newcomers, last));
        assert_eq!(sources.lock().total, 0);
    }

    #[test]
    fn the_machine_itself_takes_places_and_is_never_asked_to_leave() {
        let sources = Sources::new(3, 1);
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        let mut here: Vec<Unfinished> = (0..3).map(|_| yes(sources.begin(local))).collect();
        assert!(matches!(sources.begin(local), Begun::Wait));
        assert!(matches!(sources.begin(ip(1)), Begun::Wait));
        assert!(!here.iter_mut().any(is_evicted));
        here.pop();
        yes(sources.begin(ip(1)));
    }

    #[test]
    fn the_machine_itself_has_room_made_for_it() {
        let sources = Sources::new(2, 2);
        let mut hoard: Vec<Unfinished> = (0..2).map(|_| yes(sources.begin(ip(1)))).collect();
        yes(sources.begin("::1".parse().unwrap()));
        assert!(is_evicted(&mut hoard[0]));
    }

    #[test]
    fn there_is_less_time_when_it_is_crowded() {
        let sources = Sources::new(4, 4);
        let all: Vec<Duration> = (1..5)
            .map(|n| yes(sources.begin(ip(n))))
            .collect::<Vec<_>>()
            .iter()
            .map(Unfinished::patience)
            .collect();
        assert_eq!(all, [PATIENCE, PATIENCE, PATIENCE, PATIENCE_CROWDED]);
        let crowd: Vec<Unfinished> = (1..5).map(|n| yes(sources.begin(ip(n)))).collect();
        let stays: Vec<Stay> = crowd.iter().map(Unfinished::stay).collect();
        assert_eq!(stays[2..], [Stay::USUAL, Stay::CROWDED]);
    }

    #[tokio::test]
    async fn who_waits_hears_of_a_place() {
        let sources = Sources::new(1, 1);
        let only = yes(sources.begin(ip(1)));
        assert!(matches!(sources.begin(ip(2)), Begun::Wait));
        drop(only);
        // Freed between the question and the waiting: not missed.
        sources.freed().await;
        yes(sources.begin(ip(2)));
    }
}
