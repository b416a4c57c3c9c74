//! Reads the kernel's rtnetlink messages into [`Change`]s. Pure: bytes in, changes out.
//!
//! A message that cannot be read is skipped: the kernel may be newer than the library. Of link
//! messages only the fixed header is read, because their attributes change most often.

use std::net::IpAddr;

use netlink_packet_core::{NetlinkBuffer, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use super::paths::{Change, InterfaceIndex};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;

/// The kernel's own table of its own addresses, which are no pods'.
const TABLE_LOCAL: u32 = 255;
const IFF_UP: u32 = 1;
/// `NLM_F_DUMP_INTR`: what is being dumped changed meanwhile, so some of it may be missing.
const DUMP_INTERRUPTED: u16 = 0x10;
const NETLINK_ALIGNMENT: usize = 4;

/// What one datagram held.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// In the order said.
    pub(super) changes: Vec<Change>,
    /// The end of a dump that was asked for, well or badly.
    pub(super) ended: bool,
    /// What was dumped changed meanwhile: some of it may be missing.
    pub(super) interrupted: bool,
    /// Why the dump ended badly, as an error number greater than zero.
    pub(super) error: Option<i32>,
}

/// Reads one datagram.
pub(super) fn read(mut datagram: &[u8]) -> Said {
    let mut said = Said::default();
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        said.interrupted |= message.flags() & DUMP_INTERRUPTED != 0;
        match message.message_type() {
            // Both begin with a number: zero, or the negative of an error's.
            NLMSG_DONE | NLMSG_ERROR => {
                said.ended = true;
                let code = message.payload().first_chunk().copied();
                said.error = code
                    .map(i32::from_ne_bytes)
                    .map(i32::wrapping_neg)
                    .filter(|&code| code != 0);
            }
            kind => said.changes.extend(change(kind, message.payload())),
        }
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        let next = length.next_multiple_of(NETLINK_ALIGNMENT);
        datagram = datagram.get(next..).unwrap_or_default();
    }
    said
}

fn change(kind: u16, payload: &[u8]) -> Option<Change> {
    match kind {
        RTM_NEWLINK => {
            let (interface, flags) = link(payload)?;
            Some(if flags & IFF_UP == 0 {
                Change::Down(interface)
            } else {
                Change::Up(interface)
            })
        }
        // A bridge announces the end of a port's membership in the same words, in its own family:
        // the port itself lives on then, but the pod is no longer reached through it.
        RTM_DELLINK => link(payload).map(|(interface, _)| Change::Deleted(interface)),
        RTM_NEWROUTE | RTM_DELROUTE => route(kind, &RouteMessage::parse(payload).ok()?),
        RTM_NEWNEIGH => neighbour(&NeighbourMessage::parse(payload).ok()?),
        _ => None,
    }
}

/// `struct ifinfomsg`: family, padding, type; then index, flags and change mask, 32 bits each.
fn link(payload: &[u8]) -> Option<(InterfaceIndex, u32)> {
    let field = |at: usize| {
        let bytes = payload.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    Some((field(4)?, field(8)?))
}

/// A route to one address, straight out of one interface; everything else is nobody's pod.
fn route(kind: u16, message: &RouteMessage) -> Option<Change> {
    let mut ip = None;
    let mut interface = None;
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "thirty kinds, four that matter"
        )]
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Table(number) => table = *number,
            // Behind another router: another node's pod.
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    let (ip, interface) = (ip?, interface?);
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    if message.header.destination_prefix_length != whole
        || message.header.kind != RouteType::Unicast
        || table == TABLE_LOCAL
    {
        return None;
    }
    Some(if kind == RTM_NEWROUTE {
        Change::Route {
            ip,
            interface,
            table,
        }
    } else {
        Change::NoRoute {
            ip,
            interface,
            table,
        }
    })
}

