//! Hears from the kernel that somebody touched the rules, so that nothing has to be polled.
//!
//! Busy nodes change other tables all the time (kube-proxy), so a change is only reported when it
//! is to a table that holds rules of ours; that is the first attribute of every such message. Of
//! routing rules, which CNIs change with every pod, only those at our priorities count. Routes do
//! not: what is redirected goes to an address of the node, and what is not meets the routing rules
//! before any route.

use std::io;

use futures::FutureExt as _;
use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use crate::intercept::nft::ruleset;
use crate::intercept::{Backend, wall};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of the message type.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWGEN`: a transaction's end, which names no table.
const NEW_GENERATION: u8 = 15;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_OBJ_TABLE`: all are 1.
const TABLE_ATTRIBUTE: u16 = 1;
const GENERIC_BYTES: usize = 4;
/// `RTNLGRP_IPV4_RULE` and `RTNLGRP_IPV6_RULE`: anyone may listen.
const ROUTING_GROUPS: [u32; 2] = [8, 19];
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
/// `struct fib_rule_hdr`.
const ROUTING_BYTES: usize = 12;
/// `FRA_PRIORITY`.
const PRIORITY_ATTRIBUTE: u16 = 6;
const NETLINK_ALIGNMENT: usize = 4;

/// Listens to changes of firewall and routing rules, as far as it may.
#[derive(Debug)]
pub(super) struct Watch {
    tables: Option<Socket>,
    routing: Option<Socket>,
    names: &'static [&'static str],
}

/// The library's socket has no `Debug`.
struct Socket(TokioSocket);

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Socket")
    }
}

impl Socket {
    fn open(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind_auto()?;
        for group in groups {
            socket.socket_mut().add_membership(*group)?;
        }
        Ok(Self(socket))
    }

    /// Waits for a datagram that `concerns` us, or for the news that some were lost.
    async fn changed(&mut self, concerns: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        loop {
            match self.0.recv_from_full().await {
                Ok((datagram, _from)) if concerns(&datagram) => return Ok(()),
                Ok(_others) => {}
                // One of those that were lost may have been ours.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Watch {
    /// What cannot be listened to is said in the log.
    pub(super) fn open(backend: Backend) -> Self {
        let tables = Socket::open(NETLINK_NETFILTER, &[GROUP]).inspect_err(|error| {
            tracing::info!(
                %error,
                "without NET_ADMIN the kernel does not tell when the rules change; the agent asks \
                 from time to time whether they still lead to it, and cannot put them back"
            );
        });
        let routing = Socket::open(NETLINK_ROUTE, &ROUTING_GROUPS).inspect_err(
            |error| tracing::warn!(%error, "the kernel does not tell when routing rules change"),
        );
        Self {
            tables: tables.ok(),
            routing: routing.ok(),
            names: match backend {
                Backend::Nftables => &[ruleset::TABLE],
                // The iptables tools of today write nftables tables of these names.
                Backend::Iptables => &["nat", "mangle"],
            },
        }
    }

    /// Whether changes of firewall rules are heard.
    pub(super) const fn hears_tables(&self) -> bool {
        self.tables.is_some()
    }

    /// Leaves out the changes that have been told by now: whoever looks now sees them all.
    pub(super) fn forget(&mut self) {
        // An error comes again.
        while let Some(Ok(())) = self.changed().now_or_never() {}
    }

    /// Waits for a change to rules of ours. Safe to cancel.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let Self {
            tables,
            routing,
            names,
        } = self;
        tokio::select! {
            changed = or_never(tables, |datagram| concerns(datagram, names)) => changed,
            changed = or_never(routing, concerns_wall) => changed,
        }
    }
}

async fn or_never(socket: &mut Option<Socket>, concerns: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    match socket {
        Some(socket) => socket.changed(concerns).await,
        None => std::future::pending().await,
    }
}

/// Whether any message of this datagram is about one of `tables`.
fn concerns(datagram: &[u8], tables: &[&str]) -> bool {
    any_message(datagram, |kind, payload| {
        let [kind, subsystem] = kind.to_le_bytes();
        subsystem == SUBSYSTEM
            && kind != NEW_GENERATION
            && attributes(payload, GENERIC_BYTES, TABLE_ATTRIBUTE, |name| {
                let name = name.strip_suffix(&[0]).unwrap_or(name);
                tables.iter().any(|table| table.as_bytes() == name)
            })
    })
}

/// Whether any message of this datagram is about a routing rule at one of our priorities.
fn concerns_wall(datagram: &[u8]) -> bool {
    any_message(datagram, |kind, payload| {
        matches!(kind, RTM_NEWRULE | RTM_DELRULE)
            && attributes(payload, ROUTING_BYTES, PRIORITY_ATTRIBUTE, |priority| {
                let priority = priority.try_into().map(u32::from_ne_bytes);
                priority.is_ok_and(|priority| wall::PRIORITIES.contains(&priority))
            })
    })
}

/// Whether one of the attributes `kind`, after `fixed` bytes of the payload, is as wanted.
fn attributes(payload: &[u8], fixed: usize, kind: u16, wanted: impl Fn(&[u8]) -> bool) -> bool {
    NlasIterator::new(payload.get(fixed..).unwrap_or_default())
        .flatten()
        .filter(|attribute| attribute.kind() == kind)
        .any(|attribute| wanted(attribute.value()))
}

fn any_message(mut datagram: &[u8], wanted: impl Fn(u16, &[u8]) -> bool) -> bool {
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        if wanted(message.message_type(), message.payload()) {
            return true;
        }
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        let next = length.next_multiple_of(NETLINK_ALIGNMENT);
        datagram = datagram.get(next..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(subsystem: u8, kind: u8, table: &str) -> Vec<u8> {
        let mut value = table.as_bytes().to_vec();
        value.push(0);
        let mut payload = vec![1, 0, 0, 0];
        payload.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        payload.extend(TABLE_ATTRIBUTE.to_ne_bytes());
        payload.extend(&value);
        payload.resize(payload.len().next_multiple_of(4), 0);
        let mut bytes = u32::try_from(payload.len() + 16)
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend([kind, subsystem]);
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn only_our_tables_concern_us() {
        let check = |messages: &[Vec<u8>], expected: bool| {
            assert_eq!(concerns(&messages.concat(), &["kiam"]), expected);
        };
        check(&[message(SUBSYSTEM, 8, "kiam")], true);
        check(&[message(SUBSYSTEM, 8, "nat")], false);
        check(&[message(SUBSYSTEM, 8, "kiam2")], false);
        check(&[message(1, 8, "kiam")], false);
        check(
            &[message(SUBSYSTEM, 6, "nat"), message(SUBSYSTEM, 2, "kiam")],
            true,
        );
        check(&[message(SUBSYSTEM, NEW_GENERATION, "kiam")], false);
    }

    #[test]
    fn only_our_priorities_concern_us() {
        let message = |kind: u16, priority: u32| {
            let mut bytes = 36u32.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10 + ROUTING_BYTES]);
            bytes.extend(8u16.to_ne_bytes());
            bytes.extend(PRIORITY_ATTRIBUTE.to_ne_bytes());
            bytes.extend(priority.to_ne_bytes());
            bytes
        };
        for kind in [RTM_NEWRULE, RTM_DELRULE] {
            for priority in wall::PRIORITIES {
                assert!(concerns_wall(&message(kind, priority)));
            }
            assert!(!concerns_wall(&message(kind, 512)));
        }
        assert!(!concerns_wall(&message(24, 51)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _concerned: bool = concerns(&bytes, &["kiam"]) || concerns_wall(&bytes);
        }
    }
}
