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

    /// How this node's network tells of a pod's end, as far as seen.
    pub(super) fn signal(&self) -> Signal {
        if !self.routes.is_empty() {
            Signal::Routes
        } else if self.interfaces().is_empty() {
            Signal::None
        } else {
            Signal::Bridge
        }
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn route(last: u8, interface: InterfaceIndex) -> Change {
        Change::Route {
            ip: ip(last),
            interface,
            table: 254,
        }
    }

    fn no_route(last: u8, interface: InterfaceIndex) -> Change {
        Change::NoRoute {
            ip: ip(last),
            interface,
            table: 254,
        }
    }

    #[track_caller]
    fn check(changes: &[Change], expected: &[FenceEvent]) {
        let mut paths = Paths::default();
        let mut events: Vec<FenceEvent> = changes
            .iter()
            .flat_map(|&change| paths.on(change))
            .collect();
        events.sort_by_key(|event| format!("{event:?}"));
        assert_eq!(events, expected);
    }

    use FenceEvent::{Back, Gone};

    #[test]
    fn what_an_earlier_agent_saw_go_is_waited_for() {
        let mut paths = Paths::default();
        for change in [Change::Up(7), Change::Up(8), route(2, 8), route(4, 8)] {
            paths.on(change);
        }
        let left = [(ip(1), 7), (ip(2), 8), (ip(3), 9), (ip(4), 7)];
        assert_eq!(paths.expect_back(&left), [Back(ip(2))]);
        assert_eq!(paths.left(), [(ip(1), 7), (ip(4), 7)]);
        assert_eq!(paths.on(route(1, 7)), [Back(ip(1))]);
    }

    #[test]
    fn a_route_that_goes_takes_its_pod() {
        check(&[route(1, 7)], &[]);
        check(&[route(1, 7), no_route(1, 7)], &[Gone(ip(1))]);
        check(&[no_route(1, 7)], &[]);
        check(&[route(1, 7), no_route(1, 8)], &[]);
    }

    #[test]
    fn an_interface_that_goes_takes_every_pod_behind_it() {
        let both = [Gone(ip(1)), Gone(ip(2))];
        check(
            &[route(1, 7), route(2, 7), route(3, 8), Change::Deleted(7)],
            &both,
        );
        check(
            &[
                route(1, 7),
                route(2, 7),
                Change::Down(7),
                Change::Deleted(7),
            ],
            &both,
        );
    }

    #[test]
    fn only_the_same_interface_brings_a_pod_back() {
        check(
            &[route(1, 7), no_route(1, 7), route(1, 7)],
            &[Back(ip(1)), Gone(ip(1))],
        );
        check(&[route(1, 7), no_route(1, 7), route(1, 8)], &[Gone(ip(1))]);
        check(
            &[
                route(1, 7),
                no_route(1, 7),
                route(1, 8),
                no_route(1, 8),
                route(1, 7),
            ],
            &[Gone(ip(1)), Gone(ip(1))],
        );
        check(
            &[route(1, 7), Change::Down(7), route(1, 7)],
            &[Back(ip(1)), Gone(ip(1))],
        );
    }

    #[test]
    fn a_replaced_route_is_an_end() {
        check(&[route(1, 7), route(1, 8)], &[Gone(ip(1))]);
        check(&[route(1, 7), route(1, 7)], &[]);
    }

    #[test]
    fn a_second_table_keeps_an_address() {
        let elsewhere = Change::Route {
            ip: ip(1),
            interface: 7,
            table: 101,
        };
        check(&[route(1, 7), elsewhere, no_route(1, 7)], &[]);
        check(
            &[route(1, 7), elsewhere, Change::Deleted(7)],
            &[Gone(ip(1))],
        );
    }

    #[test]
    fn a_bridge_port_that_goes_takes_its_pod() {
        let mac = [2, 0, 0, 0, 0, 1];
        let seen = Change::Neighbour { ip: ip(1), mac };
        let learned = Change::Learned { mac, port: 9 };
        check(&[seen, learned, Change::Deleted(9)], &[Gone(ip(1))]);
        check(&[learned, seen, Change::Deleted(8)], &[]);
        check(&[learned, Change::Deleted(9), seen], &[]);
    }

    #[test]
    fn what_was_saved_is_compared_with_what_is() {
        let mut paths = Paths::default();
        for interface in [5, 7, 8, 9, 11] {
            paths.on(Change::Up(interface));
        }
        for change in [route(1, 7), route(2, 8), route(3, 9)] {
            paths.on(change);
        }
        // As it was; behind another interface; behind one that is gone; idle behind a bridge port.
        let saved = [(ip(1), 7), (ip(2), 5), (ip(4), 6), (ip(5), 11)];
        assert_eq!(paths.no_longer(&saved), [Gone(ip(2)), Gone(ip(4))]);
        assert_eq!(paths.signal(), Signal::Routes);
        assert_eq!(Paths::default().signal(), Signal::None);
    }

    #[test]
    fn lost_messages_are_made_up_for() {
        let mut paths = Paths::default();
        for change in [route(1, 7), route(2, 8), route(3, 9), no_route(3, 9)] {
            paths.on(change);
        }
        let mut fresh = Paths::default();
        for change in [route(1, 7), route(2, 18), route(3, 9), route(4, 10)] {
            fresh.on(change);
        }
        let events = paths.replaced_by(fresh);
        assert_eq!(events, [Gone(ip(2)), Back(ip(3))]);
    }

    #[test]
    fn who_went_while_messages_were_lost_may_come_back() {
        let mut paths = Paths::default();
        for change in [Change::Up(7), Change::Up(8), Change::Up(9)] {
            paths.on(change);
        }
        for change in [route(1, 7), route(2, 8), route(3, 9), no_route(3, 9)] {
            paths.on(change);
        }
        let mut fresh = Paths::default();
        fresh.on(Change::Up(7));
        let mut events = paths.replaced_by(fresh);
        events.sort_by_key(|event| format!("{event:?}"));
        assert_eq!(events, [Gone(ip(1)), Gone(ip(2))]);
        assert_eq!(paths.left(), [(ip(1), 7)], "the other interfaces are gone");
        assert_eq!(paths.on(route(2, 8)), []);
        assert_eq!(paths.on(route(1, 7)), [Back(ip(1))]);
    }

    proptest! {
        /// Whatever the kernel says in whatever order: an address that has no path has been
        /// reported gone after its last path, and nobody comes back on another interface.
        #[test]
        fn nobody_without_a_path_is_left_unreported(
            steps in proptest::collection::vec((0u8..4, 0u8..4, 1u32..5), 0..60)
        ) {
            let mut paths = Paths::default();
            let mut served: HashMap<IpAddr, InterfaceIndex> = HashMap::new();
            for (kind, last, interface) in steps {
                let change = match kind {
                    0 | 1 => route(last, interface),
                    2 => no_route(last, interface),
                    _ => Change::Deleted(interface),
                };
                let events = paths.on(change);
                for event in &events {
                    if let Gone(ip) = event { served.remove(ip); }
                    if let Back(ip) = event {
                        prop_assert!(paths.is_behind(*ip, interface));
                    }
                }
                // The server names whoever has a path now.
                for (ip, interface) in paths.interfaces() {
                    served.insert(ip, interface);
                }
                for (ip, interface) in &served {
                    prop_assert!(paths.is_behind(*ip, *interface), "{ip} left unreported");
                }
            }
        }
    }
}
