//! Pods that come and go while the agent is being asked.
//!
//! One thread plays scheduler and kubelet: it binds a pod, gives it its address a little later, and
//! tells the load that the address is visible. A pod leaves the population a while before it is
//! deleted, so that nobody asks for it while it goes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kiam_sim::cluster::{ClusterHandle, Kind, NewPod};

use crate::cast;
use crate::clock;
use crate::load::Started;
use crate::population::{Population, Target};

/// How pods come and go.
#[derive(Debug, Clone)]
pub(crate) struct Churn {
    /// Pods a second that come; as many go, once they have lived.
    pub pods_per_s: f64,
    /// For how long pods come.
    pub duration: Duration,
    /// How long a pod is asked for.
    pub life: Duration,
    /// Roles, taken in turn.
    pub roles: u32,
    /// The first pod's number; earlier ones belong to someone else.
    pub first: u32,
    /// Same seed, same delays.
    pub seed: u64,
}

/// From binding to the address: a fast kubelet and a slow one.
const START_DELAY_MS: std::ops::Range<u64> = 20..300;
/// From the last request to the deletion: longer than any dialogue may take.
const GRACE: Duration = Duration::from_secs(4);

/// What churn did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Churned {
    /// Pods created.
    pub created: u64,
    /// Pods deleted.
    pub deleted: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Bind,
    Run,
    Retire,
    Delete,
}

/// The role of the load test's `number`-th pod.
pub(crate) fn role(number: u32, roles: u32) -> Arc<str> {
    Arc::from(format!("role-{:04}", number % roles.max(1)))
}

/// The load test's `number`-th pod, bound to the agent's node and without an address.
pub(crate) fn pod(number: u32, roles: u32) -> NewPod {
    NewPod::new(cast::OPEN, name(number))
        .node(cast::NODE)
        .annotation("iam.amazonaws.com/role", &*role(number, roles))
}

/// Its name.
pub(crate) fn name(number: u32) -> String {
    format!("load-{number}")
}

/// Its address and what it must be given.
pub(crate) fn target(number: u32, roles: u32) -> Target {
    Target { ip: cast::address(cast::CAST_ADDRESSES + number), role: role(number, roles) }
}

/// Runs to the end of `churn.duration`; pods still alive then stay.
pub(crate) fn run(
    churn: &Churn,
    cluster: &ClusterHandle,
    population: &Population,
    started: &Sender<Started>,
) -> anyhow::Result<Churned> {
    let mut dice = fastrand::Rng::with_seed(churn.seed);
    let mut churned = Churned::default();
    let start = clock::now();
    let end = start + churn.duration;
    let mut steps: BinaryHeap<Reverse<(Instant, Step, u32)>> = BinaryHeap::new();
    if let Ok(gap) = Duration::try_from_secs_f64(1.0 / churn.pods_per_s) {
        let due = (0_u32..).map_while(|n| start.checked_add(gap.checked_mul(n)?));
        for (number, due) in (churn.first..).zip(due.take_while(|due| *due < end)) {
            steps.push(Reverse((due, Step::Bind, number)));
        }
    }
    while let Some(Reverse((due, step, number))) = steps.pop() {
        if due >= end {
            break;
        }
        clock::sleep_until(due);
        let target = target(number, churn.roles);
        let next = match step {
            Step::Bind => {
                cluster.create_pod(pod(number, churn.roles)).context("cannot create a pod")?;
                churned.created += 1;
                Some((Duration::from_millis(dice.u64(START_DELAY_MS)), Step::Run))
            }
            Step::Run => {
                cluster.run(cast::OPEN, &name(number), &[target.ip]).context("cannot run a pod")?;
                // The load has ended early only if it failed, and then says so itself.
                let told = started.send(Started { target, visible: clock::now() });
                told.ok().map(|()| (churn.life, Step::Retire))
            }
            Step::Retire => {
                population.remove(target.ip);
                Some((GRACE, Step::Delete))
            }
            Step::Delete => {
                cluster.delete(Kind::Pod, cast::OPEN, &name(number)).context("cannot delete a pod")?;
                churned.deleted += 1;
                None
            }
        };
        steps.extend(next.map(|(after, step)| Reverse((clock::now() + after, step, number))));
    }
    Ok(churned)
}
