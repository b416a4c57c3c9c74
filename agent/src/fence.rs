//! Tells, from the kernel's own notifications, that a pod is no longer behind its address.
//!
//! The API server learns of a pod's end seconds after its network is gone, and the address may
//! belong to another pod by then. The kernel knows at once. So the agent stops answering for an
//! address the moment its route or interface goes ([`FenceEvent::Gone`]), and whoever has it next
//! waits until the server names them.
//!
//! Needs no privilege: anyone may listen to routing messages. It never makes anyone's credentials
//! available; the worst it can do is to make a pod wait.
//!
//! Not every network tells: [`Signal::None`] means that only the server's word counts.

mod dump;
mod looking;
mod messages;
mod paths;

use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use dump::dump;
use looking::Looking;
use paths::Paths;
pub use paths::{InterfaceIndex, Signal};

use crate::clock::Now;

/// What became of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceEvent {
    /// The pod behind it is gone: answer nobody there until the server names a pod anew.
    Gone(IpAddr),
    /// It is reachable again on the very interface it had: the same pod, go on as before.
    Back(IpAddr),
}

/// What the kernel said.
#[derive(Debug)]
pub struct Heard {
    /// What follows from it, which may be nothing.
    pub events: Vec<FenceEvent>,
    /// Whoever is gone was behind its address before this moment, perhaps long before. Who was given the
    /// address later is another.
    pub seen: Now,
}

/// `RTNLGRP_*` of links, neighbours (with the bridges' forwarding tables), IPv4 and IPv6 routes.
const GROUPS: [u32; 4] = [1, 3, 7, 11];

/// A burst of pods' ends fits many times over; what does not is made up for by a new dump.
const RECEIVE_BUFFER_BYTES: usize = 1024 * 1024;

/// Follows the kernel. Lives on the control thread.
pub struct Fence {
    socket: TokioSocket,
    paths: Paths,
    /// Messages were lost: everything must be read again before the next is believed.
    lost: bool,
    looking: Looking,
    /// What has been found since the look began.
    found: Vec<FenceEvent>,
}

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fence")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

impl Fence {
    /// Starts listening, then reads how things stand.
    ///
    /// # Errors
    /// The kernel or a sandbox refuses netlink sockets; the agent then works without a fence.
    pub async fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind_auto()?;
        // A smaller buffer only means a dump more often.
        if let Err(error) = socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER_BYTES) {
            tracing::debug!(%error, "the kernel keeps its default netlink buffer");
        }
        // Listening comes first: what changes during the dump is then said twice, not lost.
        for group in GROUPS {
            socket.socket_mut().add_membership(group)?;
        }
        Ok(Self {
            socket,
            paths: dump().await?,
            lost: false,
            looking: Looking::default(),
            found: Vec::new(),
        })
    }

    /// Waits until the kernel said something, and returns what followed. Safe to cancel.
    ///
    /// # Errors
    /// The socket is unusable; open another.
    pub async fn next(&mut self) -> io::Result<Heard> {
        loop {
            if self.lost {
                return self.drain().await;
            }
            let received = self.socket.recv_from_full().await;
            let seen = Now::read();
            if let Some(events) = self.take_in(received.map(|(datagram, _from)| datagram))? {
                return Ok(Heard { events, seen });
            }
        }
    }

    /// Everything that the kernel has said by now, without waiting for more. Safe to cancel: what was found
    /// is kept for the next call.
    ///
    /// # Errors
    /// As [`Fence::next`].
    pub async fn drain(&mut self) -> io::Result<Heard> {
        self.looking.begins(Now::read());
        loop {
            if self.lost {
                let events = self.read_again().await?;
                self.found.extend(events);
            }
            // The socket itself is asked: the runtime may not have noticed yet what is waiting.
            match self.socket.socket_ref().recv_from_full() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                received => {
                    let received = received.map(|(datagram, _from)| datagram);
                    let events = self.take_in(received)?;
                    self.found.extend(events.into_iter().flatten());
                }
            }
        }
        let seen = self.looking.ends(Now::read());
        let events = std::mem::take(&mut self.found);
        Ok(Heard { events, seen })
    }

    /// Until when what is known is how things stood, for whoever was refused at `now`.
    pub const fn known_until(&self, now: Now) -> Now {
        self.looking.since(now)
    }

    /// `None` when nothing in it concerns pods, or when something was lost.
    fn take_in(&mut self, received: io::Result<Vec<u8>>) -> io::Result<Option<Vec<FenceEvent>>> {
        match received {
            Ok(datagram) => {
                let changes = messages::read(&datagram).changes;
                let news = !changes.is_empty();
                let events = changes.into_iter().flat_map(|change| self.paths.on(change));
                Ok(news.then(|| events.collect()))
            }
            Err(error) if is_overrun(&error) => {
                tracing::debug!("routing messages were lost, reading everything again");
                self.lost = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn read_again(&mut self) -> io::Result<Vec<FenceEvent>> {
        let fresh = dump().await?;
        self.lost = false;
        Ok(self.paths.replaced_by(fresh))
    }

    /// Every known address and the interface it lies behind, for the hand-over.
    pub fn interfaces(&self) -> Vec<(IpAddr, InterfaceIndex)> {
        self.paths.interfaces()
    }

    /// Of what an earlier agent saved in this boot, the addresses that changed hands since.
    pub fn no_longer(&self, saved: &[(IpAddr, InterfaceIndex)]) -> Vec<FenceEvent> {
        self.paths.no_longer(saved)
    }

    /// Gone addresses, and the interface on which each would be the same pod's again; for the
    /// hand-over.
    pub fn left(&self) -> Vec<(IpAddr, InterfaceIndex)> {
        self.paths.left()
    }

    /// Of the gone addresses that an earlier agent saved in this boot, those that are back. The
    /// others are waited for as if this agent had seen them go.
    pub fn expect_back(&mut self, left: &[(IpAddr, InterfaceIndex)]) -> Vec<FenceEvent> {
        self.paths.expect_back(left)
    }

    /// How this node's network tells of the end of those behind `pods`.
    pub fn signal(&self, pods: impl IntoIterator<Item = IpAddr>) -> Signal {
        self.paths.signal(pods)
    }

    /// Whether the kernel shows a way to `ip`.
    pub fn is_reachable(&self, ip: IpAddr) -> bool {
        self.paths.is_reachable(ip)
    }
}

/// `ENOBUFS`: the kernel had more to say than the socket could hold.
fn is_overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}
