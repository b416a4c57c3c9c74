//! Hears from the kernel that somebody touched the rules, so that nothing has to be polled.
//!
//! Busy nodes change other tables all the time (kube-proxy), so a change is only reported when it
//! is to a table that holds rules of ours; that is the first attribute of every such message.

use std::io;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use crate::intercept::Backend;
use crate::intercept::nft::ruleset;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`, the upper byte of the message type.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWGEN`: a transaction's end, which names no table.
const NEW_GENERATION: u8 = 15;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_OBJ_TABLE`: all are 1.
const TABLE_ATTRIBUTE: u16 = 1;
const GENERIC_BYTES: usize = 4;
const NETLINK_ALIGNMENT: usize = 4;

/// Listens to changes of nftables rules.
#[derive(Debug)]
pub(super) struct Watch {
    socket: Socket,
    tables: &'static [&'static str],
}

/// The library's socket has no `Debug`.
struct Socket(TokioSocket);

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Socket")
    }
}

impl Watch {
    /// # Errors
    /// `NET_ADMIN` is missing, or the kernel has no nftables.
    pub(super) fn open(backend: Backend) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind_auto()?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(Self {
            socket: Socket(socket),
            tables: match backend {
                Backend::Nftables => &[ruleset::TABLE],
                // The iptables tools of today write nftables tables of these names.
                Backend::Iptables => &["nat", "mangle"],
            },
        })
    }

    /// Waits for a change to a table that holds rules of ours. Safe to cancel.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        loop {
            match self.socket.0.recv_from_full().await {
                Ok((datagram, _from)) if concerns(&datagram, self.tables) => return Ok(()),
                Ok(_other_tables) => {}
                // Messages were lost: one of them may have been ours.
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

/// Whether any message of this datagram is about one of `tables`.
fn concerns(mut datagram: &[u8], tables: &[&str]) -> bool {
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        let [kind, subsystem] = message.message_type().to_le_bytes();
        if subsystem == SUBSYSTEM && kind != NEW_GENERATION {
            let attributes = message.payload().get(GENERIC_BYTES..).unwrap_or_default();
            let named = NlasIterator::new(attributes)
                .flatten()
                .filter(|attribute| attribute.kind() == TABLE_ATTRIBUTE)
                .any(|attribute| {
                    let name = attribute.value();
                    let name = name.strip_suffix(&[0]).unwrap_or(name);
                    tables.iter().any(|table| table.as_bytes() == name)
                });
            if named {
                return true;
            }
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

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _concerned: bool = concerns(&bytes, &["kiam"]);
        }
    }
}
