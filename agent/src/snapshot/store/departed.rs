//! Who had an address and has it no longer.
//!
//! Replicas do not all know the same. One that is behind names a pod for an address that another pod has
//! had since, and an agent that comes to it would be taken back in time with it: it would answer the
//! address's next pod with the credentials of the one before. So what is over is remembered for a while,
//! whoever is named meanwhile: a pod never comes back to an address that it has lost, but by the kernel's
//! word that it had not lost it.
//!
//! Only what proves an order counts: the kernel, and two states of one stream, which follow one another. A
//! Full proves nothing about what came before it, for it may be the older one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use kiam_wire::PodUid;
use rustc_hash::FxHashMap;

use crate::clock::later;

/// How long it is remembered. A replica is behind by seconds, and by a minute or two before it is taken
/// out of its Service.
pub const REMEMBERED: Duration = Duration::from_hours(1);
/// How many are remembered; the oldest make room. A node has hundreds of pods, and with IPv6 each has an
/// address of its own for ever.
pub const DEPARTED_MAX: usize = 4_096;

/// Who says that a pod no longer has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// Its interface or route is gone. Counts for as long as a server names the pod there, however long.
    Kernel,
    /// On one stream the pod was there first, and then was not.
    Server,
}

/// Pods that have lost an address, a bounded number for a bounded time.
#[derive(Debug, Default)]
pub(super) struct Departed {
    /// For each address those who had it, the latest last; never an empty list.
    by_ip: FxHashMap<IpAddr, Vec<Departure>>,
    /// An index of `by_ip`, the oldest first.
    order: BTreeMap<u64, (IpAddr, PodUid)>,
    next: u64,
}

#[derive(Debug)]
struct Departure {
    uid: PodUid,
    word: Word,
    at: Instant,
    /// Where it is in `order`.
    place: u64,
}

impl Departed {
    /// Whether the pod has lost this address.
    pub(super) fn is_shut(&self, ip: IpAddr, uid: &PodUid) -> bool {
        let departures = self.by_ip.get(&ip).into_iter().flatten();
        departures.into_iter().any(|one| one.uid == *uid)
    }

    /// The pod has lost this address. [`Departed::forget`] keeps the bounds.
    pub(super) fn note(&mut self, ip: IpAddr, uid: &PodUid, word: Word, at: Instant) {
        let before = self.find(ip, uid).map(|one| one.word);
        if (before, word) == (Some(Word::Kernel), Word::Server) {
            // What the kernel said is not weakened by a server, nor has the kernel said it again.
            return self.renew(ip, uid, at);
        }
        self.take(ip, |one| one.uid == *uid);
        let place = self.place(ip, uid.clone());
        let uid = uid.clone();
        let departures = self.by_ip.entry(ip).or_default();
        departures.push(Departure {
            uid,
            word,
            at,
            place,
        });
    }

    /// The kernel has shown that whoever it last said to be gone from this address is still there. `false`
    /// when that is not who a server names for it, if it names any.
    pub(super) fn back(&mut self, ip: IpAddr, owner: Option<&PodUid>) -> bool {
        let mut departures = self.by_ip.get(&ip).into_iter().flatten();
        let latest = departures.rfind(|one| one.word == Word::Kernel);
        let Some(uid) = latest.map(|one| one.uid.clone()) else {
            return false;
        };
        owner.is_none_or(|owner| *owner == uid) && self.take(ip, |one| one.uid == uid).is_some()
    }

    /// Forgets what is too old or too much. Returns the pods that may have an address again, because a
    /// server names them for it and only a server's word was against it.
    pub(super) fn forget(
        &mut self,
        now: Instant,
        is_named: impl Fn(IpAddr, &PodUid) -> bool,
    ) -> Vec<PodUid> {
        let mut free = Vec::new();
        // Each is looked at once at most, however many must stay.
        for _ in 0..self.order.len() {
            let Some((_, (ip, uid))) = self.order.first_key_value() else {
                break;
            };
            let (ip, uid) = (*ip, uid.clone());
            let is_too_much = self.order.len() > DEPARTED_MAX;
            let Some(one) = self.find(ip, &uid) else {
                // The index has nothing that is not there.
                self.order.pop_first();
                continue;
            };
            if !is_too_much && later(one.at, REMEMBERED) > now {
                break;
            }
            match (is_named(ip, &uid), one.word) {
                (true, Word::Kernel) => self.renew(ip, &uid, now),
                (true, Word::Server) => {
                    self.take(ip, |one| one.uid == uid);
                    free.push(uid);
                }
                (false, _) => drop(self.take(ip, |one| one.uid == uid)),
            }
        }
        free
    }

