//! What the node should be serving, as a file: [`encode`] and [`decode`] are pure, [`write()`] and
//! [`read`] put them in the directory.
//!
//! Beside pods and credentials it holds the interface that each address lay behind, so that an
//! address that changed hands while no agent ran is not answered with its former pod's credentials,
//! and the addresses that nobody was answered from.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use kiam_wire::update::Parsed;
use kiam_wire::{CredentialId, Full, Malformed, PodState, PodUid, UnixSeconds, Update, proto};
use prost::Message;
use zeroize::{Zeroize, Zeroizing};

use super::directory::Directory;
use super::sealed::{Kind, Unsealed, open, seal};
use crate::snapshot::store::UNSAID;

const FILE: &str = "snapshot";
/// What can travel on the wire can be handed over, with its envelope.
const FILE_BYTES_MAX: u64 = 80 * 1024 * 1024;
/// Nothing older has credentials that are still valid: AWS's longest session.
pub const AGE_MAX: Duration = Duration::from_hours(12);
/// Clocks are set back by less when they are corrected.
const FUTURE_MAX: Duration = Duration::from_mins(5);

/// Whose it is and when: written at the head, and asked for when reading.
#[derive(Debug, Clone, Copy)]
pub struct Here<'a> {
    /// The Kubernetes node.
    pub node_name: &'a str,
    /// [`boot_id`](super::boot_id).
    pub boot_id: &'a str,
    /// The wall clock.
    pub now: UnixSeconds,
}

/// What an agent left.
#[derive(Debug)]
pub struct Handover {
    /// What the node should be serving. Holds no expired credentials; pods that had them wait. Its
    /// revision is a server's only when it is all that the server said.
    pub full: Full,
    /// Where addresses were.
    pub addresses: Addresses,
    /// When it was written.
    pub written_at: UnixSeconds,
    /// Credentials that had expired.
    pub expired: usize,
    /// Pods or credentials that could not be read.
    pub left_out: Vec<Malformed>,
}

/// What an agent knew from the kernel about addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// The interface each lay behind.
    pub interfaces: Vec<(IpAddr, u32)>,
    /// Nobody was answered from these, because the pod that had each was gone.
    pub fenced: Vec<(IpAddr, PodUid)>,
    /// Nor from these by the pod named here, should a server name it again: on one stream it had lost them.
    pub superseded: Vec<(IpAddr, PodUid)>,
    /// The interface on which a gone address would be the same pod's again.
    pub left: Vec<(IpAddr, u32)>,
}

