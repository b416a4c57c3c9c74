//! Following a server over real mutual TLS: what is said, what is kept, and what is survived.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may end here"
)]

#[path = "control_follow/agent.rs"]
mod agent;
#[path = "control_follow/certificates.rs"]
mod certificates;
#[path = "control_follow/server.rs"]
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kiam_agent::clock::Now;
use kiam_agent::config::Task;
use kiam_agent::control::kernel_first::kernel_first;
use kiam_wire::credentials::Unchecked;
use kiam_wire::limits::MESSAGE_BYTES_MAX;
use kiam_wire::report::{Interception, Report};
use kiam_wire::{
    AgentMessage, CredentialId, Credentials, Delta, Full, Pod, PodState, PodUid, Revision,
    UnixSeconds, Update, proto,
};

use self::agent::Agent;
use self::certificates::{Authority, Files, SERVER_NAME};
use self::server::{PATIENCE, ScriptedServer};

const ID: CredentialId = CredentialId::new([7; 32]);
const EXPIRY: UnixSeconds = UnixSeconds::new(4_000_000_000);

const fn revision(number: u64) -> Revision {
    Revision { epoch: 1, number }
}

fn pod(name: &str) -> Pod {
    Pod {
        uid: PodUid::try_new(name).unwrap(),
        namespace: "default".into(),
        name: name.into(),
        service_account: "default".into(),
        ips: vec![],
        host_network: false,
        imds_v2_required: false,
        state: PodState::Granted(ID),
    }
}

fn credentials() -> Arc<Credentials> {
    let parts = Unchecked {
        id: ID,
        role_name: "reader".into(),
        role_arn: "arn:aws:iam::123456789012:role/reader".into(),
        access_key_id: "ASIAEXAMPLE".into(),
        secret_access_key: String::from("secret").into(),
        session_token: String::from("token").into(),
        issued_at: UnixSeconds::new(1),
        expires_at: EXPIRY,
    };
    Arc::new(Credentials::try_new(parts).unwrap())
}

fn full(number: u64, pods: &[&str]) -> Update {
    Update::Full(Full {
        revision: revision(number),
        pods: pods.iter().map(|name| pod(name)).collect(),
        credentials: vec![credentials()],
        keys: None,
    })
}

fn delta(from: u64, to: u64, pods: &[&str]) -> Update {
    Update::Delta(Delta {
        from: revision(from),
        to: revision(to),
        pods: pods.iter().map(|name| pod(name)).collect(),
        removed_pods: vec![],
        credentials: vec![],
        keys: None,
    })
}

/// One server, one agent, both of one authority.
fn pair() -> (ScriptedServer, Agent, Files) {
    let authority = Authority::new();
    let server = ScriptedServer::start("127.0.0.1:0", &authority.issue(SERVER_NAME));
    let files = Files::new(&authority.issue("agent"));
    let agent = Agent::start(&files, &[server.address]);
    (server, agent, files)
}

#[tokio::test]
async fn the_kernel_is_heard_before_an_update_is_applied() {
    let authority = Authority::new();
    let mut server = ScriptedServer::start("127.0.0.1:0", &authority.issue(SERVER_NAME));
    let files = Files::new(&authority.issue("agent"));
    let (kernel, mut updates) = kernel_first();
    let agent = Agent::after(kernel, &files, &[server.address]);
    let mut stream = server.stream().await;
    stream.update(&full(1, &["a"])).await;
    let waiting = updates.waiting().await;
    assert!(agent.pods().is_empty(), "the kernel has the word");
    drop(waiting);
    stream.until_applied(1).await;
    assert_eq!(agent.pods(), ["a"]);

    stream.update(&delta(1, 2, &["b"])).await;
    let waiting = updates.waiting().await;
    assert_eq!(agent.pods(), ["a"]);
    drop(waiting);
    stream.until_applied(2).await;
    assert_eq!(agent.pods(), ["a", "b"]);
}

