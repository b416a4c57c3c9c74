//! A connection to the API server whose other end is gone without a word.

#![expect(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected stops where it stands"
)]

use std::net::SocketAddr;
use std::time::Duration;

use kiam_server::clock::Clock;
use kiam_server::freshness::Freshness;
use kiam_server::metrics::Metrics;
use kiam_server::nodes::{Cluster, ClusterEvent, Kind, Touched};
use kiam_server::pods::{Connection, Following, Source, follow};
use kiam_sim::cluster::{ClusterOptions, NewPod};
use kiam_sim::kubeconfig::Kubeconfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_mins(1);
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Passes bytes on in both directions. When `forgets` moves, the connections there are stay open
/// and carry nothing any more, as after a firewall or a load balancer has forgotten them.
async fn proxy(target: SocketAddr, forgets: watch::Receiver<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _peer)) = listener.accept().await {
            let mut forgotten = forgets.clone();
            forgotten.mark_unchanged();
            tokio::spawn(async move {
                let server = TcpStream::connect(target).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::join!(
                    pass_on(from_client, to_server, forgotten.clone()),
                    pass_on(from_server, to_client, forgotten),
                );
            });
        }
    });
    address
}

async fn pass_on(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    forgotten: watch::Receiver<()>,
) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        let is_lost = forgotten.has_changed().unwrap_or(true);
        let read = bytes.get(..count).unwrap();
        if !is_lost && to.write_all(read).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_watch_that_nobody_answers_any_more_is_noticed() {
    let options = ClusterOptions {
        bookmark_interval: SILENCE_MAX / 4,
        ..ClusterOptions::default()
    };
    let simulated = kiam_sim::cluster::Cluster::start(options).await.unwrap();
    let kube = simulated.handle();
    let target = simulated.url().replace("http://", "").parse().unwrap();
    let (forget, forgets) = watch::channel(());
    let address = proxy(target, forgets).await;
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let config = Kubeconfig::plain(format!("http://{address}"));
    config.write(&kubeconfig).unwrap();
    let connection = Connection::new(Source::Kubeconfig(kubeconfig));
    let (heard, mut events) = mpsc::channel(100);
    let _watches = follow(&Following {
        connection: connection.with_silence_max(SILENCE_MAX),
        kinds: vec![Kind::Pods],
        events: heard,
        clock: Clock::system(),
        freshness: Freshness::default(),
        metrics: Metrics::new().watch,
    });
    let mut cluster = Cluster::new(&[Kind::Pods]);
    // More than once: what comes after a connection that was noticed must be, too.
    for name in ["first", "second", "third"] {
        kube.create_pod(NewPod::new("default", name)).unwrap();
        let told = async {
            while !cluster.synced() || cluster.find("default", name).is_none() {
                let (_at, event): (_, ClusterEvent) = events.recv().await.unwrap();
                cluster.on(event, &mut Touched::default());
            }
        };
        let told = tokio::time::timeout(PATIENCE, told).await;
        assert!(told.is_ok(), "{name} was not noticed");
        forget.send_replace(());
    }
}
