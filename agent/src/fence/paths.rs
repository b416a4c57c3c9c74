//! Which interface each pod address lies behind, and what follows when that changes. Pure: the
//! kernel's messages come in as [`Change`]s, [`FenceEvent`]s come out.
//!
//! Two kinds of network tell us:
//! - a route of its own for each pod (`10.0.0.7/32 dev cali…`): calico, amazon-vpc-cni, cilium
//!   without eBPF host routing, kubelet's own ptp. The route or its interface goes, the pod is gone;
//! - pods behind one bridge: the bridge's neighbour table names a pod's hardware address and its
//!   forwarding table the port behind which that address was seen. The port goes, the pod is gone.
//!
//! An interface index is never used twice between two boots (the kernel counts up), so an address
//! that comes back on the same index is the same pod, and on another index never is.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::FenceEvent;

/// The kernel's number for an interface.
pub type InterfaceIndex = u32;
/// A hardware address; Ethernet is all that pods have.
pub(super) type Mac = [u8; 6];

/// Addresses we keep in mind at most. A node has hundreds of pods; a router with a full table of
/// /32 routes must not take the agent's memory.
const ADDRESSES_MAX: usize = 20_000;

/// What the kernel said, reduced to what matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// A route to this single address exists, straight out of an interface.
    Route {
        /// The pod's address.
        ip: IpAddr,
        /// Where it lies.
        interface: InterfaceIndex,
        /// Routing table; the same address may be in several.
        table: u32,
    },
    /// That route no longer exists.
    NoRoute {
        /// The pod's address.
        ip: IpAddr,
        /// Where it lay.
        interface: InterfaceIndex,
        /// Routing table.
        table: u32,
    },
    /// An interface is there and up.
    Up(InterfaceIndex),
    /// An interface is down: the kernel drops its IPv4 routes without a word.
    Down(InterfaceIndex),
    /// An interface no longer exists.
    Deleted(InterfaceIndex),
    /// A neighbour answered with this hardware address.
    Neighbour {
        /// Its address.
        ip: IpAddr,
        /// Its hardware address.
        mac: Mac,
    },
    /// A bridge saw this hardware address behind one of its ports.
    Learned {
        /// The hardware address.
        mac: Mac,
        /// The port.
        port: InterfaceIndex,
    },
}

/// How this node's network tells of a pod's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Each pod has a route of its own.
    Routes,
    /// Pods are behind a bridge that tells which port each is behind.
    Bridge,
    /// Nothing so far: no pod yet, or a network that keeps this to itself (eBPF host routing,
    /// macvlan, ipvlan).
    None,
}

/// Where every address lies now.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Interface and table of each route; never an empty list.
    routes: HashMap<IpAddr, Vec<(InterfaceIndex, u32)>>,
    /// The interface a gone address lay behind, while that interface exists.
    left: HashMap<IpAddr, InterfaceIndex>,
    neighbours: HashMap<IpAddr, Mac>,
    /// Every interface, up or down.
    links: HashSet<InterfaceIndex>,
    /// Kept when the bridge forgets an idle address: only the port's end is an end.
    ports: HashMap<Mac, InterfaceIndex>,
}

impl Paths {
    /// Takes one change in and returns what follows from it.
    pub(super) fn on(&mut self, change: Change) -> Vec<FenceEvent> {
        match change {
            Change::Route {
                ip,
                interface,
                table,
            } => self.route(ip, interface, table).into_iter().collect(),
            Change::NoRoute {
                ip,
                interface,
                table,
            } => self
                .no_route(ip, |path| path == (interface, table), Some(interface))
                .into_iter()
                .collect(),
            Change::Up(interface) => {
                self.links.insert(interface);
                Vec::new()
            }
            Change::Down(interface) => {
                self.links.insert(interface);
                self.without(interface, Some(interface))
            }
            Change::Deleted(interface) => self.deleted(interface),
            Change::Neighbour { ip, mac } => {
                if self.neighbours.len() < ADDRESSES_MAX || self.neighbours.contains_key(&ip) {
                    self.neighbours.insert(ip, mac);
                }
                Vec::new()
            }
            Change::Learned { mac, port } => {
                if self.ports.len() < ADDRESSES_MAX || self.ports.contains_key(&mac) {
                    self.ports.insert(mac, port);
                }
                Vec::new()
            }
        }
    }

