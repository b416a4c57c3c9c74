//! What each peer takes up of a worker, so that one noisy pod cannot slow down another.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::limits::{Limits, share};
use crate::clock::later;

/// One address that has connections, or had some just now.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) ip: IpAddr,
    connections: Cell<u32>,
    parked: Cell<u32>,
    /// When the peer's requests so far would have been made at its sustained rate. In the future
    /// by as much as it has used up of its burst.
    even: Cell<Instant>,
    /// The same for requests of tokens, which are given beyond that rate.
    even_tokens: Cell<Instant>,
    /// Requests beyond the rate since the last within it.
    over: Cell<u32>,
}

/// Requests beyond the rate that are still taken in at once. More is what no client sends that
/// reads its answers.
const OVER_MAX: u32 = 16;

/// All peers of one worker.
#[derive(Debug)]
pub(super) struct Peers {
    known: RefCell<FxHashMap<IpAddr, Rc<Peer>>>,
    /// Of all peers together, and of each.
    connections_max: (u32, u32),
    parked_max: (u32, u32),
    /// Between two requests at the sustained rate.
    interval: Duration,
    /// How far ahead of the sustained rate a peer may be.
    burst: Duration,
}

impl Peers {
    pub(super) fn new(limits: &Limits) -> Self {
        let interval = Duration::from_secs(1) / limits.peer_requests_per_s.max(1);
        Self {
            known: RefCell::default(),
            connections_max: (limits.connections_max, limits.peer_connections_max),
            parked_max: (limits.parked_max, limits.peer_parked_max),
            interval,
            burst: interval.saturating_mul(limits.peer_burst.max(1)),
        }
    }

    /// One connection more of `ip` beside `open` of everyone's; `None` when that would be too many.
    /// Give it back with [`Peer::disconnected`].
    pub(super) fn connected(&self, ip: IpAddr, open: u32, now: Instant) -> Option<Rc<Peer>> {
        let mut known = self.known.borrow_mut();
        let peer = known.entry(ip).or_insert_with(|| {
            Rc::new(Peer {
                ip,
                connections: Cell::new(0),
                parked: Cell::new(0),
                even: Cell::new(now),
                even_tokens: Cell::new(now),
                over: Cell::new(0),
            })
        });
        let (all, each) = self.connections_max;
        if peer.connections.get() >= share(all, each, open) {
            return None;
        }
        peer.connections.set(peer.connections.get() + 1);
        Some(Rc::clone(peer))
    }

    /// Counts a request of `peer`; `false` when it makes too many.
    pub(super) fn may_ask(&self, peer: &Peer, now: Instant) -> bool {
        self.count(&peer.even, peer, now)
    }

    /// Counts a request of `peer` for a token, which is given in any case.
    pub(super) fn asks_for_token(&self, peer: &Peer, now: Instant) {
        let _within: bool = self.count(&peer.even_tokens, peer, now);
    }

    fn count(&self, even: &Cell<Instant>, peer: &Peer, now: Instant) -> bool {
        let Some(next) = self.next(even, now) else {
            peer.over.set(peer.over.get().saturating_add(1));
            return false;
        };
        even.set(next);
        peer.over.set(0);
        true
    }

    /// What `even` becomes by one request more; `None` when that is beyond the rate.
    fn next(&self, even: &Cell<Instant>, now: Instant) -> Option<Instant> {
        let next = later(even.get().max(now), self.interval);
        (next.saturating_duration_since(now) <= self.burst).then_some(next)
    }

    /// Whether so much came beyond the rate that nothing more is to be taken in for now.
    pub(super) fn is_over(peer: &Peer) -> bool {
        peer.over.get() >= OVER_MAX
    }

    /// Whether the rate allows a request of each kind again.
    pub(super) fn may_go_on(&self, peer: &Peer, now: Instant) -> bool {
        self.next(&peer.even, now).is_some() && self.next(&peer.even_tokens, now).is_some()
    }

    /// One parked request more of `peer` beside `waiting` of everyone's; `None` when that would be too
    /// many, else whether it is the first. Give it back with [`Peer::unparked`].
    pub(super) fn parked(&self, peer: &Peer, waiting: u32) -> Option<First> {
        let parked = peer.parked.get();
        let (all, each) = self.parked_max;
        if parked >= share(all, each, waiting) {
            return None;
        }
        peer.parked.set(parked + 1);
        Some(First(parked == 0))
    }

