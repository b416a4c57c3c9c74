//! The whole system for a long time: pods come and go, everything that can go wrong does so in turn,
//! and in the end it says what grew and who noticed.
//!
//! What ends a process happens in the first part of the run only, so that afterwards both programs
//! get old enough for a leak to show. A pod that was granted once must be answered whatever happens,
//! save while its agent is dead; a new pod may wait while a fault keeps its news away. Every other
//! failure is unexplained, and one is too many.

mod growth;
mod trouble;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::churn::{self, Churn};
use crate::clock;
use crate::dialogue::{Answers, Asker, Failure, Patience, Shape};
use crate::json;
use crate::load::{self, Load, Started, Waiting};
use crate::numbers;
use crate::plan::{Crowd, Plan, rate};
use crate::population::Population;
use crate::proc_stats::Process;
use crate::progress::Progress;
use crate::rig::{Options, Program, Rig};
use crate::session::{Session, join};
use growth::{Growth, Sample, Use};
use trouble::Trouble;

/// Runs the system for a long time with every fault in turn, and says what grew.
///
/// Ends with 1 if memory, open files or threads of a program grew by more than is stated or could not be
/// judged, or if a request failed that no fault explains.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Soak {
    /// How long. Twenty show a leak that would end a program within a week.
    #[arg(long, value_name = "MINUTES", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_080))]
    minutes: u32,
    #[command(flatten)]
    crowd: Crowd,
    /// Pods created each second; each is asked for during two seconds and deleted two seconds later.
    #[arg(long, value_name = "N", default_value_t = 2.0, value_parser = rate)]
    pods_per_second: f64,
    /// SDK dialogues started each second.
    #[arg(long, value_name = "N", default_value_t = 20.0, value_parser = rate)]
    dialogues_per_second: f64,
    /// How long sessions last, in seconds, so that all of them are renewed many times.
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(60..=3600))]
    session_seconds: u64,
    /// Between two samples, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    sample_seconds: u64,
    /// Lets nothing go wrong.
    #[arg(long)]
    no_faults: bool,
    /// Writes samples, slopes and verdict to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A flag handed to the agent as it is; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    agent_flag: Vec<std::ffi::OsString>,
    /// A flag handed to the server as it is; may be given several times.
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    server_flag: Vec<std::ffi::OsString>,
}

/// Pods whose first credentials are asked for at the same time.
const FIRST_THREADS: usize = 8;
/// A pod that was answered later than this may be gone by the time it is asked for again.
const EARLY: Duration = Duration::from_millis(1_500);

/// What came of it.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Outcome {
    minutes: u32,
    /// Dialogues of pods that had been answered before.
    asked: u64,
    /// Those that failed, by what they ended with.
    failures: BTreeMap<String, u64>,
    /// Pods that came.
    pods: u64,
    /// Those whose first dialogue failed.
    pods_late: u64,
    /// Calls of STS.
    sts_calls: u64,
    /// How often each fault happened.
    faults: BTreeMap<&'static str, u64>,
    /// Those for which it was too short.
    faults_left_out: Vec<&'static str>,
    growth: Vec<Growth>,
    /// Failures that no fault explains.
    unexplained: Vec<String>,
    /// Why the run has failed; empty when it has not.
    verdict: Vec<String>,
    samples: Vec<Sample>,
}

/// A failure and when.
type Failed = (Instant, Failure);

/// What the threads of a run share.
struct Shared<'a> {
    rig: &'a Rig,
    population: &'a Population,
    trouble: Trouble,
    over: AtomicBool,
    /// Of pods that had just come.
    first: Mutex<Vec<Failed>>,
}

impl Soak {
    /// Runs to the end.
    pub(crate) fn run(&self, progress: &Progress) -> anyhow::Result<Outcome> {
        progress.step("starting a simulated cluster and STS, the server, and the agent");
        let rig = Rig::start(Options {
            agent: self.agent_flag.clone(),
            server: self.server_flag.clone(),
            ..Options::default()
        })?;
        let life = Duration::from_secs(self.session_seconds);
        rig.sts().set_lifetime(Some(life));
        let plan = self.plan();
        let session = Session::start(rig.system(), &plan, progress)?;
        let length = Duration::from_secs(u64::from(self.minutes) * 60);
        progress.step(&format!("{} minutes", self.minutes));
        let shared = Shared {
            rig: &rig,
            population: session.population(),
            trouble: Trouble::default(),
            over: AtomicBool::new(false),
            first: Mutex::default(),
        };
        let outcome = self.soak(&shared, length, progress)?;
        if let Some(path) = &self.json {
            json::write(path, &outcome)?;
        }
        Ok(outcome)
    }

