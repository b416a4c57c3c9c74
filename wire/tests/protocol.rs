//! The protocol through its public face: exact bytes, round trips, and what a hostile or newer
//! peer can send.

#![expect(clippy::unwrap_used, reason = "a test may end here")]

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use kiam_wire::credentials::Unchecked;
use kiam_wire::keys::{KeyMaterial, VerificationKey, VerificationKeys};
use kiam_wire::update::Parsed;
use kiam_wire::{
    AgentMessage, CredentialId, Credentials, Delta, Full, Malformed, Pod, PodState, PodUid,
    Refusal, Refused, Revision, UnixSeconds, Update, proto,
};
use proptest::prelude::*;
use prost::Message;

fn credentials(byte: u8) -> Arc<Credentials> {
    let parts = Unchecked {
        id: CredentialId::new([byte; 32]),
        role_name: "r".into(),
        role_arn: "arn:aws:iam::1:role/r".into(),
        access_key_id: "A".into(),
        secret_access_key: String::from("S").into(),
        session_token: String::from("T").into(),
        issued_at: UnixSeconds::new(1),
        expires_at: UnixSeconds::new(2),
    };
    Arc::new(Credentials::try_new(parts).unwrap())
}

fn pod(uid: &str, state: PodState) -> Pod {
    Pod {
        uid: PodUid::try_new(uid).unwrap(),
        namespace: "n".into(),
        name: "p".into(),
        service_account: "s".into(),
        ips: vec![IpAddr::from([10, 0, 0, 1])],
        host_network: false,
        imds_v2_required: false,
        state,
    }
}

const EPOCH: u64 = 0x0102_0304_0506_0708;

