//! Reads and writes the few conntrack messages we need. Pure: bytes in, entries out.
//!
//! A connection that was open before the rules went in keeps its old way for as long as its entry
//! lives, past every NAT rule. Such entries are deleted; the pod's next packet is then refused.

use std::net::IpAddr;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};

use crate::intercept::rules::is_metadata;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

/// `NFNL_SUBSYS_CTNETLINK << 8` and the message within it.
const CT_NEW: u16 = 0x100;
const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const NLA_F_NESTED: u16 = 0x8000;

/// `struct nfgenmsg`: family, version, resource id.
const GENERIC_BYTES: usize = 4;
const HEADER_BYTES: usize = 16;
const NETLINK_ALIGNMENT: usize = 4;

/// One tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    family: u8,
    /// Who opened it.
    from: IpAddr,
    /// Whom it was addressed to.
    to: IpAddr,
    /// Who really answers.
    answered_by: IpAddr,
    /// The attributes that name it, as the kernel wrote them.
    name: Vec<(u16, Vec<u8>)>,
}

/// What one datagram held.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) entries: Vec<Entry>,
    /// The end of a dump, or the answer to a deletion.
    pub(super) ended: bool,
    /// An error number other than zero.
    pub(super) error: Option<i32>,
}

impl Entry {
    /// Whether this connection goes to a metadata service other than the agent at `hosts`.
    ///
    /// The node's own connections stay: they are allowed, and were never translated.
    pub(super) fn is_stale(&self, hosts: &[IpAddr]) -> bool {
        is_metadata(self.to) && !hosts.contains(&self.answered_by) && !hosts.contains(&self.from)
    }

    /// Who opened it.
    pub(super) const fn from(&self) -> IpAddr {
        self.from
    }

    /// The request that deletes exactly this entry.
    pub(super) fn delete_request(&self, sequence: u32) -> Vec<u8> {
        let mut attributes = Vec::new();
        for (kind, value) in &self.name {
            let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
            attributes.extend(length.to_ne_bytes());
            attributes.extend(kind.to_ne_bytes());
            attributes.extend(value);
            attributes.resize(attributes.len().next_multiple_of(NETLINK_ALIGNMENT), 0);
        }
        request(
            CT_DELETE,
            NLM_F_REQUEST | NLM_F_ACK,
            self.family,
            sequence,
            &attributes,
        )
    }
}

/// Asks for every entry of both families.
pub(super) fn dump_request() -> Vec<u8> {
    request(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, 0, 1, &[])
}

fn request(kind: u16, flags: u16, family: u8, sequence: u32, attributes: &[u8]) -> Vec<u8> {
    let length = HEADER_BYTES
        .saturating_add(GENERIC_BYTES)
        .saturating_add(attributes.len());
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Reads one datagram; what cannot be read is skipped.
pub(super) fn read(mut datagram: &[u8]) -> Said {
    let mut said = Said::default();
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        match message.message_type() {
            NLMSG_DONE => said.ended = true,
            NLMSG_ERROR => {
                said.ended = true;
                let code = message.payload().first_chunk().copied();
                said.error = code.map(i32::from_ne_bytes).filter(|&code| code != 0);
            }
            CT_NEW => said.entries.extend(entry(message.payload())),
            _ => {}
        }
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        let next = length.next_multiple_of(NETLINK_ALIGNMENT);
        datagram = datagram.get(next..).unwrap_or_default();
    }
    said
}

fn entry(payload: &[u8]) -> Option<Entry> {
    let (generic, attributes) = payload.split_at_checked(GENERIC_BYTES)?;
    let mut opened = None;
    let mut answered = None;
    let mut name = Vec::new();
    for attribute in NlasIterator::new(attributes).flatten() {
        let value = attribute.value();
        match attribute.kind() {
            CTA_TUPLE_ORIG => {
                opened = addresses(value);
                name.push((CTA_TUPLE_ORIG | NLA_F_NESTED, value.to_vec()));
            }
            CTA_TUPLE_REPLY => answered = addresses(value),
            // With its id, an entry that was replaced in the meantime is not taken for this one.
            kind @ (CTA_ID | CTA_ZONE) => name.push((kind, value.to_vec())),
            _ => {}
        }
    }
    let (from, to) = opened?;
    Some(Entry {
        family: *generic.first()?,
        from,
        to,
        answered_by: answered?.0,
        name,
    })
}

