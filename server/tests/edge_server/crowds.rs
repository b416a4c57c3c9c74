//! More connections than there is room for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kiam_sim::cluster::NewPod;
use kiam_sim::faults::Latency;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::harness::{Agent, Holding, Server, World, until, within};

/// Agents of nodes of their own, one after the other: those that follow, and how many were turned
/// away.
async fn agents(world: &World, server: &Server, count: usize) -> (Vec<Agent>, usize) {
    let (mut following, mut turned_away) = (Vec::new(), 0);
    for number in 0..count {
        let node = format!("node-{number}");
        let identity = world.authority.agent(Some(&node)).unwrap();
        let Ok(channel) = world.channel(server, Some(&identity)).await else {
            turned_away += 1;
            continue;
        };
        match Agent::follow(channel, &node, None, Holding::default()).await {
            Ok(mut agent) => {
                agent.next().await.unwrap();
                following.push(agent);
            }
            Err(_status) => turned_away += 1,
        }
    }
    (following, turned_away)
}

/// The first agent's node gets a pod with a role that nobody has asked STS for yet.
async fn a_new_role_reaches(world: &World, first: &mut Agent) {
    let before = world.sts.total();
    let pod = World::pod("late", "node-0", "late", None);
    world.kube.create_pod(pod).unwrap();
    first
        .until("the grant", |agent| agent.role("late").is_some())
        .await;
    assert!(world.sts.total() > before);
}

#[tokio::test]
async fn a_low_limit_of_open_files_is_raised() {
    let world = World::new().await;
    let server = world
        .ready_server_after("ulimit -Sn 64; ulimit -Hn 4096", &[])
        .await;
    assert_eq!(server.metric("process_max_fds").await, Some(4_096.0));
    let (mut following, turned_away) = agents(&world, &server, 110).await;
    assert_eq!((following.len(), turned_away), (110, 0));
    a_new_role_reaches(&world, &mut following[0]).await;
}

#[tokio::test]
async fn agents_are_turned_away_before_nobody_can_be_called() {
    let world = World::new().await;
    let server = world.ready_server_after("ulimit -n 200", &[]).await;
    let (mut following, turned_away) = agents(&world, &server, 110).await;
    assert_eq!(following.len() + turned_away, 110);
    // What is kept for calls is more than half of it.
    assert!((50..=100).contains(&following.len()), "{turned_away}");
    let full = "kiam_server_connections_turned_away_total{reason=\"full\"}";
    assert!(server.metric(full).await.unwrap() >= 1.0);
    let log = server.log();
    assert_eq!(log.matches("agents turned away").count(), 1, "{log}");
    assert!(!log.contains("cannot accept a connection"), "{log}");
    a_new_role_reaches(&world, &mut following[0]).await;
    // One that leaves makes room.
    following.pop();
    until("room for another", async || {
        agents(&world, &server, 1).await.1 == 0
    })
    .await;
}

/// Shakes hands and then says nothing.
struct Silent {
    connector: TlsConnector,
    server: SocketAddr,
}

impl Silent {
    fn new(world: &World, server: &Server) -> Self {
        let pem = world.authority.certificate_pem();
        let mut roots = rustls::RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        roots.add(authority).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            connector: TlsConnector::from(Arc::new(config)),
            server: server.grpc.unwrap(),
        }
    }

    /// `None` when the server would not have it.
    async fn connect(&self, from: &str) -> Option<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::new(from.parse().unwrap(), 0))
            .unwrap();
        let stream = socket.connect(self.server).await.ok()?;
        let name = ServerName::try_from("kiam-server").unwrap();
        self.connector.connect(name, stream).await.ok()
    }
}

async fn is_closed(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut bytes = [0; 256];
    // What the server says first is read as well.
    loop {
        let read = tokio::time::timeout(Duration::from_millis(5), stream.read(&mut bytes)).await;
        match read {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => return true,
            Err(_nothing_yet) => return false,
        }
    }
}

