//! Pods that come and go while the agent is being asked.
//!
//! One thread plays scheduler and kubelet: it binds a pod, gives it its address a little later, and
//! tells the load that the address is visible. A pod leaves the population a while before it is
//! deleted, so that nobody asks for it while it goes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::SendError;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kiam_sim::cluster::{ClusterHandle, Kind, NewPod};

use crate::cast;
use crate::clock;
use crate::load::Started;
use crate::population::{Population, Target};

/// The shape of the coming and going.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Pods come evenly.
    Steady,
    /// Every five seconds a job starts all its pods at once.
    Burst,
    /// Deployments are replaced: pods come in waves of ten, and live only a moment.
    Rollout,
    /// Another node is drained: half of all pods come within one second, in the middle.
    NodeDrain,
    /// Addresses are used again at once, by pods of other roles.
    IpReuse,
}

/// How pods come and go.
#[derive(Debug, Clone)]
pub(crate) struct Churn {
    /// The shape.
    pub profile: Profile,
    /// Pods a second that come, on average.
    pub pods_per_s: f64,
    /// For how long pods come.
    pub duration: Duration,
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
const GRACE: Duration = Duration::from_secs(2);
/// How long pods are asked for.
const LIFE: Duration = Duration::from_secs(2);
/// Addresses of the `ip-reuse` profile, for each pod a second: a pod keeps its address for its life
/// and its grace, and the next has it at once.
const REUSED_ADDRESSES_PER_RATE: f64 = 6.0;

impl Churn {
    /// When each pod is bound, from the start, in order.
    fn arrivals(&self) -> Vec<Duration> {
        let seconds = self.duration.as_secs_f64();
        let evenly = |share: f64| {
            let count = count(seconds * self.pods_per_s * share);
            let at = move |n: u32| f64::from(n) / f64::from(count);
            (0..count).map(at)
        };
        let all = |offsets: Vec<f64>| {
            let mut offsets: Vec<_> = offsets
                .into_iter()
                .filter_map(|s| Duration::try_from_secs_f64(s).ok())
                .collect();
            offsets.sort_unstable();
            offsets
        };
        let waves = |every: f64| evenly(1.0).map(move |at| (at * seconds / every).floor() * every);
        all(match self.profile {
            Profile::Steady | Profile::IpReuse => evenly(1.0).map(|at| at * seconds).collect(),
            Profile::Burst => waves(5.0).collect(),
            Profile::Rollout => waves(10.0 / self.pods_per_s).collect(),
            Profile::NodeDrain => evenly(0.5)
                .map(|at| at * seconds)
                .chain(evenly(0.5).map(|at| seconds / 2.0 + at))
                .collect(),
        })
    }

    /// The `number`-th pod's address.
    fn address(&self, number: u32) -> IpAddr {
        if self.profile != Profile::IpReuse {
            return address(number);
        }
        let pool = count(self.pods_per_s * REUSED_ADDRESSES_PER_RATE).max(1);
        address(self.first + (number - self.first) % pool)
    }
}

fn count(pods: f64) -> u32 {
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float becomes the nearest u32, whatever it is"
    )]
    let count = pods.round() as u32;
    count
}

/// What churn did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
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
fn role(number: u32, roles: u32) -> Arc<str> {
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

/// Its address, when no profile says otherwise.
pub(crate) fn address(number: u32) -> IpAddr {
    cast::address(cast::CAST_ADDRESSES + number)
}

/// What the pod with this number and address must be given.
pub(crate) fn target(number: u32, ip: IpAddr, roles: u32) -> Target {
    Target {
        ip: Some(ip),
        role: role(number, roles),
    }
}

/// Runs to the end of `churn.duration`; pods still alive then stay.
pub(crate) fn run(
    churn: &Churn,
    cluster: &ClusterHandle,
    population: &Population,
    started: impl Fn(Started) -> Result<(), SendError<Started>>,
) -> anyhow::Result<Churned> {
    let mut dice = fastrand::Rng::with_seed(churn.seed);
    let mut churned = Churned::default();
    let start = clock::now();
    let end = start + churn.duration;
    let mut steps: BinaryHeap<Reverse<(Instant, Step, u32)>> = (churn.first..)
        .zip(churn.arrivals())
        .map(|(number, offset)| Reverse((start + offset, Step::Bind, number)))
        .collect();
    while let Some(Reverse((due, step, number))) = steps.pop() {
        if due >= end {
            break;
        }
        clock::sleep_until(due);
        let ip = churn.address(number);
        let next = match step {
            Step::Bind => {
                cluster
                    .create_pod(pod(number, churn.roles))
                    .context("cannot create a pod")?;
                churned.created += 1;
                Some((Duration::from_millis(dice.u64(START_DELAY_MS)), Step::Run))
            }
            Step::Run => {
                cluster
                    .run(cast::OPEN, &name(number), &[ip])
                    .context("cannot run a pod")?;
                // The load has ended early only if it failed, and then says so itself.
                let told = started(Started {
                    target: target(number, ip, churn.roles),
                    visible: clock::now(),
                });
                told.ok().map(|()| (LIFE, Step::Retire))
            }
            Step::Retire => {
                population.remove(ip);
                Some((GRACE, Step::Delete))
            }
            Step::Delete => {
                cluster
                    .delete(Kind::Pod, cast::OPEN, &name(number))
                    .context("cannot delete a pod")?;
                churned.deleted += 1;
                None
            }
        };
        steps.extend(next.map(|(after, step)| Reverse((clock::now() + after, step, number))));
    }
    Ok(churned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn churn(profile: Profile) -> Churn {
        let duration = Duration::from_secs(20);
        Churn {
            profile,
            pods_per_s: 10.0,
            duration,
            roles: 7,
            first: 100,
            seed: 1,
        }
    }

    #[test]
    fn every_profile_brings_as_many_pods() {
        for profile in [
            Profile::Steady,
            Profile::Burst,
            Profile::Rollout,
            Profile::NodeDrain,
            Profile::IpReuse,
        ] {
            let arrivals = churn(profile).arrivals();
            assert_eq!(arrivals.len(), 200, "{profile:?}");
            assert!(
                arrivals.last().unwrap() < &Duration::from_secs(20),
                "{profile:?}"
            );
        }
    }

    #[test]
    fn a_burst_comes_at_once_and_a_drain_in_the_middle() {
        let burst = churn(Profile::Burst).arrivals();
        assert_eq!(
            burst
                .iter()
                .filter(|at| **at == Duration::from_secs(5))
                .count(),
            50
        );
        let middle = Duration::from_secs(10)..Duration::from_secs(11);
        let drain = churn(Profile::NodeDrain).arrivals();
        assert!(drain.iter().filter(|at| middle.contains(*at)).count() >= 100);
    }

    #[test]
    fn a_reused_address_goes_to_another_role_after_its_pod_is_gone() {
        let churn = churn(Profile::IpReuse);
        assert_eq!(churn.address(100), churn.address(160));
        assert_ne!(role(100, churn.roles), role(160, churn.roles));
        let slowest = LIFE + GRACE + Duration::from_millis(START_DELAY_MS.end);
        assert!(slowest.as_secs_f64() < REUSED_ADDRESSES_PER_RATE);
    }
}
