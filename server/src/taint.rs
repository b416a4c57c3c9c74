//! Frees a node of the start-up taint once its agent is ready.
//!
//! Nodes may be born with a taint that keeps pods away until nothing can slip past the agent. It
//! goes when the agent serves what this server sent and interception has been verified (or is not
//! the agent's business). Each removal is a patch that tests what it removes, so that two replicas,
//! or a person with kubectl, cannot remove the wrong one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::report::Interception;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::drain::Draining;
use crate::metrics::WriteMetrics;
use crate::pods::{ApiError, KubeApi};
use crate::push::StreamStatus;

/// Nodes that may wait for their turn. One more is announced again by its agent's next word.
const QUEUE: usize = 10_000;
const ATTEMPTS: u32 = 6;
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
        loop {
            let node = tokio::select! {
                node = nodes.recv() => node,
                () = draining.started() => None,
            };
            let Some(node) = node else { return };
            remove(&api, &node, &key, &metrics).await;
        }
    });
    (ReadyNodes(Some(sender)), task)
}

async fn remove(api: &KubeApi, node: &str, key: &str, metrics: &WriteMetrics) {
    let mut delay = DELAY_MIN;
    for attempt in 1..=ATTEMPTS {
        match remove_once(api, node, key).await {
            Ok(true) => {
                metrics.untainted();
                info!(node, key, "start-up taint removed");
                return;
            }
            Ok(false) | Err(ApiError::NotFound) => return,
            Err(error @ (ApiError::Forbidden(_) | ApiError::Refused(_))) => {
                metrics.taint_error();
                warn!(node, key, %error, "cannot remove the start-up taint");
                return;
            }
            Err(error) => {
                metrics.taint_error();
                warn!(node, key, %error, attempt, "cannot remove the start-up taint yet");
            }
        }
        tokio::time::sleep(delay.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        delay *= 2;
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
