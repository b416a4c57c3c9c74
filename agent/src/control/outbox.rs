//! What is still to be told to the server: the newest of each kind, never a queue.
//!
//! A server that does not read costs this agent one revision, one report and a bounded set of
//! addresses, and it hears the newest state once it reads again. Pure.

use std::collections::VecDeque;
use std::net::IpAddr;

use kiam_wire::limits::WAITING_PEERS_MAX;
use kiam_wire::report::Report;
use kiam_wire::{AgentMessage, Revision};
use rustc_hash::FxHashSet;

/// Peers remembered until they can be told: four messages' worth. With more than that waiting the
/// order in which the server takes them no longer matters.
const PEERS_MAX: usize = 4 * WAITING_PEERS_MAX;

/// What is still to be told.
#[derive(Debug, Default)]
pub struct Outbox {
    applied: Option<Revision>,
    report: Option<Report>,
    /// In the order in which they began to wait.
    peers: VecDeque<IpAddr>,
    /// An index of `peers`, so that each is in it once.
    known: FxHashSet<IpAddr>,
}

impl Outbox {
    /// The data plane sees `revision`.
    pub const fn applied(&mut self, revision: Revision) {
        self.applied = Some(revision);
    }

    /// The agent's own state.
    pub fn report(&mut self, report: Report) {
        self.report = Some(report);
    }

    /// A peer began to wait. Too many are forgotten, and so is what can be no pod's address: where pods may
    /// say for whom they ask, they may say anything.
    pub fn waiting(&mut self, peer: IpAddr) {
        if peer.is_unspecified() || peer.is_multicast() {
            return;
        }
        if self.peers.len() < PEERS_MAX && self.known.insert(peer) {
            self.peers.push_back(peer);
        }
    }

    /// A new stream begins: what was to be said about the last one is void. Peers still wait.
    pub fn reset(&mut self) {
        self.applied = None;
        self.report = None;
    }

    /// Whether anything but waiting peers is to be told.
    pub const fn is_urgent(&self) -> bool {
        self.applied.is_some() || self.report.is_some()
    }

    /// Whether peers are to be told.
    pub fn has_waiting(&self) -> bool {
        !self.peers.is_empty()
    }

    /// The next message, if there is one: pods that wait come first.
    pub fn take(&mut self) -> Option<AgentMessage> {
        if !self.peers.is_empty() {
            let count = self.peers.len().min(WAITING_PEERS_MAX);
            let peers: Vec<IpAddr> = self.peers.drain(..count).collect();
            for peer in &peers {
                self.known.remove(peer);
            }
            return Some(AgentMessage::Waiting(peers));
        }
        let applied = self.applied.take().map(AgentMessage::Applied);
        applied.or_else(|| self.report.take().map(AgentMessage::Report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiam_wire::report::Interception;
    use std::net::Ipv4Addr;

    fn peer(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    fn told(outbox: &mut Outbox) -> Vec<String> {
        std::iter::from_fn(|| outbox.take())
            .map(|message| match message {
                AgentMessage::Hello(_) => "hello".to_owned(),
                AgentMessage::Applied(revision) => format!("applied {}", revision.number),
                AgentMessage::Waiting(peers) => format!("waiting {}", peers.len()),
                AgentMessage::Report(report) => format!("report {}", report.serving),
            })
            .collect()
    }

    fn report(serving: bool) -> Report {
        Report {
            serving,
            interception: Interception::Off,
            driver: "epoll".into(),
        }
    }

    #[test]
    fn only_the_newest_of_each_kind_is_told() {
        let mut outbox = Outbox::default();
        for number in 1..=3 {
            outbox.applied(Revision { epoch: 1, number });
            outbox.report(report(number == 3));
            outbox.waiting(peer(1));
        }
        assert!(outbox.is_urgent() && outbox.has_waiting());
        assert_eq!(told(&mut outbox), ["waiting 1", "applied 3", "report true"]);
        assert!(!outbox.is_urgent() && !outbox.has_waiting());
        assert_eq!(told(&mut outbox), [""; 0]);
    }

    #[test]
    fn a_flood_of_peers_is_bounded_and_cut_into_messages() {
        let mut outbox = Outbox::default();
        for number in 0..100_000 {
            outbox.waiting(peer(number));
        }
        assert_eq!(told(&mut outbox), ["waiting 1024"; 4]);
        // Once told, a peer that waits again is news again.
        outbox.waiting(peer(0));
        assert_eq!(told(&mut outbox), ["waiting 1"]);
    }

    #[test]
    fn what_can_be_no_pod_is_not_told() {
        let mut outbox = Outbox::default();
        for peer in ["0.0.0.0", "::", "224.0.0.1", "ff02::1"] {
            outbox.waiting(peer.parse().unwrap());
        }
        assert!(!outbox.has_waiting());
    }

    #[test]
    fn a_new_stream_forgets_all_but_the_peers() {
        let mut outbox = Outbox::default();
        outbox.applied(Revision {
            epoch: 1,
            number: 1,
        });
        outbox.waiting(peer(1));
        outbox.reset();
        assert_eq!(told(&mut outbox), ["waiting 1"]);
    }
}