    /// Those of whom this was said last by the kernel, or by a server; the oldest first.
    pub(super) fn by(&self, word: Word) -> impl Iterator<Item = (IpAddr, &PodUid)> + '_ {
        let all = self.order.values().map(|(ip, uid)| (*ip, uid));
        all.filter(move |(ip, uid)| self.find(*ip, uid).is_some_and(|one| one.word == word))
    }

    fn find(&self, ip: IpAddr, uid: &PodUid) -> Option<&Departure> {
        self.by_ip.get(&ip)?.iter().find(|one| one.uid == *uid)
    }

    /// As if it had been said now. Who was the latest at the address stays that.
    fn renew(&mut self, ip: IpAddr, uid: &PodUid, now: Instant) {
        let place = self.place(ip, uid.clone());
        let mut departures = self.by_ip.get_mut(&ip).into_iter().flatten();
        if let Some(one) = departures.find(|one| one.uid == *uid) {
            self.order.remove(&one.place);
            (one.at, one.place) = (now, place);
        }
    }

    fn place(&mut self, ip: IpAddr, uid: PodUid) -> u64 {
        let place = self.next;
        self.next += 1;
        self.order.insert(place, (ip, uid));
        place
    }

    fn take(&mut self, ip: IpAddr, which: impl Fn(&Departure) -> bool) -> Option<Departure> {
        let departures = self.by_ip.get_mut(&ip)?;
        let at = departures.iter().position(which)?;
        let one = departures.remove(at);
        if departures.is_empty() {
            self.by_ip.remove(&ip);
        }
        self.order.remove(&one.place);
        Some(one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::monotonic;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn uid(name: &str) -> PodUid {
        PodUid::try_new(name).unwrap()
    }

    const fn nobody(_ip: IpAddr, _uid: &PodUid) -> bool {
        false
    }

    #[test]
    fn a_hundred_thousand_pods_leave_a_bounded_trace() {
        let start = monotonic();
        let mut departed = Departed::default();
        for number in 0..100_000_u32 {
            let ip = IpAddr::from(std::net::Ipv6Addr::from(u128::from(number) + 1));
            let word = [Word::Kernel, Word::Server][usize::from(number % 2 == 0)];
            departed.note(ip, &uid(&number.to_string()), word, start);
            departed.forget(start, nobody);
            assert!(departed.order.len() <= DEPARTED_MAX);
        }
        assert_eq!(departed.order.len(), DEPARTED_MAX);
        assert_eq!(departed.by_ip.len(), DEPARTED_MAX);
        // The latest of them.
        assert_eq!(
            departed.by(Word::Kernel).last().unwrap().1.as_str(),
            "99999"
        );
        departed.forget(later(start, REMEMBERED), nobody);
        assert_eq!((departed.order.len(), departed.by_ip.len()), (0, 0));
    }

    #[test]
    fn what_is_named_stays_shut_by_the_kernels_word_alone() {
        let start = monotonic();
        let (one, other) = (uid("one"), uid("other"));
        let mut departed = Departed::default();
        departed.note(ip(1), &one, Word::Kernel, start);
        departed.note(ip(2), &other, Word::Server, start);
        let mut now = start;
        let mut free = Vec::new();
        for _ in 0..5 {
            now = later(now, REMEMBERED);
            free.extend(departed.forget(now, |_, _| true));
        }
        assert!(departed.is_shut(ip(1), &one));
        assert!(!departed.is_shut(ip(2), &other));
        assert_eq!(free, [other]);
        // Not named any more, it is forgotten like the others.
        departed.forget(later(now, REMEMBERED), nobody);
        assert!(!departed.is_shut(ip(1), &one));
    }

    #[test]
    fn those_that_must_stay_make_no_endless_work() {
        let start = monotonic();
        let mut departed = Departed::default();
        let many = DEPARTED_MAX + 10;
        for number in 0..many {
            departed.note(ip(1), &uid(&number.to_string()), Word::Kernel, start);
        }
        departed.forget(start, |_, _| true);
        assert_eq!(departed.order.len(), many);
        departed.forget(start, |_, uid| uid.as_str() != "7");
        assert_eq!(departed.order.len(), many - 1);
        assert!(!departed.is_shut(ip(1), &uid("7")));
    }

    #[test]
    fn the_kernel_brings_back_whom_it_took_last() {
        let now = monotonic();
        let (old, new) = (uid("old"), uid("new"));
        let mut departed = Departed::default();
        departed.note(ip(1), &old, Word::Kernel, now);
        departed.note(ip(1), &new, Word::Kernel, now);
        // A server that is behind names the old one: it is not the one who is back.
        assert!(!departed.back(ip(1), Some(&old)));
        assert!(departed.back(ip(1), Some(&new)));
        assert!(departed.is_shut(ip(1), &old) && !departed.is_shut(ip(1), &new));
        assert!(departed.back(ip(1), None));
        assert!(!departed.back(ip(1), None));
        // What a server said is not the kernel's to take back, and what the kernel said stays its word.
        departed.note(ip(1), &old, Word::Server, now);
        assert!(!departed.back(ip(1), Some(&old)));
        departed.note(ip(1), &old, Word::Kernel, now);
        departed.note(ip(1), &new, Word::Kernel, now);
        departed.note(ip(1), &old, Word::Server, now);
        assert!(departed.back(ip(1), Some(&new)));
        assert!(departed.back(ip(1), Some(&old)));
        assert_eq!(departed.order.len(), 0);
    }
}