/// Why what an agent left is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Not a whole file of ours.
    #[error("the handed-over snapshot is refused")]
    Sealed(#[from] Unsealed),
    /// The disk of another node was cloned, or the node was renamed.
    #[error("the handed-over snapshot is another node's ({0})")]
    OtherNode(String),
    /// Pods' addresses and interfaces are new in every boot.
    #[error("the handed-over snapshot is of an earlier boot")]
    OtherBoot,
    /// No credentials in it can still be valid.
    #[error("the handed-over snapshot is {} hours old", .0.as_secs() / 3600)]
    TooOld(Duration),
    /// The clock was set back, so nothing in it can be dated.
    #[error("the handed-over snapshot is {} minutes from the future", .0.as_secs() / 60)]
    FromTheFuture(Duration),
    /// It was written by an agent with a fault: no message of ours.
    #[error("the handed-over snapshot is not understood")]
    NotUnderstood,
    /// It was written by an agent with a fault: the message breaks a rule.
    #[error("the handed-over snapshot cannot be read")]
    Malformed(#[source] Malformed),
    /// The file itself.
    #[error("the handed-over snapshot cannot be read")]
    Io(#[from] io::Error),
}

/// The head of the body; what follows it is the protocol's own `ServerMessage`.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(string, tag = "1")]
    node_name: String,
    #[prost(string, tag = "2")]
    boot_id: String,
    #[prost(int64, tag = "3")]
    written_at_unix_s: i64,
    #[prost(message, repeated, tag = "4")]
    interfaces: Vec<Lies>,
    #[prost(message, repeated, tag = "5")]
    fenced: Vec<Fenced>,
    #[prost(message, repeated, tag = "6")]
    left: Vec<Lies>,
    #[prost(message, repeated, tag = "7")]
    superseded: Vec<Fenced>,
}

/// An address and the interface it lies behind.
#[derive(Clone, PartialEq, Message)]
struct Lies {
    #[prost(bytes = "vec", tag = "1")]
    ip: Vec<u8>,
    #[prost(uint32, tag = "2")]
    interface: u32,
}

/// An address and the pod that is no longer behind it.
#[derive(Clone, PartialEq, Message)]
struct Fenced {
    #[prost(bytes = "vec", tag = "1")]
    ip: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
}

/// The file's bytes, wiped when dropped.
pub fn encode(full: Full, addresses: &Addresses, here: Here<'_>) -> Zeroizing<Vec<u8>> {
    let head = Head {
        node_name: here.node_name.to_owned(),
        boot_id: here.boot_id.to_owned(),
        written_at_unix_s: here.now.get(),
        interfaces: addresses.interfaces.iter().map(Lies::from).collect(),
        fenced: addresses.fenced.iter().map(Fenced::from).collect(),
        left: addresses.left.iter().map(Lies::from).collect(),
        superseded: addresses.superseded.iter().map(Fenced::from).collect(),
    };
    let mut message = proto::ServerMessage::from(&Update::Full(full));
    let head = head.encode_length_delimited_to_vec();
    let update = Zeroizing::new(message.encode_length_delimited_to_vec());
    // Joined in one piece: growing would leave a copy behind that nobody wipes.
    let body = Zeroizing::new([head.as_slice(), update.as_slice()].concat());
    wipe(&mut message);
    seal(Kind::Snapshot, &body)
}

/// Reads it back. Never panics, whatever the bytes.
pub fn decode(bytes: &[u8], here: Here<'_>) -> Result<Handover, Refused> {
    let mut body = open(Kind::Snapshot, bytes)?;
    let head = Head::decode_length_delimited(&mut body).map_err(|_prost| Refused::NotUnderstood)?;
    if head.node_name != here.node_name {
        return Err(Refused::OtherNode(head.node_name));
    }
    if head.boot_id != here.boot_id {
        return Err(Refused::OtherBoot);
    }
    let written_at = UnixSeconds::new(head.written_at_unix_s);
    let age = here.now.since(written_at);
    if age > AGE_MAX {
        return Err(Refused::TooOld(age));
    }
    let future = written_at.since(here.now);
    if future > FUTURE_MAX {
        return Err(Refused::FromTheFuture(future));
    }
    let message = proto::ServerMessage::decode_length_delimited(&mut body)
        .map_err(|_prost| Refused::NotUnderstood)?;
    let Parsed {
        update, left_out, ..
    } = Parsed::try_from(message).map_err(Refused::Malformed)?;
    let Update::Full(mut full) = update else {
        return Err(Refused::NotUnderstood);
    };
    let expired = drop_expired(&mut full, here.now);
    if pods_await_credentials(&mut full) || expired > 0 || !left_out.is_empty() {
        full.revision = UNSAID;
    }
    Ok(Handover {
        full,
        addresses: Addresses {
            interfaces: head.interfaces.iter().filter_map(lies).collect(),
            fenced: head.fenced.iter().filter_map(fenced).collect(),
            superseded: head.superseded.iter().filter_map(fenced).collect(),
            left: head.left.iter().filter_map(lies).collect(),
        },
        written_at,
        expired,
        left_out,
    })
}

/// Leaves the snapshot for the next agent.
pub fn write(
    directory: &Directory,
    full: Full,
    addresses: &Addresses,
    here: Here<'_>,
) -> io::Result<()> {
    directory.replace(FILE, &encode(full, addresses, here))
}

/// What an earlier agent left; `None` when none did.
pub fn read(directory: &Directory, here: Here<'_>) -> Result<Option<Handover>, Refused> {
    match directory.read(FILE, FILE_BYTES_MAX)? {
        Some(bytes) => decode(&bytes, here).map(Some),
        None => Ok(None),
    }
}

fn drop_expired(full: &mut Full, now: UnixSeconds) -> usize {
    let before = full.credentials.len();
    full.credentials
        .retain(|credentials| credentials.expires_at() > now);
    before.saturating_sub(full.credentials.len())
}

/// A pod whose credentials have expired is as one whose credentials are on the way. Returns whether
/// there is one.
fn pods_await_credentials(full: &mut Full) -> bool {
    let held: HashSet<CredentialId> = full.credentials.iter().map(|each| each.id()).collect();
    let mut some_wait = false;
    for pod in &mut full.pods {
        if let PodState::Granted(id) = pod.state
            && !held.contains(&id)
        {
            pod.state = PodState::Pending(id);
            some_wait = true;
        }
    }
    some_wait
}

impl From<&(IpAddr, PodUid)> for Fenced {
    fn from((ip, uid): &(IpAddr, PodUid)) -> Self {
        Self {
            ip: octets(*ip),
            uid: uid.as_str().to_owned(),
        }
    }
}

fn fenced(fenced: &Fenced) -> Option<(IpAddr, PodUid)> {
    Some((address(&fenced.ip)?, PodUid::try_new(&fenced.uid).ok()?))
}

impl From<&(IpAddr, u32)> for Lies {
    fn from(&(ip, interface): &(IpAddr, u32)) -> Self {
        Self {
            ip: octets(ip),
            interface,
        }
    }
}

fn lies(lies: &Lies) -> Option<(IpAddr, u32)> {
    Some((address(&lies.ip)?, lies.interface))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ip = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ip.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// The generated types do not wipe what they hold.
fn wipe(message: &mut proto::ServerMessage) {
    if let Some(proto::server_message::Message::Full(full)) = &mut message.message {
        for credentials in &mut full.credentials {
            credentials.secret_access_key.zeroize();
            credentials.session_token.zeroize();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kiam_wire::credentials::Unchecked;
    use kiam_wire::{CredentialId, Credentials, Pod, PodUid, Revision};
    use proptest::prelude::*;

    use super::super::directory::tests::in_memory;
    use super::*;

    const NOW: UnixSeconds = UnixSeconds::new(1_800_000_000);
    const HERE: Here<'_> = Here {
        node_name: "node-a",
        boot_id: "boot-1",
        now: NOW,
    };

    fn credentials(id: u8, life_s: i64) -> Arc<Credentials> {
        Arc::new(
            Credentials::try_new(Unchecked {
                id: CredentialId::new([id; 32]),
                role_name: "reader".into(),
                role_arn: "arn:aws:iam::123456789012:role/reader".into(),
                access_key_id: "ASIAEXAMPLE000000000".into(),
                secret_access_key: Zeroizing::new("hidden-secret".into()),
                session_token: Zeroizing::new("hidden-token".into()),
                issued_at: UnixSeconds::new(NOW.get() - 100),
                expires_at: UnixSeconds::new(NOW.get() + life_s),
            })
            .unwrap(),
        )
    }

    fn uid(number: u8) -> PodUid {
        PodUid::try_new(&format!("00000000-0000-0000-0000-0000000000{number:02}")).unwrap()
    }

    fn pod(number: u8, state: PodState) -> Pod {
        Pod {
            uid: uid(number),
            namespace: "default".into(),
            name: format!("pod-{number}"),
            service_account: "default".into(),
            ips: vec![IpAddr::from([10, 0, 0, number])],
            host_network: false,
            imds_v2_required: false,
            state,
        }
    }

    fn full() -> Full {
        Full {
            revision: Revision {
                epoch: 7,
                number: 9,
            },
            pods: vec![
                pod(1, PodState::Granted(CredentialId::new([1; 32]))),
                pod(2, PodState::Granted(CredentialId::new([2; 32]))),
                pod(3, PodState::NoRole),
            ],
            credentials: vec![credentials(1, 600), credentials(2, 1200)],
            keys: None,
        }
    }

    fn addresses() -> Addresses {
        let (v4, v6) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        Addresses {
            interfaces: vec![(v4, 7), (v6, 8)],
            fenced: vec![(v6, uid(1)), (v4, uid(9))],
            superseded: vec![(v4, uid(8))],
            left: vec![(v6, 9)],
        }
    }

    fn encoded() -> Zeroizing<Vec<u8>> {
        encode(full(), &addresses(), HERE)
    }

    #[test]
    fn what_was_left_is_found() {
        let (_guard, directory) = in_memory();
        assert!(read(&directory, HERE).unwrap().is_none());
        write(&directory, full(), &addresses(), HERE).unwrap();
        let found = read(&directory, HERE).unwrap().unwrap();
        assert_eq!(found.full, full());
        assert_eq!(found.addresses, addresses());
        assert_eq!((found.written_at, found.expired), (NOW, 0));
        assert!(found.left_out.is_empty());
    }

    #[track_caller]
    fn check(here: Here<'_>, expected: &str) {
        let got = decode(&encoded(), here);
        let got = got.map_or_else(
            |error| error.to_string(),
            |found| format!("{} expired", found.expired),
        );
        assert_eq!(got, expected);
    }

    #[test]
    fn what_is_stale_or_foreign_is_refused() {
        let after = |seconds: i64| Here {
            now: UnixSeconds::new(NOW.get() + seconds),
            ..HERE
        };
        check(HERE, "0 expired");
        check(after(600), "1 expired");
        check(after(12 * 3600), "2 expired");
        check(
            after(12 * 3600 + 1),
            "the handed-over snapshot is 12 hours old",
        );
        check(after(-300), "0 expired");
        check(
            after(-301),
            "the handed-over snapshot is 5 minutes from the future",
        );
        let other = Here {
            node_name: "node-b",
            ..HERE
        };
        check(other, "the handed-over snapshot is another node's (node-a)");
        let other = Here {
            boot_id: "boot-2",
            ..HERE
        };
        check(other, "the handed-over snapshot is of an earlier boot");
    }

    #[test]
    fn a_pod_with_expired_credentials_waits_for_new_ones() {
        let here = Here {
            now: UnixSeconds::new(NOW.get() + 600),
            ..HERE
        };
        let found = decode(&encoded(), here).unwrap();
        let states: Vec<_> = found
            .full
            .pods
            .iter()
            .map(|pod| pod.state.clone())
            .collect();
        assert_eq!(
            states,
            [
                PodState::Pending(CredentialId::new([1; 32])),
                PodState::Granted(CredentialId::new([2; 32])),
                PodState::NoRole,
            ]
        );
    }

    #[test]
    fn what_lost_something_is_not_what_the_server_said() {
        let revision = |full: Full, now: i64| {
            let here = Here {
                now: UnixSeconds::new(NOW.get() + now),
                ..HERE
            };
            let found = decode(&encode(full, &addresses(), HERE), here).unwrap();
            (found.full.revision, found.expired, found.left_out.len())
        };
        let said = full().revision;
        assert_eq!(revision(full(), 599), (said, 0, 0));
        assert_eq!(revision(full(), 600), (UNSAID, 1, 0));
        // The credentials were gone before it was written.
        let mut gone = full();
        gone.credentials.remove(0);
        assert_eq!(revision(gone, 0), (UNSAID, 0, 0));
        let mut malformed = full();
        malformed.pods[2].namespace = String::new();
        assert_eq!(revision(malformed, 0), (UNSAID, 0, 1));
    }

    #[test]
    fn every_flipped_byte_is_refused() {
        let bytes = encoded();
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 0x10;
            assert!(decode(&flipped, HERE).is_err(), "byte {at}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let found = decode(&encoded(), HERE).unwrap();
        assert!(!format!("{found:?}").contains("hidden"));
    }

    proptest! {
        #[test]
        fn a_sealed_body_of_any_bytes_is_survived(
            body in proptest::collection::vec(any::<u8>(), 0..400)
        ) {
            drop(decode(&seal(Kind::Snapshot, &body), HERE));
        }
    }
}