/// Source and destination of a tuple.
fn addresses(tuple: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = NlasIterator::new(tuple)
        .flatten()
        .find(|attribute| attribute.kind() == CTA_TUPLE_IP)?;
    let mut from = None;
    let mut to = None;
    for attribute in NlasIterator::new(ip.value()).flatten() {
        let value = attribute.value();
        let v4 = || Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?));
        let v6 = || Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?));
        match attribute.kind() {
            CTA_IP_V4_SRC => from = v4(),
            CTA_IP_V4_DST => to = v4(),
            CTA_IP_V6_SRC => from = v6(),
            CTA_IP_V6_DST => to = v6(),
            _ => {}
        }
    }
    Some((from?, to?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4)
            .unwrap()
            .to_ne_bytes()
            .to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple(kind: u16, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut ips = attribute(CTA_IP_V4_SRC, &from);
        ips.extend(attribute(CTA_IP_V4_DST, &to));
        attribute(
            kind | NLA_F_NESTED,
            &attribute(CTA_TUPLE_IP | NLA_F_NESTED, &ips),
        )
    }

    const POD: [u8; 4] = [10, 0, 0, 9];
    const HOST: [u8; 4] = [10, 0, 0, 1];
    const METADATA: [u8; 4] = [169, 254, 169, 254];

    fn listed(from: [u8; 4], to: [u8; 4], answered_by: [u8; 4]) -> Vec<u8> {
        let mut attributes = tuple(CTA_TUPLE_ORIG, from, to);
        attributes.extend(tuple(CTA_TUPLE_REPLY, answered_by, from));
        attributes.extend(attribute(CTA_ID, &[1, 2, 3, 4]));
        request(CT_NEW, 0, 2, 1, &attributes)
    }

    #[track_caller]
    fn check(from: [u8; 4], to: [u8; 4], answered_by: [u8; 4], stale: bool) {
        let said = read(&listed(from, to, answered_by));
        let [entry] = said.entries.as_slice() else {
            panic!("{said:?}")
        };
        assert_eq!(entry.is_stale(&[HOST.into()]), stale, "{entry:?}");
    }

    #[test]
    fn only_ways_around_the_agent_are_stale() {
        check(POD, METADATA, METADATA, true);
        check(POD, METADATA, [10, 0, 0, 2], true);
        check(POD, METADATA, HOST, false);
        check(HOST, METADATA, METADATA, false);
        check(POD, [10, 0, 0, 7], [10, 0, 0, 7], false);
    }

    #[test]
    fn a_deletion_names_the_entry_as_the_kernel_did() {
        let entry = read(&listed(POD, METADATA, METADATA)).entries.remove(0);
        let request = entry.delete_request(3);
        let mut expected = tuple(CTA_TUPLE_ORIG, POD, METADATA);
        expected.extend(attribute(CTA_ID, &[1, 2, 3, 4]));
        assert_eq!(request.get(20..).unwrap(), expected);
        let length = u32::from_ne_bytes(*request.first_chunk().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), request.len());
    }

    #[test]
    fn a_refusal_is_seen() {
        let mut refusal = 20u32.to_ne_bytes().to_vec();
        refusal.extend(NLMSG_ERROR.to_ne_bytes());
        refusal.extend([0; 10]);
        refusal.extend((-1i32).to_ne_bytes());
        assert_eq!(read(&refusal).error, Some(-1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            drop(read(&bytes));
            drop(entry(&bytes));
        }
    }
}
