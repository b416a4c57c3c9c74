//! Frees a node of the start-up taint once its agent is ready.
//!
//! Nodes may be born with a taint that keeps pods away until nothing can slip past the agent. It
//! goes when the agent serves what this server sent and interception has been verified (or is not
//! the agent's business). Each removal is a patch that tests what it removes, so that two replicas,
//! or a person with kubectl, cannot remove the wrong one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::report::Interception;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::drain::Draining;
use crate::metrics::WriteMetrics;
use crate::pods::{ApiError, KubeApi};
use crate::push::StreamStatus;

/// Nodes that may wait for their turn. One more is announced again by its agent's next word.
const QUEUE: usize = 10_000;
/// In a row, before other nodes have their turn.
const ATTEMPTS: u32 = 3;
/// How often nodes that could not be freed are tried again.
const ROUND_EVERY: Duration = Duration::from_secs(30);
const DELAY_MIN: Duration = Duration::from_millis(250);

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

/// Removes the taint `key` from nodes as they are announced.
pub fn start(
    key: String,
    api: KubeApi,
    metrics: WriteMetrics,
    mut draining: Draining,
) -> (ReadyNodes, tokio::task::JoinHandle<()>) {
    let (sender, mut nodes) = mpsc::channel::<Arc<str>>(QUEUE);
    let task = tokio::spawn(async move {
        let mut untainting = Untainting {
            api,
            key,
            metrics,
            later: BTreeSet::new(),
            is_forbidden: false,
        };
        let mut round = tokio::time::interval(ROUND_EVERY);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                node = nodes.recv() => match node {
                    Some(node) => untainting.take_up(node).await,
                    None => return,
                },
                _at = round.tick(), if !untainting.later.is_empty() => untainting.round().await,
                () = draining.started() => return,
            }
        }
    });
    (ReadyNodes(Some(sender)), task)
}

/// What became of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It does not have the taint (any more).
    Done,
    /// It still has it: again in the next round.
    Later,
    /// This server may not: the next node would fare no better.
    Forbidden,
}

/// Removes the taint from node after node. A node is not given up while it exists: until the taint
/// is gone no pod runs there.
struct Untainting {
    api: KubeApi,
    key: String,
    metrics: WriteMetrics,
    later: BTreeSet<Arc<str>>,
    /// So the last request was told. Nodes wait for the next round then, without a line each.
    is_forbidden: bool,
}

impl Untainting {
    async fn take_up(&mut self, node: Arc<str>) {
        if self.is_forbidden || self.free(&node).await != Outcome::Done {
            self.later.insert(node);
        }
    }

    /// Those that failed, once more.
    async fn round(&mut self) {
        self.is_forbidden = false;
        for node in std::mem::take(&mut self.later) {
            self.take_up(node).await;
        }
    }

    async fn free(&mut self, node: &str) -> Outcome {
        let mut delay = DELAY_MIN;
        let key = &*self.key;
        for attempt in 1..=ATTEMPTS {
            let outcome = remove_once(&self.api, node, key).await;
            match &outcome {
                Ok(true) => {
                    self.metrics.untainted();
                    info!(node, key, "start-up taint removed");
                }
                Ok(false) => {}
                Err(error) => {
                    self.metrics.taint_error();
                    warn!(node, key, %error, attempt, "cannot remove the start-up taint yet");
                }
            }
            match judge(&outcome) {
                Outcome::Done => return Outcome::Done,
                Outcome::Forbidden => {
                    self.is_forbidden = true;
                    return Outcome::Forbidden;
                }
                Outcome::Later => {}
            }
            tokio::time::sleep(delay.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            delay *= 2;
        }
        Outcome::Later
    }
}

const fn judge(outcome: &Result<bool, ApiError>) -> Outcome {
    match outcome {
        Ok(_) | Err(ApiError::NotFound) => Outcome::Done,
        Err(ApiError::Forbidden(_)) => Outcome::Forbidden,
        Err(
            ApiError::Conflict | ApiError::Exists | ApiError::Refused(_) | ApiError::Unavailable(_),
        ) => Outcome::Later,
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
    use super::*;
    use kiam_wire::Revision;
    use kiam_wire::report::Report;

    #[test]
    fn only_a_node_that_is_free_or_gone_is_done_with() {
        let refused = || ApiError::Refused(String::new());
        assert_eq!(judge(&Ok(true)), Outcome::Done);
        assert_eq!(judge(&Ok(false)), Outcome::Done);
        assert_eq!(judge(&Err(ApiError::NotFound)), Outcome::Done);
        assert_eq!(judge(&Err(ApiError::Conflict)), Outcome::Later);
        assert_eq!(judge(&Err(refused())), Outcome::Later);
        let forbidden = Err(ApiError::Forbidden(String::new()));
        assert_eq!(judge(&forbidden), Outcome::Forbidden);
    }

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