#[tokio::test]
async fn silent_ones_at_the_admin_port_keep_nobody_out() {
    let world = World::new().await;
    let server = world.ready_server(&[]).await;
    let mut silent = Vec::new();
    for number in 0..200 {
        let socket = TcpSocket::new_v4().unwrap();
        let from = format!("127.0.0.{}:0", 2 + number % 50);
        socket.bind(from.parse().unwrap()).unwrap();
        silent.push(socket.connect(server.admin.unwrap()).await.unwrap());
    }
    assert_eq!(server.get("/livez").await.0, 200);
    let files = server.metric("process_open_fds").await.unwrap();
    assert!(files < 100.0, "{files} files");
    within("all of them are closed", async {
        for mut stream in silent {
            let mut bytes = Vec::new();
            drop(stream.read_to_end(&mut bytes).await);
        }
    })
    .await;
}

/// One pod, which needs nothing for it, opens whatever it can and shows tokens of its own making.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_few_and_do_not_stay() {
    const FEW: usize = 32;
    let world = World::new().await;
    world.kube.create_namespace("kiam", &[]).unwrap();
    world
        .kube
        .create_service_account("kiam", "agent", &[])
        .unwrap();
    let agent = NewPod::new("kiam", "agent-x")
        .node("a")
        .service_account("agent");
    world.kube.create_pod(agent).unwrap();
    let args = ["--agent-auth=token", "--agent-service-account=kiam/agent"];
    let server = world.ready_server(&args).await;
    let token = world
        .kube
        .issue_token(
            "kiam",
            "agent",
            Some("agent-x"),
            "kiam-server",
            Duration::from_hours(1),
        )
        .unwrap();
    // Each review takes a second: those of one address alone would take a quarter of a minute.
    let second = Duration::from_secs(1);
    world.kube.faults().set_latency(Latency {
        fixed: second,
        jitter: Duration::ZERO,
    });
    let mut bogus = tokio::task::JoinSet::new();
    for number in 0..10 {
        let channel = world.channel_from("127.0.0.9", &server).await.unwrap();
        for stream in 0..50 {
            let channel = channel.clone();
            let token = format!("made.up-{number}-{stream}.by-myself");
            bogus.spawn(async move {
                let followed = Agent::follow(channel, "a", Some(&token), Holding::default()).await;
                assert!(followed.is_err());
            });
        }
    }
    let silent = Silent::new(&world, &server);
    let mut held = Vec::new();
    for _ in 0..2_000 {
        held.extend(silent.connect("127.0.0.9").await);
    }
    let mut open = Vec::new();
    for mut stream in held {
        if !is_closed(&mut stream).await {
            open.push(stream);
        }
    }
    assert!(open.len() <= FEW, "{} are open", open.len());
    let files = server.metric("process_open_fds").await.unwrap();
    assert!(files < 150.0, "{files} files");
    // Somebody else is let in meanwhile.
    let channel = world.channel_from("127.0.0.11", &server).await.unwrap();
    let mut agent = Agent::follow(channel, "a", Some(&token), Holding::default())
        .await
        .unwrap();
    agent.next().await.unwrap();
    within("the made up tokens are refused", async {
        while let Some(ended) = bogus.join_next().await {
            ended.unwrap();
        }
    })
    .await;
    // Who says nothing is not kept, and who has been let in is.
    until("the silent ones are closed", async || {
        let mut still = Vec::new();
        for mut stream in std::mem::take(&mut open) {
            if !is_closed(&mut stream).await {
                still.push(stream);
            }
        }
        open = still;
        open.is_empty()
    })
    .await;
    world.kube.faults().clear();
    let pod = World::pod("late", "a", "late", None);
    world.kube.create_pod(pod).unwrap();
    agent
        .until("the grant", |agent| agent.role("late").is_some())
        .await;
    for reason in ["address", "silent"] {
        let name = format!("kiam_server_connections_turned_away_total{{reason=\"{reason}\"}}");
        assert!(server.metric(&name).await.unwrap() > 0.0, "{reason}");
    }
}