    /// What changed from this to `fresh`, a new dump, when messages in between were lost.
    pub(super) fn replaced_by(&mut self, mut fresh: Self) -> Vec<FenceEvent> {
        let routed = self.routes.keys().copied();
        let bridged = self
            .interfaces()
            .into_iter()
            .filter(|(ip, _)| !self.routes.contains_key(ip));
        let mut events: Vec<FenceEvent> = routed
            .filter(|&ip| !self.shares_a_path(&fresh, ip))
            .map(FenceEvent::Gone)
            .chain(fresh.no_longer(&bridged.collect::<Vec<_>>()))
            .collect();
        for (&ip, &interface) in &self.left {
            if fresh.is_behind(ip, interface) {
                events.push(FenceEvent::Back(ip));
            } else {
                fresh.expect(ip, interface);
            }
        }
        // Those whose end was among what was lost may come back like any other.
        for (&ip, paths) in &self.routes {
            let there = |(interface, _): &&(InterfaceIndex, u32)| fresh.links.contains(interface);
            if !fresh.routes.contains_key(&ip)
                && let Some(&(interface, _)) = paths.iter().find(there)
            {
                fresh.expect(ip, interface);
            }
        }
        *self = fresh;
        events
    }

    /// Every address and the interface it lies behind: saved in the hand-over, so that the next
    /// agent can tell whether an address changed hands while no agent ran. In order.
    pub(super) fn interfaces(&self) -> Vec<(IpAddr, InterfaceIndex)> {
        let routed = self
            .routes
            .iter()
            .filter_map(|(&ip, paths)| paths.first().map(|&(interface, _)| (ip, interface)));
        let bridged = self
            .neighbours
            .iter()
            .filter(|(ip, _)| !self.routes.contains_key(*ip))
            .filter_map(|(&ip, mac)| Some((ip, *self.ports.get(mac)?)));
        let mut interfaces: Vec<_> = routed.chain(bridged).collect();
        interfaces.sort_unstable();
        interfaces
    }

    /// Where gone addresses would come back as the same pod's.
    pub(super) fn left(&self) -> Vec<(IpAddr, InterfaceIndex)> {
        let mut left: Vec<_> = self.left.iter().map(|(&ip, &there)| (ip, there)).collect();
        left.sort_unstable();
        left
    }

    /// Takes over what an earlier agent knew to be gone; returns what is back meanwhile.
    pub(super) fn expect_back(&mut self, left: &[(IpAddr, InterfaceIndex)]) -> Vec<FenceEvent> {
        let mut events = Vec::new();
        for &(ip, interface) in left {
            if self.is_behind(ip, interface) {
                events.push(FenceEvent::Back(ip));
            } else {
                self.expect(ip, interface);
            }
        }
        events
    }

    /// Waits for a gone address on the interface it lay behind, if that is still there.
    fn expect(&mut self, ip: IpAddr, interface: InterfaceIndex) {
        if self.links.contains(&interface) && self.left.len() < ADDRESSES_MAX {
            self.left.insert(ip, interface);
        }
    }

    /// Of what was saved, the addresses that surely lie elsewhere by now: their interface is gone, or
    /// they have a route through another. A bridge forgets who is idle, which proves nothing.
    pub(super) fn no_longer(&self, saved: &[(IpAddr, InterfaceIndex)]) -> Vec<FenceEvent> {
        saved
            .iter()
            .filter(|&&(ip, interface)| {
                !self.links.contains(&interface)
                    || (self.routes.contains_key(&ip) && !self.is_behind(ip, interface))
            })
            .map(|&(ip, _)| FenceEvent::Gone(ip))
            .collect()
    }

