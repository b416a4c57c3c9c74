//! Frees a node of the start-up taint once its agent is ready.
//!
//! Nodes may be born with a taint that keeps pods away until nothing can slip past the agent. It
//! goes when the agent serves what this server sent and interception has been verified (or is not
//! the agent's business). Each removal is a patch that tests what it removes, so that two replicas,
//! or a person with kubectl, cannot remove the wrong one.
//!
//! A node is announced once, so it is not given up while its agent stays ready: nobody else would
//! free it. Nodes do not wait for one another, or one that hangs would keep a whole new node group
//! empty.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kiam_wire::report::Interception;
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, info, warn};

use crate::drain::Draining;
use crate::metrics::WriteMetrics;
use crate::pods::{ApiError, KubeApi};
use crate::push::{Nodes, StreamStatus};

/// Nodes that may wait for their turn. One more is announced again by its agent's next word.
const QUEUE: usize = 10_000;
/// Attempts under way at a time. All agents of a large cluster come back at once.
const AT_ONCE: usize = 8;
const DELAY_MIN: Duration = Duration::from_millis(250);
const DELAY_MAX: Duration = Duration::from_secs(20);
/// Before another attempt at what the API server will not have: someone must change something.
const DELAY_REFUSED: Duration = Duration::from_mins(2);

/// Where streams announce nodes whose agent is ready.
#[derive(Debug, Clone)]
pub struct ReadyNodes(Option<mpsc::Sender<Arc<str>>>);

impl ReadyNodes {
    /// Nobody wants to know: there is no start-up taint.
    pub const fn unwanted() -> Self {
        Self(None)
    }

    /// Announces a node; false when it must be announced again.
    pub fn announce(&self, node: &Arc<str>) -> bool {
        self.0
            .as_ref()
            .is_none_or(|queue| queue.try_send(Arc::clone(node)).is_ok())
    }
}

/// Whether an agent's node has been announced since the agent became ready.
#[derive(Debug)]
pub struct Announcement {
    nodes: ReadyNodes,
    made: bool,
}

impl Announcement {
    /// Not yet.
    pub const fn new(nodes: ReadyNodes) -> Self {
        Self { nodes, made: false }
    }

    /// The agent is ready, or not: announces its node once each time that it becomes so. Whoever
    /// frees the node gives it up when its agent is not ready at that moment.
    pub fn note(&mut self, node: &Arc<str>, is_ready: bool) {
        self.made = is_ready && (self.made || self.nodes.announce(node));
    }
}

/// Whether pods may come to the agent's node.
pub fn is_ready(status: &StreamStatus) -> bool {
    let applied = status.applied.is_some();
    applied
        && status.report.as_ref().is_some_and(|report| {
            report.serving
                && match report.interception {
                    Interception::Off | Interception::Verified => true,
                    Interception::Unverified => false,
                }
        })
}

/// Removes the taint `key` from nodes as they are announced. `nodes` say whether their agents are
/// still ready when the API server was not there at first.
pub fn start(
    key: String,
    api: KubeApi,
    nodes: Arc<Nodes>,
    metrics: WriteMetrics,
    mut draining: Draining,
) -> (ReadyNodes, tokio::task::JoinHandle<()>) {
    let (sender, announced) = mpsc::channel::<Arc<str>>(QUEUE);
    let task = tokio::spawn(async move {
        let key: Arc<str> = key.into();
        let remove = |node: Arc<str>| {
            let (api, key) = (api.clone(), Arc::clone(&key));
            async move { remove_once(&api, &node, &key).await }
        };
        let freeing = Freeing {
            remove,
            is_still_ready: |node: &str| nodes.streams(node).iter().any(is_ready),
            turns: Semaphore::new(AT_ONCE),
            metrics,
        };
        tokio::select! {
            () = draining.started() => {}
            () = freeing.run(announced) => {}
        }
    });
    (ReadyNodes(Some(sender)), task)
}

/// Frees nodes, however long it takes.
struct Freeing<F, R> {
    /// One attempt; false when the node does not have the taint.
    remove: F,
    is_still_ready: R,
    turns: Semaphore,
    metrics: WriteMetrics,
}

impl<F, A, R> Freeing<F, R>
where
    F: Fn(Arc<str>) -> A,
    A: Future<Output = Result<bool, ApiError>>,
    R: Fn(&str) -> bool,
{
    /// Until nobody can announce any more.
    async fn run(&self, mut announced: mpsc::Receiver<Arc<str>>) {
        let mut names = HashSet::new();
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                node = announced.recv() => match node {
                    // An agent that came back meanwhile announces what is being done.
                    Some(node) => if names.insert(Arc::clone(&node)) {
                        under_way.push(self.free(node));
                    },
                    None => return,
                },
                Some(node) = under_way.next(), if !under_way.is_empty() => {
                    names.remove(&node);
                }
            }
        }
    }

    async fn free(&self, node: Arc<str>) -> Arc<str> {
        let mut delay = DELAY_MIN;
        let mut failures = 0_u32;
        loop {
            let attempt = {
                let _turn = self.turns.acquire().await;
                (self.remove)(Arc::clone(&node)).await
            };
            let Some(error) = self.outcome(&node, attempt, failures) else {
                return node;
            };
            failures = failures.saturating_add(1);
            let pause = match error {
                ApiError::Forbidden(_) | ApiError::Refused(_) => DELAY_REFUSED,
                ApiError::Conflict
                | ApiError::Exists
                | ApiError::NotFound
                | ApiError::Unavailable(_) => delay,
            };
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            delay = (delay * 2).min(DELAY_MAX);
            // Once it is ready again it is announced again.
            if !(self.is_still_ready)(&node) {
                return node;
            }
        }
    }

    /// The error of an attempt that must be made again; what came of it is said and counted.
    fn outcome(
        &self,
        node: &str,
        attempt: Result<bool, ApiError>,
        failures: u32,
    ) -> Option<ApiError> {
        let error = match attempt {
            Ok(true) => {
                self.metrics.untainted();
                info!(node, "start-up taint removed");
                return None;
            }
            Ok(false) | Err(ApiError::NotFound) => return None,
            Err(error) => error,
        };
        self.metrics.taint_error();
        if failures == 0 {
            warn!(node, %error, "cannot remove the start-up taint yet");
        } else {
            debug!(node, %error, failures, "cannot remove the start-up taint yet");
        }
        Some(error)
    }
}

