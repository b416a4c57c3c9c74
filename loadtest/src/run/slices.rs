//! What one round is made of: slices of the same load on different targets, one after the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::beside::{self, Hogs};
use crate::dialogue::Answers;
use crate::measure::Figures;
use crate::report::{self, Usage};
use crate::scrape::Metrics;
use crate::session::Session;

/// What a slice of load is on, and beside what. In the order of their turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The agent.
    Agent,
    /// The null server.
    Null,
    /// The agent while snapshots are published.
    Stirred,
    /// The agent beside threads that only use its core.
    Hogged,
    /// Another agent.
    Other,
}

impl Kind {
    /// For whoever watches.
    const fn words(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Null => "null server",
            Self::Stirred => "snapshots",
            Self::Hogged => "hogs",
            Self::Other => "other agent",
        }
    }
}

/// One slice of load.
#[derive(Debug)]
pub(crate) struct Slice {
    /// What was seen.
    pub figures: Figures,
    /// CPU time of the process that was asked; `None` when it could not be seen, or was not there
    /// throughout.
    pub cpu: Option<Duration>,
    /// What the agent counted by itself; of its own slices only.
    pub counted: Option<Counted>,
}

/// Requests by the agent's own count. All of them, those of pods that have just started included: it
/// is those that have to wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    /// That had to wait for their pod.
    pub parked: f64,
    /// All.
    pub served: f64,
}

impl Counted {
    fn between(before: &Metrics, after: &Metrics) -> Self {
        let grown = |name| after.sum(name) - before.sum(name);
        Self {
            parked: grown("kiam_agent_parked_total"),
            served: grown("kiam_metadata_responses_total"),
        }
    }
}

impl Slice {
    /// CPU time of whoever was asked, for each request.
    pub(crate) fn cpu_per_request(&self) -> Option<Duration> {
        report::each(self.cpu, self.figures.requests.count())
    }
}

/// One slice of each kind that takes part.
pub(crate) type Round = BTreeMap<Kind, Slice>;

/// A process that is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its process; `None` when it cannot be seen.
    pub pid: Option<u32>,
}

/// Who takes part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    /// The null server.
    pub null: Option<Asked>,
    /// Another agent.
    pub other: Option<Asked>,
    /// Snapshots to publish each second while the agent is stirred.
    pub snapshots_per_s: Option<f64>,
    /// Threads beside the agent while it is hogged.
    pub hogs: Option<u16>,
}

impl Parts {
    /// The kinds, in the order of their turns.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let taking_part = [
            (Kind::Agent, true),
            (Kind::Null, self.null.is_some()),
            (Kind::Stirred, self.snapshots_per_s.is_some()),
            (Kind::Hogged, self.hogs.is_some()),
            (Kind::Other, self.other.is_some()),
        ];
        let kinds = taking_part.into_iter().filter(|(_kind, takes)| *takes);
        kinds.map(|(kind, _takes)| kind).collect()
    }

    /// One slice of each.
    pub(crate) fn round(&self, number: u32, session: &Session<'_>) -> anyhow::Result<Round> {
        let kinds = self.kinds().into_iter();
        let slices = kinds.map(|kind| Ok((kind, self.slice(kind, number, session)?)));
        slices.collect()
    }

    fn slice(&self, kind: Kind, number: u32, session: &Session<'_>) -> anyhow::Result<Slice> {
        let agent = Asked {
            address: session.agent_address(),
            pid: Some(session.agent_pid()),
        };
        let (asked, answers) = match kind {
            Kind::Agent | Kind::Stirred | Kind::Hogged => (agent, Answers::Matter),
            Kind::Null => (self.null.unwrap_or(agent), Answers::Ignored),
            Kind::Other => (self.other.unwrap_or(agent), Answers::Matter),
        };
        let load = session
            .plan()
            .load(asked.address, answers, u64::from(number) + 1);
        let _hogs = match (kind, self.hogs) {
            (Kind::Hogged, Some(count)) => Some(Hogs::start(count)),
            _ => None,
        };
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (cluster, over) = (session.cluster(), &over);
            let stirring = match (kind, self.snapshots_per_s) {
                (Kind::Stirred, Some(rate)) => {
                    Some(scope.spawn(move || beside::stir(cluster, number, rate, over)))
                }
                _ => None,
            };
            let counts = || match kind {
                Kind::Agent => session.agent_metrics(),
                Kind::Null | Kind::Stirred | Kind::Hogged | Kind::Other => None,
            };
            let counted = counts();
            let before = asked.pid.and_then(|pid| Usage::of(pid).ok());
            let what = format!("round {}, {}", number + 1, kind.words());
            let figures = session.load(&what, &load);
            // A killed agent's successor has another process id, and counts from zero.
            let after = asked.pid.and_then(|pid| Usage::of(pid).ok());
            let used = before.zip(after);
            let cpu = used.and_then(|(b, a)| Usage::between(b, a).cpu);
            let counted = counted.zip(counts()).filter(|_counts| cpu.is_some());
            over.store(true, Ordering::Relaxed);
            if let Some(stirring) = stirring {
                stirring
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(Slice {
                figures,
                cpu,
                counted: counted.map(|(b, a)| Counted::between(&b, &a)),
            })
        })
    }
}