    fn plan(&self) -> Plan {
        Plan {
            seconds: self.sample_seconds,
            crowd: self.crowd.clone(),
            pods_per_second: self.pods_per_second,
            dialogues_per_second: self.dialogues_per_second,
        }
    }

    fn soak(
        &self,
        shared: &Shared<'_>,
        length: Duration,
        progress: &Progress,
    ) -> anyhow::Result<Outcome> {
        let (started, waiting) = mpsc::channel();
        let churn: Churn = self.plan().churn(length);
        let (cluster, waiting) = (shared.rig.cluster(), Waiting::new(waiting));
        std::thread::scope(|scope| {
            let churning = scope.spawn(|| {
                // Moved in, so that those who wait for pods end when no more come.
                let started = started;
                churn::run(&churn, cluster, shared.population, |pod| started.send(pod))
            });
            for _ in 0..FIRST_THREADS {
                scope.spawn(|| shared.first_credentials(&waiting));
            }
            let faulty = scope.spawn(|| {
                if self.no_faults {
                    return Ok(());
                }
                shared
                    .trouble
                    .happen(shared.rig.system(), length, &shared.over)
            });
            let seen = self.watch(shared, length, progress);
            shared.over.store(true, Ordering::Relaxed);
            let (churned, faulty) = (join(churning), join(faulty));
            faulty?;
            let churned = churned?;
            Ok(self.outcome(shared, seen, churned.created))
        })
    }

    /// Asks and samples until it is over.
    fn watch(&self, shared: &Shared<'_>, length: Duration, progress: &Progress) -> Seen {
        let start = clock::now();
        let mut seen = Seen::default();
        let mut slice = 0;
        while clock::now() < start + length {
            slice += 1;
            let load: Load = self.plan().load(shared.rig.agent(), Answers::Matter, slice);
            let began = clock::now();
            let done = AtomicU64::new(0);
            let figures = load::run(&load, shared.population, shared.rig.sts(), &done);
            seen.asked += done.load(Ordering::Relaxed);
            for (failure, count) in figures.failures {
                seen.failed.push((began, clock::now(), failure, count));
            }
            let at = clock::now().saturating_duration_since(start);
            let ms = |share| figures.requests.quantile(share).map(numbers::ms);
            // One of them may be dead at this moment, which a fault explains.
            let (agent, server) = (
                usage(shared.rig, Program::Agent),
                usage(shared.rig, Program::Server),
            );
            seen.samples.push(Sample {
                at_s: at.as_secs_f64(),
                p50_ms: ms(0.5),
                p99_ms: ms(0.99),
                agent,
                server,
            });
            if slice % 12 == 0 {
                progress.step(&format!(
                    "{:.0} of {} minutes; {}",
                    at.as_secs_f64() / 60.0,
                    self.minutes,
                    seen.samples.last().map_or_else(String::new, Sample::line)
                ));
            }
        }
        seen
    }

    fn outcome(&self, shared: &Shared<'_>, seen: Seen, pods: u64) -> Outcome {
        let windows = shared.trouble.windows();
        let mut failures = BTreeMap::new();
        let mut unexplained = Vec::new();
        for (from, until, failure, count) in &seen.failed {
            *failures.entry(failure.to_string()).or_default() += count;
            if !windows.explain_silence(*from, *until) || failure.is_wrong() {
                unexplained.push(format!(
                    "{count} dialogues of pods that had credentials: {failure}"
                ));
            }
        }
        let first = shared.first.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, failure) in &*first {
            if !windows.explain_delay(*at) || failure.is_wrong() {
                unexplained.push(format!("a new pod's first dialogue: {failure}"));
            }
        }
        let growth = growth::of(&seen.samples);
        let mut verdict: Vec<String> = growth.iter().filter_map(Growth::too_much).collect();
        verdict.extend(growth.iter().filter_map(Growth::not_judged));
        if let Some(one) = unexplained.first() {
            verdict.push(format!("{} unexplained failures: {one}", unexplained.len()));
        }
        Outcome {
            minutes: self.minutes,
            asked: seen.asked,
            failures,
            pods,
            pods_late: u64::try_from(first.len()).unwrap_or(u64::MAX),
            sts_calls: shared.rig.sts().total(),
            faults: windows.counts(),
            faults_left_out: if self.no_faults {
                Vec::new()
            } else {
                windows.left_out()
            },
            growth,
            unexplained,
            verdict,
            samples: seen.samples,
        }
    }
}