fn revision(number: u64) -> Revision {
    Revision {
        epoch: EPOCH,
        number,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// A byte of difference here is a protocol that deployed agents cannot read.
#[test]
fn the_bytes_of_a_delta_are_pinned() {
    let update = Update::Delta(Delta {
        from: revision(1),
        to: revision(2),
        pods: vec![pod("u", PodState::Granted(CredentialId::new([7; 32])))],
        removed_pods: vec![PodUid::try_new("g").unwrap()],
        credentials: vec![credentials(7)],
        keys: None,
    });
    let id = "07".repeat(32);
    let pod = format!("0a0175 12016e 1a0170 220173 2a040a000001 4220{id}");
    let role = hex(b"arn:aws:iam::1:role/r");
    let credentials = format!("0a20{id} 120172 1a15{role} 220141 2a0153 320154 3801 4002");
    let expected = format!(
        "129e01 0a0b 09 0807060504030201 1001 120b 09 0807060504030201 1002 \
         1a34 {pod} 220167 2a49 {credentials}"
    );
    assert_eq!(
        hex(&proto::ServerMessage::from(&update).encode_to_vec()),
        expected.replace(' ', "")
    );
}

#[test]
fn the_bytes_of_a_hello_are_pinned() {
    let hello = AgentMessage::Hello(kiam_wire::report::Hello {
        node_name: "n1".into(),
        agent_version: "v".into(),
        holds: Some(revision(3)),
        held: vec![],
    });
    assert_eq!(
        hex(&proto::AgentMessage::from(hello).encode_to_vec()),
        "0a140a026e311201761a0b0908070605040302011003"
    );
}

fn parse(update: &Update) -> Result<Parsed, Malformed> {
    let bytes = proto::ServerMessage::from(update).encode_to_vec();
    Parsed::try_from(proto::ServerMessage::decode(bytes.as_slice()).unwrap())
}

#[test]
fn what_a_server_says_is_what_an_agent_hears() {
    let id = CredentialId::new([7; 32]);
    let states = [
        PodState::Granted(id),
        PodState::Pending(id),
        PodState::Refused(Refused::new(Refusal::NamespaceForbids, "because")),
        PodState::NoRole,
    ];
    let keys = VerificationKeys {
        issuer: "https://cluster".into(),
        keys: vec![VerificationKey {
            id: "k".into(),
            material: KeyMaterial::P256(vec![4; 65]),
        }],
    };
    let update = Update::Full(Full {
        revision: revision(9),
        pods: states
            .into_iter()
            .zip(["a", "b", "c", "d"])
            .map(|(s, uid)| pod(uid, s))
            .collect(),
        credentials: vec![credentials(7)],
        keys: Some(Arc::new(keys)),
    });
    let parsed = parse(&update).unwrap();
    assert_eq!(parsed.update, update);
    assert_eq!(parsed.left_out, []);
    assert_eq!(update.leads_to(), revision(9));
}

#[test]
fn a_bad_pod_or_credential_costs_only_itself() {
    let update = Update::Full(Full {
        revision: revision(1),
        pods: vec![pod("good", PodState::NoRole), pod("bad", PodState::NoRole)],
        credentials: vec![credentials(1), credentials(2)],
        keys: None,
    });
    let mut message = proto::ServerMessage::from(&update);
    let Some(proto::server_message::Message::Full(full)) = &mut message.message else {
        panic!("a full was encoded");
    };
    full.pods[1].ips = vec![vec![1]];
    full.credentials[0].session_token = "two words".into();
    let parsed = Parsed::try_from(message).unwrap();
    let Update::Full(full) = parsed.update else {
        panic!("a full was decoded")
    };
    assert_eq!(full.pods.len(), 1);
    assert_eq!(full.credentials, [credentials(2)]);
    let fields = parsed
        .left_out
        .iter()
        .map(|malformed| malformed.field)
        .collect::<Vec<_>>();
    assert_eq!(fields, ["pod.ips", "credentials.session_token"]);
}

#[test]
fn a_delta_says_of_which_pods_it_could_not_be_read() {
    let update = Update::Delta(Delta {
        from: revision(1),
        to: revision(2),
        pods: ["good", "bad", "worse"]
            .map(|uid| pod(uid, PodState::NoRole))
            .into(),
        removed_pods: vec![PodUid::try_new("gone").unwrap()],
        credentials: vec![],
        keys: None,
    });
    let mut message = proto::ServerMessage::from(&update);
    let Some(proto::server_message::Message::Delta(delta)) = &mut message.message else {
        panic!("a delta was encoded");
    };
    delta.pods[1].ips = vec![vec![1]];
    delta.pods[2].uid = String::new();
    let parsed = Parsed::try_from(message).unwrap();
    assert_eq!(parsed.left_out.len(), 2);
    assert_eq!(parsed.unreadable, [PodUid::try_new("bad").unwrap()]);
    let Update::Delta(delta) = parsed.update else {
        panic!("a delta was decoded")
    };
    assert_eq!((delta.pods.len(), delta.removed_pods.len()), (1, 1));
}

#[test]
fn a_message_without_its_revision_is_refused_whole() {
    let message = |message| proto::ServerMessage {
        message: Some(message),
    };
    let full = message(proto::server_message::Message::Full(proto::Full::default()));
    let delta = message(proto::server_message::Message::Delta(
        proto::Delta::default(),
    ));
    assert_eq!(
        Parsed::try_from(full).unwrap_err().to_string(),
        "full.revision is missing"
    );
    assert_eq!(
        Parsed::try_from(delta).unwrap_err().to_string(),
        "delta.from is missing"
    );
}

proptest! {
    /// Whatever arrives, the border answers with a value or a refusal.
    #[test]
    fn no_bytes_make_the_border_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(message) = proto::ServerMessage::decode(bytes.as_slice()) {
            drop(Parsed::try_from(message));
        }
        if let Ok(message) = proto::AgentMessage::decode(bytes.as_slice()) {
            drop(AgentMessage::try_from(message));
        }
    }

    /// A message cut or altered anywhere either still parses within the limits or is refused.
    #[test]
    fn an_altered_update_is_parsed_or_refused(at in 0_usize..400, to in any::<u8>()) {
        let update = Update::Full(Full {
            revision: revision(1),
            pods: vec![pod("u", PodState::Granted(CredentialId::new([7; 32])))],
            credentials: vec![credentials(7)],
            keys: None,
        });
        let mut bytes = proto::ServerMessage::from(&update).encode_to_vec();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = to;
        }
        if let Ok(message) = proto::ServerMessage::decode(bytes.as_slice())
            && let Ok(parsed) = Parsed::try_from(message)
            && let Update::Full(full) = parsed.update
        {
            prop_assert!(full.pods.iter().all(|pod| !pod.name.is_empty() && pod.ips.len() <= 16));
        }
    }
}