#[tokio::test]
async fn updates_are_applied_and_acknowledged() {
    let (mut server, agent, _files) = pair();
    let mut stream = server.stream().await;
    assert_eq!(stream.hello.node_name, "node-a");
    assert_eq!(stream.hello.agent_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(stream.hello.holds, None);
    assert_eq!(stream.hello.held, []);
    assert_eq!(stream.authorization.as_deref(), Some("Bearer first-token"));
    stream.update(&full(1, &["a"])).await;
    stream.until_applied(1).await;
    assert_eq!(agent.pods(), ["a"]);
    stream.update(&delta(1, 2, &["b"])).await;
    stream.until_applied(2).await;
    assert_eq!(agent.pods(), ["a", "b"]);
    agent.until_metric("kiam_agent_server_connected 1").await;
    agent
        .until_metric("kiam_agent_updates_total{outcome=\"delta\"} 1")
        .await;
    agent
        .until_metric("grpc_client_tls_certificate_verify_error 0")
        .await;
}

#[tokio::test]
async fn what_is_served_survives_the_server_and_is_named_to_the_next() {
    let (mut server, agent, files) = pair();
    let mut stream = server.stream().await;
    stream.update(&full(1, &["a"])).await;
    stream.until_applied(1).await;
    drop((stream, server));
    agent.until_metric("kiam_agent_server_connected 0").await;
    assert_eq!(agent.pods(), ["a"]);

    files.write_token("second-token");
    let authority = Authority::new();
    files.write(&authority.issue("agent"));
    let mut second = ScriptedServer::start("127.0.0.1:0", &authority.issue(SERVER_NAME));
    agent.names.set(&[second.address]);
    let mut stream = second.stream().await;
    assert_eq!(stream.authorization.as_deref(), Some("Bearer second-token"));
    assert_eq!(stream.hello.holds, Some(revision(1)));
    let held: Vec<_> = stream
        .hello
        .held
        .iter()
        .map(|held| (held.id, held.expires_at))
        .collect();
    assert_eq!(held, [(ID, EXPIRY)]);
    stream.update(&delta(1, 2, &["b"])).await;
    stream.until_applied(2).await;
    assert_eq!(agent.pods(), ["a", "b"]);
}

#[tokio::test]
async fn a_server_that_closes_the_stream_is_come_back_to() {
    let (mut server, agent, _files) = pair();
    for number in 1..=3 {
        let mut stream = server.stream().await;
        stream.update(&full(number, &["a"])).await;
        stream.until_applied(number).await;
    }
    agent
        .until_metric("kiam_agent_server_streams_ended_total{reason=\"closed\"} 2")
        .await;
}

#[tokio::test]
async fn every_address_is_tried() {
    let authority = Authority::new();
    let mut server = ScriptedServer::start("127.0.0.1:0", &authority.issue(SERVER_NAME));
    let files = Files::new(&authority.issue("agent"));
    // Nobody listens on the first ones, and the next is somebody else.
    let stranger = ScriptedServer::start("127.0.0.1:0", &authority.issue("other.test"));
    let mut addresses: Vec<SocketAddr> = (2..6)
        .map(|host| SocketAddr::from(([127, 0, 0, host], server.address.port())))
        .collect();
    addresses.extend([stranger.address, server.address]);
    let agent = Agent::start(&files, &addresses);
    let mut stream = server.stream().await;
    stream.update(&full(1, &["a"])).await;
    stream.until_applied(1).await;
    assert_eq!(agent.pods(), ["a"]);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let (mut silent, agent, _files) = pair();
    let _first = silent.stream().await;
    let _second = silent.stream().await;
    let attempts = agent.metrics();
    assert!(!attempts.contains("kiam_agent_server_attempts_total{result=\"failed\"} 0"));
}

#[tokio::test]
async fn after_a_gap_everything_is_asked_for_and_nothing_is_lost() {
    let (mut server, agent, _files) = pair();
    let mut stream = server.stream().await;
    stream.update(&full(1, &["a"])).await;
    stream.until_applied(1).await;
    stream.update(&delta(5, 6, &["b"])).await;
    stream.until_closed().await;
    assert_eq!(agent.pods(), ["a"]);

    let mut stream = server.stream().await;
    assert_eq!(stream.hello.holds, None);
    assert_eq!(stream.hello.held.len(), 1, "it still says what it holds");
    stream.update(&full(6, &["b"])).await;
    stream.until_applied(6).await;
    assert_eq!(agent.pods(), ["b"]);
    agent
        .until_metric("kiam_agent_updates_total{outcome=\"gap\"} 1")
        .await;
}

#[tokio::test]
async fn an_update_that_cannot_be_read_is_refused_whole_and_costs_nothing() {
    let (mut server, agent, _files) = pair();
    let mut stream = server.stream().await;
    stream.update(&full(1, &["a"])).await;
    stream.until_applied(1).await;

    let no_revision = proto::Full::default();
    stream.raw(message(no_revision)).await;
    stream.until_closed().await;
    assert_eq!(agent.pods(), ["a"]);
    agent
        .until_metric("kiam_agent_updates_total{outcome=\"malformed\"} 1")
        .await;

    let mut stream = server.stream().await;
    stream.update(&full(2, &["a"])).await;
    stream.until_applied(2).await;
    let mut oversized = full_message(3, &["b"]);
    oversized.pods[0].name = "x".repeat(MESSAGE_BYTES_MAX);
    stream.raw(message(oversized)).await;
    stream.until_closed().await;
    assert_eq!(agent.pods(), ["a"]);
    let stream = server.stream().await;
    assert_eq!(stream.hello.holds, Some(revision(2)));
}

#[tokio::test]
async fn a_malformed_pod_costs_that_pod() {
    let (mut server, agent, _files) = pair();
    let mut stream = server.stream().await;
    let mut update = full_message(1, &["a", "b"]);
    update.pods[0].state = None;
    stream.raw(message(update)).await;
    stream.until_applied(1).await;
    assert_eq!(agent.pods(), ["b"]);
    agent
        .until_metric("kiam_agent_update_parts_left_out_total{part=\"pod\"} 1")
        .await;
}

#[tokio::test]
async fn a_pod_that_becomes_malformed_is_not_answered_as_it_was() {
    let (mut server, agent, _files) = pair();
    let mut stream = server.stream().await;
    stream.update(&full(1, &["a", "b"])).await;
    stream.until_applied(1).await;
    let mut update = proto::ServerMessage::from(&delta(1, 2, &["a"]));
    let Some(proto::server_message::Message::Delta(malformed)) = &mut update.message else {
        panic!("a Delta became something else");
    };
    malformed.pods[0].state = None;
    stream.raw(update).await;
    stream.until_applied(2).await;
    assert_eq!(agent.pods(), ["b"]);
    // The stream goes on, and the next is asked for everything.
    stream.update(&delta(2, 3, &["c"])).await;
    stream.until_applied(3).await;
    assert_eq!(agent.pods(), ["b", "c"]);
    drop(stream);
    let mut stream = server.stream().await;
    assert_eq!(stream.hello.holds, None);
    stream.update(&full(4, &["a", "b"])).await;
    stream.until_applied(4).await;
    assert_eq!(agent.pods(), ["a", "b"]);
    drop(stream);
    let stream = server.stream().await;
    assert_eq!(stream.hello.holds, Some(revision(4)));
}

#[tokio::test]
async fn certificates_may_be_unreadable_for_a_while() {
    let (mut server, agent, files) = pair();
    let mut stream = server.stream().await;
    stream.update(&full(1, &["a"])).await;
    stream.until_applied(1).await;
    std::fs::write(files.ca(), "half a file").unwrap();
    drop(stream);
    // What was read before still opens the door.
    let mut stream = server.stream().await;
    stream.update(&full(2, &["a"])).await;
    stream.until_applied(2).await;
    agent
        .until_metric("grpc_client_tls_certificate_update_error 1")
        .await;
}

#[tokio::test]
async fn a_server_of_another_authority_is_told_nothing() {
    let authority = Authority::new();
    let mut impostor = ScriptedServer::start("127.0.0.1:0", &Authority::new().issue(SERVER_NAME));
    let mut misnamed = ScriptedServer::start("127.0.0.1:0", &authority.issue("other.test"));
    let files = Files::new(&authority.issue("agent"));
    let agent = Agent::start(&files, &[impostor.address, misnamed.address]);
    let counted = "kiam_agent_server_attempts_total{result=\"failed\"} 4";
    agent.until_metric(counted).await;
    assert!(!impostor.was_opened() && !misnamed.was_opened());
}

#[tokio::test]
async fn waiting_peers_and_the_agents_state_are_reported() {
    let (mut server, agent, _files) = pair();
    let peer = "10.0.0.7".parse().unwrap();
    // Began to wait before any server was there.
    agent.mailbox.put(|outbox| outbox.waiting(peer));
    let mut stream = server.stream().await;
    stream.update(&full(1, &[])).await;
    let said = stream.until_applied(1).await;
    assert!(
        said.contains(&AgentMessage::Waiting(vec![peer])),
        "{said:?}"
    );
    agent.report.send_modify(|report| {
        report.serving = true;
        report.interception = Interception::Verified;
    });
    loop {
        if let AgentMessage::Report(report) = stream.heard().await
            && report.serving
        {
            assert_eq!(report.interception, Interception::Verified);
            break;
        }
    }
    let others: Vec<_> = (1..=3)
        .map(|host| SocketAddr::from(([10, 0, 1, host], 0)).ip())
        .collect();
    for other in others.iter().chain(&others) {
        agent.mailbox.put(|outbox| outbox.waiting(*other));
    }
    let mut told = Vec::new();
    while told.len() < others.len() {
        if let AgentMessage::Waiting(peers) = stream.heard().await {
            told.extend(peers);
        }
    }
    assert_eq!(told, others);
}

/// From flags to an answer: both planes, the real stream between them and a server.
#[tokio::test]
async fn a_parked_request_is_answered_when_the_server_names_its_pod() {
    let authority = Authority::new();
    let mut server = ScriptedServer::start("127.0.0.1:0", &authority.issue("127.0.0.1"));
    let files = Files::new(&authority.issue("agent"));
    let identity = files.identity();
    let flags = [
        "kiam-agent".to_owned(),
        "--node-name=node-a".to_owned(),
        "--port=0".to_owned(),
        "--listen-addr=127.0.0.1".to_owned(),
        "--driver=epoll".to_owned(),
        "--park-timeout=10s".to_owned(),
        "--read-timeout=15s".to_owned(),
        format!("--server-address={}", server.address),
        format!("--ca={}", files.ca().display()),
        format!("--cert={}", identity.certificate.display()),
        format!("--key={}", identity.key.display()),
    ];
    let task = kiam_agent::config::parse(flags.map(Into::into), std::num::NonZeroUsize::MIN);
    let Ok(Task::Serve(config)) = task else {
        panic!("{task:?}")
    };
    let app = Box::pin(kiam_agent::app::build(*config)).await.unwrap();
    let metadata = app.listening()[0];
    let running = tokio::spawn(app.run());

    let health = async |path, status| {
        let answer = get(metadata, path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    };
    health("/health", 503).await;
    let mut stream = server.stream().await;
    stream.update(&full(1, &[])).await;
    let mut said = stream.until_applied(1).await;
    for path in ["/health", "/health?deep=1"] {
        health(path, 200).await;
    }
    let path = "/latest/meta-data/iam/security-credentials/";
    let answer = tokio::spawn(get(metadata, path));
    let peer = metadata.ip();
    while !said.contains(&AgentMessage::Waiting(vec![peer])) {
        said.push(stream.heard().await);
    }
    assert!(
        !answer.is_finished(),
        "it was answered before its pod was known"
    );
    let mut granted = full_message(2, &["a"]);
    granted.pods[0].ips = vec![vec![127, 0, 0, 1]];
    stream.raw(message(granted)).await;
    said.extend(stream.until_applied(2).await);
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nreader"), "{answer}");
    let reported = Report {
        serving: true,
        interception: Interception::Off,
        driver: "epoll".into(),
    };
    assert!(said.contains(&AgentMessage::Report(reported)), "{said:?}");
    running.abort();
}

async fn get(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    answer
}

fn full_message(number: u64, pods: &[&str]) -> proto::Full {
    let message = proto::ServerMessage::from(&full(number, pods)).message;
    let Some(proto::server_message::Message::Full(full)) = message else {
        panic!("a Full became something else");
    };
    full
}

fn message(full: proto::Full) -> proto::ServerMessage {
    proto::ServerMessage {
        message: Some(proto::server_message::Message::Full(full)),
    }
}

#[tokio::test]
async fn what_has_ended_here_is_asked_for_again() {
    let (mut server, agent, _files) = pair();
    let mut stream = server.stream().await;
    stream.update(&full(1, &["a"])).await;
    stream.until_applied(1).await;
    assert_eq!(agent.served.lock().store().held().len(), 1);
    // By both clocks: what only the wall clock ends is kept.
    let wrong = Now {
        wall: EXPIRY,
        monotonic: Now::read().monotonic + Duration::from_secs(4_000_000_000),
    };
    agent.served.lock().expire(wrong);
    let mut stream = server.stream().await;
    assert_eq!(stream.hello.holds, None);
    assert_eq!(stream.hello.held, []);
    stream.update(&full(1, &["a"])).await;
    stream.until_applied(1).await;
    assert_eq!(agent.served.lock().store().held().len(), 1);
    // Again, and not at once: a server that has none to send is not asked without end.
    agent.served.lock().expire(wrong);
    stream.update(&delta(1, 2, &["b"])).await;
    stream.until_applied(2).await;
}