    /// Forgets peers that have no connections and nothing to answer for.
    pub(super) fn forget(&self, now: Instant) {
        self.known
            .borrow_mut()
            .retain(|_, peer| peer.connections.get() > 0 || peer.is_uneven(now));
    }
}

/// Whether a peer has just begun to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct First(pub(super) bool);

impl Peer {
    /// Whether it has used up something of a burst.
    fn is_uneven(&self, now: Instant) -> bool {
        self.even.get() > now || self.even_tokens.get() > now
    }

    pub(super) fn disconnected(&self) {
        self.connections
            .set(self.connections.get().saturating_sub(1));
    }

    pub(super) fn unparked(&self) {
        self.parked.set(self.parked.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::monotonic;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn peers() -> Peers {
        Peers::new(&Limits {
            peer_connections_max: 2,
            peer_requests_per_s: 10,
            peer_burst: 3,
            peer_parked_max: 1,
            ..Limits::default()
        })
    }

    #[test]
    fn connections_are_counted_and_given_back() {
        let (peers, now) = (peers(), monotonic());
        let first = peers.connected(IP, 0, now).unwrap();
        let second = peers.connected(IP, 0, now).unwrap();
        assert!(peers.connected(IP, 0, now).is_none());
        first.disconnected();
        assert!(peers.connected(IP, 0, now).is_some());
        drop(second);
    }

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let (peers, now) = (peers(), monotonic());
        let peer = peers.connected(IP, 0, now).unwrap();
        let granted = |now| (0..10).filter(|_| peers.may_ask(&peer, now)).count();
        assert_eq!(granted(now), 3);
        assert_eq!(granted(later(now, Duration::from_millis(100))), 1);
        assert_eq!(granted(later(now, Duration::from_secs(9))), 3);
    }

    #[test]
    fn what_comes_beyond_the_rate_is_taken_in_more_slowly() {
        let (peers, now) = (peers(), monotonic());
        let peer = peers.connected(IP, 0, now).unwrap();
        for _ in 0..3 + OVER_MAX {
            assert!(!Peers::is_over(&peer));
            peers.may_ask(&peer, now);
        }
        assert!(Peers::is_over(&peer) && !peers.may_go_on(&peer, now));
        let soon = later(now, Duration::from_millis(100));
        assert!(peers.may_go_on(&peer, soon));
        assert!(peers.may_ask(&peer, soon));
        assert!(!Peers::is_over(&peer));
    }

    #[test]
    fn tokens_are_counted_apart() {
        let (peers, now) = (peers(), monotonic());
        let peer = peers.connected(IP, 0, now).unwrap();
        for _ in 0..3 + OVER_MAX {
            assert!(!Peers::is_over(&peer));
            peers.asks_for_token(&peer, now);
        }
        assert!(Peers::is_over(&peer));
        assert!(peers.may_ask(&peer, now), "other requests have their own");
        peer.disconnected();
        peers.forget(now);
        assert_eq!(peers.known.borrow().len(), 1, "it is remembered");
    }

    #[test]
    fn reconnecting_buys_no_new_burst() {
        let (peers, now) = (peers(), monotonic());
        let peer = peers.connected(IP, 0, now).unwrap();
        while peers.may_ask(&peer, now) {}
        peer.disconnected();
        peers.forget(now);
        let again = peers.connected(IP, 0, now).unwrap();
        assert!(!peers.may_ask(&again, now));
        again.disconnected();
        peers.forget(later(now, Duration::from_secs(9)));
        assert!(peers.known.borrow().is_empty());
    }

    #[test]
    fn the_first_parked_request_is_told_apart() {
        let (peers, now) = (peers(), monotonic());
        let peer = peers.connected(IP, 0, now).unwrap();
        assert_eq!(peers.parked(&peer, 0), Some(First(true)));
        assert_eq!(peers.parked(&peer, 0), None);
        peer.unparked();
        assert_eq!(peers.parked(&peer, 0), Some(First(true)));
    }
}