/// Removes every effect of the taint; false when the node does not have it.
async fn remove_once(api: &KubeApi, node: &str, key: &str) -> Result<bool, ApiError> {
    let mut removed = false;
    // One at a time, looking again after each: an index is only good for the list it was read from.
    // The API server allows one taint for each key and effect, and there are three effects.
    let mut seen: HashMap<String, u32> = HashMap::new();
    loop {
        let taints = api.taints(node).await?;
        let found = taints
            .iter()
            .enumerate()
            .find(|(_at, taint)| taint.key == key);
        let Some((index, taint)) = found else {
            return Ok(removed);
        };
        let times = seen.entry(taint.effect.clone()).or_default();
        *times += 1;
        if *times > 1 {
            return Err(ApiError::Conflict);
        }
        api.remove_taint(node, index, taint).await?;
        removed = true;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::clock::Clock;
    use crate::metrics::Metrics;
    use kiam_wire::report::Report;
    use kiam_wire::{Revision, UnixSeconds};

    #[track_caller]
    fn check(applied: bool, report: Option<(bool, Interception)>, expected: bool) {
        let revision = Revision {
            epoch: 1,
            number: 1,
        };
        let status = StreamStatus {
            agent_version: "1".into(),
            sent: revision,
            applied: applied.then_some(revision),
            report: report.map(|(serving, interception)| Report {
                serving,
                interception,
                driver: "epoll".into(),
            }),
        };
        assert_eq!(is_ready(&status), expected);
    }

    /// The nodes that were freed within two minutes, and when, of those announced at once. The API
    /// server is down for 30 s, and does not answer about `stuck` at all.
    async fn freed(announced: &[&str], is_still_ready: bool) -> Vec<(String, Duration)> {
        let (announce, nodes) = mpsc::channel(100);
        for node in announced {
            announce.try_send(Arc::from(*node)).unwrap();
        }
        let clock = Clock::starting_at(UnixSeconds::new(0));
        let freed = Mutex::new(Vec::new());
        let passed = || clock.now().monotonic.since_origin();
        let remove = |node: Arc<str>| {
            let freed = &freed;
            async move {
                if &*node == "stuck" {
                    std::future::pending::<()>().await;
                }
                if passed() < Duration::from_secs(30) {
                    return Err(ApiError::Unavailable("down".into()));
                }
                freed.lock().unwrap().push((node.to_string(), passed()));
                Ok(true)
            }
        };
        let freeing = Freeing {
            remove,
            is_still_ready: |_node: &str| is_still_ready,
            turns: Semaphore::new(AT_ONCE),
            metrics: Metrics::new().writes,
        };
        let run = freeing.run(nodes);
        assert!(
            tokio::time::timeout(Duration::from_mins(2), run)
                .await
                .is_err()
        );
        freed.into_inner().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_freed_however_long_the_api_server_is_away() {
        let freed = freed(&["stuck", "a", "a", "b"], true).await;
        let mut names: Vec<_> = freed.iter().map(|(node, _at)| node.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b"]);
        let latest = Duration::from_secs(30) + DELAY_MAX;
        assert!(freed.iter().all(|(_node, at)| *at <= latest), "{freed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_agent_has_left_meanwhile_keeps_its_taint() {
        assert!(freed(&["a"], false).await.is_empty());
    }

    #[test]
    fn a_node_is_announced_each_time_that_its_agent_becomes_ready() {
        let (sender, mut announced) = mpsc::channel(100);
        let mut announcement = Announcement::new(ReadyNodes(Some(sender)));
        let node: Arc<str> = "a".into();
        for is_ready in [false, true, true, false, false, true, true] {
            announcement.note(&node, is_ready);
        }
        let count = std::iter::from_fn(|| announced.try_recv().ok()).count();
        assert_eq!(count, 2);
    }

    #[test]
    fn a_node_for_which_there_was_no_room_is_announced_again() {
        let (sender, mut announced) = mpsc::channel(1);
        let mut announcement = Announcement::new(ReadyNodes(Some(sender)));
        let nodes: [Arc<str>; 2] = ["a".into(), "b".into()];
        Announcement::new(announcement.nodes.clone()).note(&nodes[0], true);
        announcement.note(&nodes[1], true);
        assert_eq!(announced.try_recv().as_deref(), Ok("a"));
        announcement.note(&nodes[1], true);
        assert_eq!(announced.try_recv().as_deref(), Ok("b"));
    }

    #[test]
    fn a_node_is_ready_when_nothing_can_slip_past_its_agent() {
        check(true, Some((true, Interception::Verified)), true);
        check(true, Some((true, Interception::Off)), true);
        check(true, Some((true, Interception::Unverified)), false);
        check(true, Some((false, Interception::Verified)), false);
        check(false, Some((true, Interception::Verified)), false);
        check(true, None, false);
    }
}
