//! What the watches say while the API server does everything to them that it may: watches end, fall
//! out of the window, lists lose their continue token half way, requests fail, and all the while
//! the pods change.
//!
//! What must hold: time never goes back (no pod is shown as it was before, and none that is gone
//! returns), nothing is said twice as news, and in the end everything is known as it is.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected stops where it stands"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use kiam_server::clock::{Clock, Moment};
use kiam_server::freshness::Freshness;
use kiam_server::metrics::Metrics;
use kiam_server::nodes::{Cluster, ClusterEvent, Kind, Touched};
use kiam_server::pods::{Connection, Following, Source, follow};
use kiam_sim::cluster::{ClusterHandle, ClusterOptions, Kind as Simulated, NewPod};
use kiam_sim::faults::{Failures, Latency};
use kiam_sim::kubeconfig::Kubeconfig;
use kiam_wire::PodUid;
use tokio::sync::mpsc;

/// More than two pages of a list.
const PODS: u64 = 1_200;
const STEPS: u64 = 120;
const PATIENCE: Duration = Duration::from_mins(2);
const VERSION: &str = "iam.amazonaws.com/session-name";

/// What has been heard so far, and that it makes sense.
struct Heard {
    cluster: Cluster,
    /// The newest version shown of each pod.
    versions: HashMap<PodUid, u64>,
    gone: HashSet<PodUid>,
}

impl Heard {
    fn hear(&mut self, event: ClusterEvent) {
        let mut touched = Touched::default();
        self.cluster.on(event, &mut touched);
        for uid in touched.pods {
            let pod = self.cluster.get(&uid).unwrap();
            let version: u64 = pod.annotations.get(VERSION).unwrap().parse().unwrap();
            assert!(!self.gone.contains(&uid), "{} is back", pod.name);
            let before = self.versions.insert(uid, version);
            assert!(
                before.is_none_or(|before| before < version),
                "{} is at {version} after {before:?}",
                pod.name
            );
        }
        for uid in touched.gone {
            assert!(self.gone.insert(uid), "gone twice");
        }
    }

    fn known(&self) -> BTreeMap<String, u64> {
        let version = |uid| self.versions[uid];
        self.cluster
            .pods()
            .map(|pod| (pod.name.to_string(), version(&pod.uid)))
            .collect()
    }
}

/// Changes pods and breaks things, a step at a time.
struct Storm {
    kube: ClusterHandle,
    dice: fastrand::Rng,
    pods: BTreeMap<String, u64>,
    next: u64,
    version: u64,
}

impl Storm {
    fn create(&mut self) {
        self.next += 1;
        self.version += 1;
        let name = format!("pod-{}", self.next);
        let pod = NewPod::new("team", &name)
            .node("a")
            .annotation(VERSION, self.version.to_string());
        self.kube.create_pod(pod).unwrap();
        self.pods.insert(name, self.version);
    }

    fn some(&mut self) -> String {
        let at = self.dice.usize(0..self.pods.len());
        self.pods.keys().nth(at).unwrap().clone()
    }

    fn change(&mut self) {
        match self.dice.u8(0..4) {
            0 => self.create(),
            1 => {
                let name = self.some();
                self.kube.delete(Simulated::Pod, "team", &name).unwrap();
                self.pods.remove(&name);
            }
            _ => {
                self.version += 1;
                let (name, version) = (self.some(), self.version);
                let said = version.to_string();
                self.kube
                    .annotate(Simulated::Pod, "team", &name, VERSION, Some(&said))
                    .unwrap();
                self.pods.insert(name, version);
            }
        }
    }

    fn strike(&mut self) {
        let faults = self.kube.faults();
        match self.dice.u8(0..12) {
            0 => faults.drop_watches(),
            1 => faults.expire_watches(),
            2 => faults.disconnect_all(),
            // With a list under way its next page is answered 410; a watch that is opened, too.
            3 | 4 => self.kube.compact(),
            5 => {
                faults.drop_watches();
                self.kube.compact();
            }
            6 => faults.set_failures(Some(Failures {
                status: 500,
                share: 0.3,
            })),
            7..=9 => faults.set_failures(None),
            _ => {}
        }
    }
}

#[tokio::test]
async fn no_gap_no_step_back_and_no_news_twice_through_a_storm() {
    let simulated = kiam_sim::cluster::Cluster::start(ClusterOptions::default()).await;
    let simulated = simulated.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig");
    let config = Kubeconfig::plain(simulated.url());
    config.write(&kubeconfig).unwrap();
    let kube = simulated.handle().clone();
    kube.create_namespace("team", &[]).unwrap();
    let mut storm = Storm {
        kube: kube.clone(),
        dice: fastrand::Rng::with_seed(7),
        pods: BTreeMap::new(),
        next: 0,
        version: 0,
    };
    for _ in 0..PODS {
        storm.create();
    }
    // So that what happens happens between the pages of a list.
    kube.faults().set_latency(Latency {
        fixed: Duration::from_millis(5),
        jitter: Duration::from_millis(20),
    });
    let (events, mut told) = mpsc::channel::<(Moment, ClusterEvent)>(64);
    let _watches = follow(&Following {
        connection: Connection::new(Source::Kubeconfig(kubeconfig)),
        kinds: vec![Kind::Pods],
        events,
        clock: Clock::system(),
        freshness: Freshness::default(),
        metrics: Metrics::new().watch,
    });
    let mut heard = Heard {
        cluster: Cluster::new(&[Kind::Pods]),
        versions: HashMap::new(),
        gone: HashSet::new(),
    };
    for _ in 0..STEPS {
        for _ in 0..storm.dice.u8(1..6) {
            storm.change();
        }
        storm.strike();
        let pause = tokio::time::sleep(Duration::from_millis(storm.dice.u64(5..60)));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some((_at, event)) = told.recv() => heard.hear(event),
            }
        }
    }
    kube.faults().clear();
    let settled = async {
        while !heard.cluster.synced() || heard.known() != storm.pods {
            let (_at, event) = told.recv().await.unwrap();
            heard.hear(event);
            while let Ok((_at, event)) = told.try_recv() {
                heard.hear(event);
            }
        }
    };
    let settled = tokio::time::timeout(PATIENCE, settled).await;
    assert!(settled.is_ok(), "what is known is not what is there");
    let lists = kube.requests("list", "pods");
    assert!(lists > 3, "nothing was listed again: {lists}");
}