/// What the load saw.
#[derive(Debug, Default)]
struct Seen {
    asked: u64,
    /// From when to when, what, and how often.
    failed: Vec<(Instant, Instant, Failure, u64)>,
    samples: Vec<Sample>,
}

fn usage(rig: &Rig, of: Program) -> Option<Use> {
    let pid = rig.pid(of);
    let process = Process::new(pid);
    Some(Use {
        pid,
        rss_bytes: process.resident_bytes().ok()?,
        // Of a process that hides from its user, only root is told.
        open_files: process.open_files().ok(),
        threads: process.threads().ok()?,
        cpu_s: process.cpu().ok()?.as_secs_f64(),
    })
}

impl Shared<'_> {
    fn first_credentials(&self, waiting: &Waiting) {
        while let Some(Started { target, visible }) = waiting.next() {
            let asker = Asker {
                target: self.rig.agent(),
                source: target.ip,
                shape: Shape::Boto3,
                answers: Answers::Matter,
                patience: Patience::Sdk,
            };
            let obtained = asker.ask(drop);
            match obtained.and_then(|obtained| target.check(&obtained, self.rig.sts())) {
                Ok(()) if clock::now() < visible + EARLY => self.population.insert(target),
                Ok(()) => {}
                Err(failure) => {
                    let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
                    first.push((visible, failure));
                }
            }
        }
    }
}

impl Outcome {
    /// Why the run has failed; empty when it has not.
    pub(crate) fn verdict(&self) -> &[String] {
        &self.verdict
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "soak of {} minutes", self.minutes)?;
        let failed: u64 = self.failures.values().sum();
        writeln!(
            f,
            "  dialogues   {} asked, {failed} failed {:?}",
            self.asked, self.failures
        )?;
        writeln!(
            f,
            "  new pods    {}, {} of them not answered at once",
            self.pods, self.pods_late
        )?;
        writeln!(f, "  STS calls   {}", self.sts_calls)?;
        let faults: Vec<_> = self.faults.iter().collect();
        let faults: Vec<_> = faults.iter().map(|(k, n)| format!("{k} {n}")).collect();
        writeln!(f, "  faults      {}", faults.join(", "))?;
        if !self.faults_left_out.is_empty() {
            writeln!(f, "  not injected   {}", self.faults_left_out.join(", "))?;
        }
        for growth in &self.growth {
            writeln!(f, "  {growth}")?;
        }
        let unexplained = self.unexplained.len();
        writeln!(f, "  unexplained failures   {unexplained}")?;
        for why in &self.verdict {
            writeln!(f, "  failed: {why}")?;
        }
        f.write_str(if self.verdict.is_empty() {
            "  nothing grew beyond its limit, and nobody noticed anything unexplained"
        } else {
            "  see above"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::trouble::Windows;
    use super::*;

    #[test]
    fn windows_explain_only_what_they_cover() {
        let start = clock::now();
        let s = Duration::from_secs;
        let mut windows = Windows::default();
        windows.push(
            crate::faults::Kind::AgentKilled,
            start + s(10),
            start + s(15),
        );
        windows.push(crate::faults::Kind::StsDown, start + s(100), start + s(105));
        windows.push(
            crate::faults::Kind::CertificatesRotated,
            start + s(200),
            start + s(205),
        );
        assert!(windows.explain_silence(start + s(12), start + s(17)));
        assert!(!windows.explain_silence(start + s(100), start + s(105)));
        assert!(windows.explain_delay(start + s(104)));
        assert!(!windows.explain_delay(start + s(60)));
        assert!(!windows.explain_delay(start + s(203)));
        assert_eq!(windows.counts()["sts-down"], 1);
    }
}