    /// How this node's network tells of the end of those behind `pods`, as far as seen. Other addresses do
    /// not count: nodes have routes of that form of their own, to a DHCP or name server for example.
    pub(super) fn signal(&self, pods: impl IntoIterator<Item = IpAddr>) -> Signal {
        let mut signal = Signal::None;
        for ip in pods {
            if self.routes.contains_key(&ip) {
                return Signal::Routes;
            }
            if self.is_bridged(ip) {
                signal = Signal::Bridge;
            }
        }
        signal
    }

    /// Whether there is a way to `ip`, as far as the kernel shows.
    pub(super) fn is_reachable(&self, ip: IpAddr) -> bool {
        self.routes.contains_key(&ip) || self.is_bridged(ip)
    }

    fn is_bridged(&self, ip: IpAddr) -> bool {
        let mac = self.neighbours.get(&ip);
        mac.is_some_and(|mac| self.ports.contains_key(mac))
    }

    fn shares_a_path(&self, other: &Self, ip: IpAddr) -> bool {
        let mut paths = self.routes.get(&ip).into_iter().flatten();
        paths.any(|&(interface, _)| other.is_behind(ip, interface))
    }

    fn is_behind(&self, ip: IpAddr, interface: InterfaceIndex) -> bool {
        if let Some(paths) = self.routes.get(&ip) {
            return paths.iter().any(|&(there, _)| there == interface);
        }
        let port = self.neighbours.get(&ip).and_then(|mac| self.ports.get(mac));
        port == Some(&interface)
    }

    fn route(&mut self, ip: IpAddr, interface: InterfaceIndex, table: u32) -> Option<FenceEvent> {
        let full = self.routes.len() >= ADDRESSES_MAX;
        let Some(paths) = self.routes.get_mut(&ip) else {
            if !full {
                self.routes.insert(ip, vec![(interface, table)]);
            }
            // On another interface it is another pod: the server's word is awaited.
            let same = self.left.remove(&ip) == Some(interface);
            return same.then_some(FenceEvent::Back(ip));
        };
        // A replaced route is announced by the new one alone.
        let moved = paths
            .iter()
            .any(|&(there, of)| of == table && there != interface);
        paths.retain(|&(_, of)| of != table);
        paths.push((interface, table));
        moved.then_some(FenceEvent::Gone(ip))
    }

    fn no_route(
        &mut self,
        ip: IpAddr,
        gone: impl Fn((InterfaceIndex, u32)) -> bool,
        left: Option<InterfaceIndex>,
    ) -> Option<FenceEvent> {
        let paths = self.routes.get_mut(&ip)?;
        paths.retain(|&path| !gone(path));
        if !paths.is_empty() {
            return None;
        }
        self.routes.remove(&ip);
        if let Some(interface) = left
            && self.left.len() < ADDRESSES_MAX
        {
            self.left.insert(ip, interface);
        }
        Some(FenceEvent::Gone(ip))
    }

    fn without(
        &mut self,
        interface: InterfaceIndex,
        left: Option<InterfaceIndex>,
    ) -> Vec<FenceEvent> {
        let behind: Vec<IpAddr> = self
            .routes
            .iter()
            .filter(|(_, paths)| paths.iter().any(|&(there, _)| there == interface))
            .map(|(&ip, _)| ip)
            .collect();
        behind
            .into_iter()
            .filter_map(|ip| self.no_route(ip, |(there, _)| there == interface, left))
            .collect()
    }

    fn deleted(&mut self, interface: InterfaceIndex) -> Vec<FenceEvent> {
        self.links.remove(&interface);
        let mut events = self.without(interface, None);
        self.left.retain(|_, there| *there != interface);
        let bridged: Vec<IpAddr> = self
            .neighbours
            .iter()
            .filter(|(_, mac)| self.ports.get(*mac) == Some(&interface))
            .map(|(&ip, _)| ip)
            .collect();
        self.ports.retain(|_, port| *port != interface);
        for ip in bridged {
            self.neighbours.remove(&ip);
            if !self.routes.contains_key(&ip) && !events.contains(&FenceEvent::Gone(ip)) {
                events.push(FenceEvent::Gone(ip));
            }
        }
        events
    }
}

#[cfg(test)]
mod tests;
