//! Not answering an address whose pod the kernel has seen go before the server said so.
//!
//! Addresses are reused within seconds. From the moment the old pod's interface is gone until the
//! server names another pod for its address, whoever speaks from it is parked: nobody is ever
//! answered with the credentials of the address's previous owner.

use std::net::IpAddr;

use super::Store;
use crate::clock::Now;

impl Store {
    /// Stops answering `ip` until the server names a pod for it other than the present owner.
    /// `false` when nobody owns it: then it is not answered anyway. Publish afterwards.
    pub fn fence(&mut self, ip: IpAddr) -> bool {
        let Some(owner) = self.owners.get(&ip) else {
            return false;
        };
        self.fenced.insert(ip, owner.clone());
        self.by_ip.remove(&ip);
        true
    }

    /// Takes a fence down again: the kernel has shown that the pod is still there. `false` when
    /// there was none. Publish afterwards.
    pub fn unfence(&mut self, ip: IpAddr, now: Now) -> bool {
        let fenced = self.fenced.remove(&ip).is_some();
        if fenced && let Some(owner) = self.owners.get(&ip).cloned() {
            self.render(&owner, now);
        }
        fenced
    }

    /// The addresses that are fenced.
    pub fn fenced(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.fenced.keys().copied()
    }
}
