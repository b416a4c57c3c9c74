//! Not answering an address whose pod the kernel has seen go before the server said so.
//!
//! Addresses are reused within seconds. From the moment the old pod's interface is gone until the
//! server names another pod for its address, whoever speaks from it is parked: nobody is ever
//! answered with the credentials of the address's previous owner. And because the next server may be
//! behind the last one, who that was is [remembered](super::departed).

use std::collections::HashSet;
use std::net::IpAddr;

use kiam_wire::PodUid;

use super::departed::Word;
use super::{Store, UNSAID};
use crate::clock::Now;

impl Store {
    /// Stops answering `ip` until the server names a pod for it other than the present owner.
    /// `false` when nobody owns it: then it is not answered anyway. Publish afterwards.
    pub fn fence(&mut self, ip: IpAddr, now: Now) -> bool {
        let Some(owner) = self.owner(ip).cloned() else {
            return false;
        };
        self.departed.note(ip, &owner, Word::Kernel, now.monotonic);
        self.by_ip.remove(&ip);
        self.forget_departed(now);
        true
    }

    /// As [`Store::fence`], for the pod that was last known to be behind `ip` at `seen`. `false`
    /// also when the server gave the address to another one later: that one is not who went, and
    /// nothing would ever take its fence down.
    pub fn fence_as_of(&mut self, ip: IpAddr, seen: Now, now: Now) -> bool {
        let owner = self.owners.get(&ip);
        owner.is_some_and(|owner| owner.since <= seen.monotonic) && self.fence(ip, now)
    }

    /// Puts up a fence that an earlier agent had put up when `uid` went. It stands even where
    /// nobody owns the address: a server that is behind may yet name the pod that went. `false`
    /// when another pod has the address by now, which goes on being answered. Publish afterwards.
    pub fn restore_fence(&mut self, ip: IpAddr, uid: &PodUid, now: Now) -> bool {
        self.departed.note(ip, uid, Word::Kernel, now.monotonic);
        let stands = self.owner(ip).is_none_or(|owner| owner == uid);
        if stands {
            self.by_ip.remove(&ip);
        }
        self.forget_departed(now);
        stands
    }

    /// Remembers of `uid` what an earlier agent had heard from a server ([`Store::superseded`]). Publish
    /// afterwards.
    pub fn restore_superseded(&mut self, ip: IpAddr, uid: &PodUid, now: Now) {
        self.departed.note(ip, uid, Word::Server, now.monotonic);
        if self.owner(ip) == Some(uid) {
            self.by_ip.remove(&ip);
        }
        self.forget_departed(now);
    }

    /// Takes a fence down again: the kernel has shown that the pod is still there. `false` when
    /// there was none, or another pod has the address by now. Publish afterwards.
    pub fn unfence(&mut self, ip: IpAddr, now: Now) -> bool {
        let owner = self.owner(ip).cloned();
        let back = self.departed.back(ip, owner.as_ref());
        if back && let Some(owner) = owner {
            self.render(&owner, now);
        }
        back
    }

    /// Forgets who had an address long ago, and the oldest of too many. `true` when somebody is answered
    /// for it: publish then.
    pub fn forget_departed(&mut self, now: Now) -> bool {
        let owners = &self.owners;
        let is_named =
            |ip: IpAddr, uid: &PodUid| owners.get(&ip).is_some_and(|owner| owner.uid == *uid);
        let free = self.departed.forget(now.monotonic, is_named);
        for uid in &free {
            self.render(uid, now);
        }
        !free.is_empty()
    }

    /// Stops answering every address but those in `vouched` until a server has spoken: they may have
    /// changed hands while nobody watched. Returns how many those are. The server is asked for everything.
    pub fn doubt_all_but(&mut self, vouched: &HashSet<IpAddr>) -> usize {
        let doubted = self.owners.keys().filter(|ip| !vouched.contains(ip));
        self.doubted.extend(doubted.copied());
        for ip in &self.doubted {
            self.by_ip.remove(ip);
        }
        if !self.doubted.is_empty() {
            self.revision = Some(UNSAID);
        }
        self.doubted.len()
    }

    /// Whether it is known what to serve, from every address.
    pub fn can_answer(&self) -> bool {
        self.revision().is_some() && !self.has_doubts()
    }

    /// Whether nobody is answered from some address until a server has spoken.
    pub fn has_doubts(&self) -> bool {
        !self.doubted.is_empty()
    }

    /// Pods that are not answered from an address because the kernel has seen them go, whether the server
    /// names them for it or not; the oldest first.
    pub fn fenced(&self) -> impl Iterator<Item = (IpAddr, &PodUid)> + '_ {
        self.departed.by(Word::Kernel)
    }

    /// Pods that are not answered from an address because on one server's stream it was theirs no longer;
    /// the oldest first.
    pub fn superseded(&self) -> impl Iterator<Item = (IpAddr, &PodUid)> + '_ {
        self.departed.by(Word::Server)
    }

    /// Of these, the ones that the server still says are that pod's.
    pub fn fenced_owned(&self) -> impl Iterator<Item = (IpAddr, &PodUid)> + '_ {
        self.fenced()
            .filter(|(ip, uid)| self.owner(*ip) == Some(*uid))
    }
}
