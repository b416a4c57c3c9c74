//! One run of the system: its pods are started, it is asked, and what it used is read off.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use kiam_sim::cluster::{ClusterHandle, Phase};

use crate::cast::{self, Member, State};
use crate::churn::{self, Churned};
use crate::clock;
use crate::dialogue::{Answers, Asker, Patience, Shape};
use crate::faults::{self, Fault};
use crate::load;
use crate::measure::Figures;
use crate::plan::Plan;
use crate::population::Population;
use crate::progress::Progress;
use crate::report::Usage;
use crate::scrape::Metrics;
use crate::system::System;

/// The system, its plan, and its pods.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    system: &'a System,
    plan: &'a Plan,
    progress: &'a Progress,
    population: Population,
}

/// What churn and the first credentials of its pods were like.
#[derive(Debug, Clone)]
pub(crate) struct Changes {
    /// Pods that came and went.
    pub churned: Churned,
    /// What they were given first.
    pub first: Figures,
    /// What another agent gave them first, if there is one.
    pub other_first: Option<Figures>,
}

impl<'a> Session<'a> {
    /// Creates the pods that run from the start and waits until each has its credentials.
    pub(crate) fn start(
        system: &'a System,
        plan: &'a Plan,
        progress: &'a Progress,
    ) -> anyhow::Result<Self> {
        progress.step(&format!("starting {} pods", plan.crowd.pods));
        let session = Self {
            system,
            plan,
            progress,
            population: Population::default(),
        };
        let pods = (0..plan.crowd.pods).map(|number| {
            churn::pod(number, plan.crowd.roles)
                .ip(churn::address(number))
                .phase(Phase::Running)
        });
        system.simulation().cluster().create_pods(pods)?;
        let (started, waiting) = mpsc::channel();
        let visible = clock::now();
        for number in 0..plan.crowd.pods {
            started.send(load::Started {
                target: churn::target(number, churn::address(number), plan.crowd.roles),
                visible,
            })?;
        }
        drop(started);
        let load = plan.load(system.agent_address(), Answers::Matter, 0);
        let sts = system.simulation().sts();
        let figures = load::first_credentials(&load, waiting, Some(&session.population), sts);
        anyhow::ensure!(
            figures.failed() == 0,
            "pods without credentials: {:?}",
            figures.failures
        );
        Ok(session)
    }

    /// Lets pods come and go, and faults happen, while `work` runs. `length` is how long `work` will
    /// take. Pods that start ask `other` for their first credentials as well.
    pub(crate) fn under_churn<T: Send>(
        &self,
        length: Duration,
        faults: &[Fault],
        other: Option<SocketAddr>,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<(Changes, T)> {
        let (started, waiting) = mpsc::channel();
        let (other_started, other_waiting) = mpsc::channel();
        let load = self
            .plan
            .load(self.system.agent_address(), Answers::Matter, 0);
        let simulation = self.system.simulation();
        std::thread::scope(|scope| {
            let churning = scope.spawn(|| {
                // Moved in, so that it is dropped, and the first dialogues end, when churn does.
                let (started, other_started) = (started, other_started);
                let churn = self.plan.churn(length);
                let tell = |pod: load::Started| {
                    if other.is_some() {
                        other_started.send(pod.clone())?;
                    }
                    started.send(pod)
                };
                churn::run(&churn, simulation.cluster(), &self.population, tell)
            });
            let faulty = scope.spawn(|| faults::happen(faults, self.system));
            let first = scope.spawn(|| {
                let population = Some(&self.population);
                load::first_credentials(&load, waiting, population, simulation.sts())
            });
            let other_first = other.map(|target| {
                let load = self.plan.load(target, Answers::Matter, 0);
                let sts = simulation.sts();
                scope.spawn(move || load::first_credentials(&load, other_waiting, None, sts))
            });
            let done = work();
            let (churned, first) = (join(churning), join(first));
            let other_first = other_first.map(join);
            join(faulty)?;
            Ok((
                Changes {
                    churned: churned?,
                    first,
                    other_first,
                },
                done?,
            ))
        })
    }

    /// One slice of load; `what` says to whoever watches what it is on.
    pub(crate) fn load(&self, what: &str, load: &load::Load) -> Figures {
        let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| self.progress.watch(what, load.duration, &done, &over));
            let sts = self.system.simulation().sts();
            let figures = load::run(load, &self.population, sts, &done);
            over.store(true, Ordering::Relaxed);
            figures
        })
    }

    /// The pods that must get nothing, and what they were answered instead, if anything.
    pub(crate) fn refusals(&self) -> Vec<String> {
        let ask = |member: Member, expected: u16| {
            let asker = Asker {
                target: self.system.agent_address(),
                source: Some(member.ip),
                shape: Shape::V1,
                answers: Answers::Matter,
                patience: Patience::Sdk,
            };
            let got = asker.status("/latest/meta-data/iam/security-credentials/");
            let told = got.map_or_else(|failure| failure.to_string(), |status| status.to_string());
            let name = format!("{}/{}", member.namespace, member.name);
            (got != Ok(expected)).then(|| format!("{name}: {told}, not {expected}"))
        };
        let members = cast::members().into_iter();
        let broken = members.filter_map(|member| match member.state {
            State::NoRole => ask(member, 404),
            State::Refused => ask(member, 403),
            State::Granted => None,
        });
        broken.collect()
    }

    /// What is run.
    pub(crate) const fn plan(&self) -> &Plan {
        self.plan
    }

    /// The simulated cluster.
    pub(crate) fn cluster(&self) -> &ClusterHandle {
        self.system.simulation().cluster()
    }

    /// The pods that may be asked for.
    pub(crate) const fn population(&self) -> &Population {
        &self.population
    }

    /// The agent's metadata service.
    pub(crate) fn agent_address(&self) -> SocketAddr {
        self.system.agent_address()
    }

    /// The agent's process, whichever it is now.
    pub(crate) fn agent_pid(&self) -> u32 {
        self.system.agent_pid()
    }

    /// The agent's own metrics; `None` when it does not answer.
    pub(crate) fn agent_metrics(&self) -> Option<Metrics> {
        let [agent, _server] = self.system.admin_addresses();
        Metrics::of(agent)
    }

    /// What the agent and the server have used so far.
    pub(crate) fn usage(&self) -> anyhow::Result<(Usage, Usage)> {
        Ok((
            Usage::of(self.system.agent_pid())?,
            Usage::of(self.system.server_pid())?,
        ))
    }
}

/// What a thread ended with; its panic goes on here.
pub(crate) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