fn neighbour(message: &NeighbourMessage) -> Option<Change> {
    let mut ip = None;
    let mut mac = None;
    for attribute in &message.attributes {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "a dozen kinds, two that matter"
        )]
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                ip = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                ip = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = bytes.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    let mac = mac?;
    if message.header.family == AddressFamily::Bridge {
        // Permanent entries are the bridge's and its ports' own addresses.
        return (message.header.state != NeighbourState::Permanent).then_some(Change::Learned {
            mac,
            port: message.header.ifindex,
        });
    }
    Some(Change::Neighbour { ip: ip?, mac })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable;
    use netlink_packet_route::route::RouteHeader;
    use proptest::prelude::*;

    use super::*;

    fn framed(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn route_to(ip: [u8; 4], prefix: u8, more: &[RouteAttribute]) -> Vec<u8> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: AddressFamily::Inet,
            destination_prefix_length: prefix,
            table: 254,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(ip.into())),
            RouteAttribute::Oif(7),
        ];
        message.attributes.extend_from_slice(more);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    const POD: [u8; 4] = [10, 0, 0, 9];

    #[test]
    fn pods_routes_are_read_and_others_are_not() {
        let pod = Change::Route {
            ip: POD.into(),
            interface: 7,
            table: 254,
        };
        let read_one = |kind, payload: &[u8]| read(&framed(kind, payload)).changes;
        assert_eq!(read_one(RTM_NEWROUTE, &route_to(POD, 32, &[])), [pod]);
        assert_eq!(read_one(RTM_NEWROUTE, &route_to(POD, 24, &[])), []);
        let gateway = RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into()));
        assert_eq!(read_one(RTM_NEWROUTE, &route_to(POD, 32, &[gateway])), []);
        let local = RouteAttribute::Table(TABLE_LOCAL);
        assert_eq!(read_one(RTM_NEWROUTE, &route_to(POD, 32, &[local])), []);
        assert!(matches!(
            read_one(RTM_DELROUTE, &route_to(POD, 32, &[])).as_slice(),
            [Change::NoRoute { .. }]
        ));
    }

    #[test]
    fn several_messages_in_one_datagram_and_the_end_of_a_dump() {
        let mut datagram = framed(RTM_NEWROUTE, &route_to(POD, 32, &[]));
        let mut link = vec![0; 16];
        link[4..8].copy_from_slice(&7u32.to_ne_bytes());
        datagram.extend(framed(RTM_DELLINK, &link));
        datagram.extend(framed(RTM_NEWLINK, &link));
        link[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        datagram.extend(framed(RTM_NEWLINK, &link));
        datagram.extend(framed(NLMSG_DONE, &[0; 4]));
        let said = read(&datagram);
        assert!(said.ended);
        assert_eq!((said.error, said.interrupted), (None, false));
        assert_eq!(
            said.changes[1..],
            [Change::Deleted(7), Change::Down(7), Change::Up(7)]
        );
    }

    #[test]
    fn a_dump_that_ended_badly_says_why() {
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let said = read(&framed(kind, &(-12_i32).to_ne_bytes()));
            assert_eq!((said.ended, said.error), (true, Some(12)));
            let said = read(&framed(kind, &0_i32.to_ne_bytes()));
            assert_eq!((said.ended, said.error), (true, None));
        }
    }

    #[test]
    fn an_interrupted_dump_is_noticed() {
        let mut datagram = framed(RTM_NEWROUTE, &route_to(POD, 32, &[]));
        datagram.extend(framed(NLMSG_DONE, &[0; 4]));
        assert!(!read(&datagram).interrupted);
        datagram[6..8].copy_from_slice(&(0x2 | DUMP_INTERRUPTED).to_ne_bytes());
        assert!(read(&datagram).interrupted);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            drop(read(&bytes));
        }

        #[test]
        fn any_payload_is_survived(
            kind in 16u16..32,
            bytes in proptest::collection::vec(any::<u8>(), 0..256)
        ) {
            drop(read(&framed(kind, &bytes)));
        }
    }
}
