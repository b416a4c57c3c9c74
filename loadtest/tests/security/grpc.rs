//! Whoever speaks to the server's gRPC port: forged nodes, strangers, and messages of any size.

use std::time::Duration;

use kiam_loadtest::rig::Program::Server;
use kiam_loadtest::rig::Rig;
use kiam_sim::certificates::Authority;
use kiam_wire::report::{HeldCredential, Hello};
use kiam_wire::{AgentMessage, CredentialId, UnixSeconds, limits, proto};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::{ip, rig};

async fn channel(rig: &Rig, identity: Option<(String, String)>) -> Result<Channel, String> {
    let ca = std::fs::read(rig.dir().join("ca.pem")).unwrap();
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .domain_name("localhost");
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{}", rig.server())).unwrap();
    let endpoint = endpoint.tls_config(tls).unwrap();
    let connected = endpoint.connect().await;
    connected.map_err(|error| format!("{error:?}"))
}

fn identity(rig: &Rig, name: &str) -> (String, String) {
    let read = |file: String| std::fs::read_to_string(rig.dir().join(file)).unwrap();
    (read(format!("{name}.pem")), read(format!("{name}-key.pem")))
}

/// Says Hello for `node` and waits for the first thing that comes back.
async fn follows(channel: Channel, node: &str, held: usize) -> Result<(), Status> {
    let held = (0..held).map(|_| HeldCredential {
        id: CredentialId::new([7; 32]),
        expires_at: UnixSeconds::new(4_000_000_000),
    });
    let hello = Hello {
        node_name: node.into(),
        agent_version: "test".into(),
        holds: None,
        held: held.collect(),
    };
    let hello = proto::AgentMessage::from(AgentMessage::Hello(hello));
    let mut client = proto::NodeCredentialsClient::new(channel)
        .max_encoding_message_size(usize::MAX)
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
    let said = futures::StreamExt::chain(
        futures::stream::once(async { hello }),
        futures::stream::pending(),
    );
    let work = async {
        let mut updates = client.follow(said).await?.into_inner();
        updates.message().await.map(drop)
    };
    let waited = tokio::time::timeout(Duration::from_mins(1), work).await;
    waited.unwrap_or_else(|_elapsed| panic!("neither an answer nor an error"))
}

#[test]
fn a_forged_node_gets_nothing() {
    let rig = rig(&[], &[]);
    rig.write_agent_identity("node-b", "stolen").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // With its own node's certificate: its own node, which has no pods, and no other.
        let stolen = identity(&rig, "stolen");
        let own = channel(&rig, Some(stolen.clone())).await.unwrap();
        follows(own.clone(), "node-b", 0).await.unwrap();
        let refused = follows(own, rig.node(), 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        // A server's certificate is not an agent's.
        if let Ok(channel) = channel(&rig, Some(identity(&rig, "server"))).await {
            follows(channel, rig.node(), 0).await.unwrap_err();
        }
        // An authority of one's own, and none at all.
        let other = Authority::new("another").unwrap();
        let forged = other.agent(Some(rig.node())).unwrap();
        let forged = (
            forged.certificate_pem().to_owned(),
            forged.key_pem().to_owned(),
        );
        for identity in [Some(forged), None] {
            if let Ok(channel) = channel(&rig, identity).await {
                follows(channel, rig.node(), 0).await.unwrap_err();
            }
        }
    });
    let refused = r#"kiam_agent_auth_total{outcome="other_node"}"#;
    assert!(rig.metric(Server, refused).unwrap() >= 1.0);
    // Nobody was disturbed.
    rig.start_pod("fine", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
}

#[test]
fn a_message_of_any_size_is_survived() {
    let rig = rig(&[], &[]);
    let pid = rig.pid(Server);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // 46 bytes each: 12 and 120 MB.
        for held in [250_000, 2_600_000] {
            let channel = channel(&rig, Some(identity(&rig, "agent"))).await.unwrap();
            let refused = follows(channel, rig.node(), held).await.unwrap_err();
            assert_ne!(refused.code(), Code::Ok);
        }
    });
    assert_eq!(rig.pid(Server), pid);
    rig.start_pod("fine", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
}
