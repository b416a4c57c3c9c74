//! What the watches say about themselves while the API server comes and goes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use kiam_server::clock::Clock;
use kiam_server::freshness::{BEHIND_AFTER, Freshness};
use kiam_server::metrics::Metrics;
use kiam_server::nodes::Kind;
use kiam_server::pods::{Connection, Following, Source, follow};
use kiam_sim::cluster::{Cluster, ClusterHandle, ClusterOptions};
use kiam_sim::faults::{Failures, Reach};
use kiam_sim::kubeconfig::Kubeconfig;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_mins(1);

/// Whether this server will be behind, if things stay as they are.
fn will_be_behind(freshness: &Freshness, clock: Clock) -> bool {
    let later = clock.now().monotonic.after(2 * BEHIND_AFTER);
    freshness.behind_since(later).is_some()
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(done.is_ok(), "{what}");
}

/// A simulated cluster whose watches are open, and what keeps it going.
async fn followed(
    kinds: Vec<Kind>,
    clock: Clock,
    freshness: &Freshness,
) -> (impl Sized + use<>, ClusterHandle) {
    let simulated = Cluster::start(ClusterOptions::default()).await.unwrap();
    let kube = simulated.handle().clone();
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let config = Kubeconfig::plain(simulated.url());
    config.write(&kubeconfig).unwrap();
    let (events, mut told) = mpsc::channel(64);
    let expected = u64::try_from(kinds.len()).unwrap();
    let watches = follow(&Following {
        connection: Connection::new(Source::Kubeconfig(kubeconfig)),
        kinds,
        events,
        clock,
        freshness: freshness.clone(),
        metrics: Metrics::new().watch,
    });
    tokio::spawn(async move { while told.recv().await.is_some() {} });
    until("watches", || kube.open_watches() == expected).await;
    ((simulated, directory, watches), kube)
}

#[tokio::test]
async fn a_watch_that_is_open_again_is_not_behind_although_nothing_happens() {
    let (clock, freshness) = (Clock::system(), Freshness::default());
    let kinds = vec![Kind::Pods, Kind::Namespaces];
    let (_followed, kube) = followed(kinds, clock, &freshness).await;
    let is_behind = || will_be_behind(&freshness, clock);
    assert!(!is_behind());
    for round in 0..2 {
        kube.faults().set_reach(Reach::Down);
        until("it fails", is_behind).await;
        kube.faults().clear();
        until("it is open, and quiet", || !is_behind()).await;
        let refused = Failures {
            status: 403,
            share: 1.0,
        };
        kube.faults().set_failures(Some(refused));
        kube.faults().drop_watches();
        until("it is refused", is_behind).await;
        kube.faults().clear();
        until("it is permitted again", || !is_behind()).await;
        // With a list, this time.
        kube.compact();
        kube.faults().expire_watches();
        until("it lists", || kube.requests("list", "pods") >= 2 + round).await;
        until("it has listed", || !is_behind()).await;
    }
}

#[tokio::test]
async fn the_first_list_is_no_older_than_any_other() {
    let freshness = Freshness::default();
    let (_followed, kube) = followed(Kind::ALL.into(), Clock::system(), &freshness).await;
    for resource in ["pods", "namespaces", "serviceaccounts"] {
        assert_eq!(kube.requests("list", resource), 1, "{resource}");
        assert_eq!(kube.requests("watch", resource), 1, "{resource}");
    }
}
