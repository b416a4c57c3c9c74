//! The whole system on this machine for a few seconds: what `kiam-loadtest` does when told nothing.

use anyhow::Context as _;

use crate::clock;
use crate::dialogue::Answers;
use crate::measure::Figures;
use crate::plan::Plan;
use crate::proc_stats::Cores;
use crate::progress::Progress;
use crate::report::{self, EARLIEST_RENEWAL, Report, Usage};
use crate::session::Session;
use crate::simulation::Simulation;
use crate::system::{Extra, System};
use crate::verdict;

/// Starts the system, runs the plan once, and ends it again.
pub(crate) fn run(plan: &Plan, progress: &Progress) -> anyhow::Result<Report> {
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    progress.step("starting a simulated cluster and STS, the server, and the agent");
    let simulation = Simulation::start(dir.path(), plan.crowd.seed)?;
    let system = System::start(simulation, Extra::default())?;
    let session = Session::start(&system, plan, progress)?;
    let before = session.usage()?;
    let (cores, began) = (Cores::read(), clock::now());
    let load = plan.load(system.agent_address(), Answers::Matter, 0);
    let (changes, steady) = session.under_churn(plan.slice(), &[], None, || {
        Ok(session.load("the agent", &load))
    })?;
    let after = session.usage()?;
    let sts = system.simulation().sts();
    let agent = Usage::between(before.0, after.0);
    let requests = changes.first.requests.count() + steady.requests.count();
    let report = Report {
        title: plan.title(),
        broken: session.refusals(),
        stressed: Figures::new(),
        agent,
        agent_cpu_per_request: report::each(agent.cpu, requests),
        server: Usage::between(before.1, after.1),
        sts_calls: sts.total(),
        sts_roles: sts.counts().len(),
        sts_early: sts.early(EARLIEST_RENEWAL),
        changes,
        generator: verdict::generator(
            &steady,
            clock::now().saturating_duration_since(began),
            Cores::read().stolen_since(cores),
        ),
        steady,
    };
    drop(session);
    progress.step("stopping");
    system.stop()?;
    Ok(report)
}
