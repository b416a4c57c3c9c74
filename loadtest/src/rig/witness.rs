//! Pods that ask all the time, and what they were answered.
//!
//! A slow answer is no failure here: the time-out is far beyond what any SDK waits, so that a busy
//! machine does not look like a broken program. What counts is whether a pod was refused, hung up
//! on, or given what is not its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiam_sim::sts::StsHandle;

use super::PATIENCE;
use crate::clock;
use crate::dialogue::{Answers, Asker, Failure, Shape};
use crate::population::Target;

/// Pods that ask at the same time.
const THREADS: usize = 3;
/// Between one pod's dialogues.
const PAUSE: Duration = Duration::from_millis(10);

/// Asking goes on until it is told to [`Witness::end`].
#[derive(Debug)]
pub struct Witness {
    over: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Seen>>,
}

/// What the pods saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Dialogues, each of a token, the role list and the credentials.
    pub asked: u64,
    /// Those that did not end with the pod's own credentials, by what they ended with.
    pub failures: BTreeMap<String, u64>,
    /// From the first failure to the end of the last.
    pub outage: Duration,
}

impl Seen {
    /// Dialogues that failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Dialogues that ended with another pod's role or credentials: never.
    pub fn wrong(&self) -> u64 {
        let wrong = self.failures.iter();
        wrong
            .filter(|(kind, _count)| kind.starts_with("wrong"))
            .map(|(_kind, count)| count)
            .sum()
    }
}

impl Witness {
    pub(super) fn begin(
        target: SocketAddr,
        sts: &StsHandle,
        pods: impl Into<Arc<[(IpAddr, String)]>>,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicU64::new(0));
        let pods: Arc<[(IpAddr, String)]> = pods.into();
        let threads = (0..THREADS).map(|number| {
            let asking = Asking {
                target,
                sts: sts.clone(),
                pods: Arc::clone(&pods),
                over: Arc::clone(&over),
                asked: Arc::clone(&asked),
            };
            std::thread::spawn(move || asking.until_over(number))
        });
        Self {
            threads: threads.collect(),
            asked,
            over,
        }
    }

    /// Waits until the pods have had `dialogues` more, whatever they ended with.
    pub fn sees(&self, dialogues: u64) -> anyhow::Result<()> {
        let enough = self.asked.load(Ordering::Relaxed) + dialogues;
        super::within("the witness goes on", || {
            (self.asked.load(Ordering::Relaxed) >= enough).then_some(())
        })
    }

    /// Ends the asking and says what was seen.
    pub fn end(self) -> Seen {
        self.over.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for thread in self.threads {
            match thread.join() {
                Ok(seen) => {
                    all.asked += seen.asked;
                    all.outage = all.outage.max(seen.outage);
                    for (kind, count) in seen.failures {
                        *all.failures.entry(kind).or_default() += count;
                    }
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    }
}

struct Asking {
    target: SocketAddr,
    sts: StsHandle,
    pods: Arc<[(IpAddr, String)]>,
    over: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
}

impl Asking {
    fn until_over(&self, thread: usize) -> Seen {
        let mut seen = Seen::default();
        let mut first: Option<Instant> = None;
        let pods = self.pods.iter().cycle().skip(thread * 5);
        let shapes = Shape::ALL.into_iter().cycle().skip(thread);
        for ((ip, role), shape) in pods.zip(shapes) {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let began = clock::now();
            seen.asked += 1;
            if let Err(failure) = self.ask(*ip, role, shape) {
                *seen.failures.entry(failure.to_string()).or_default() += 1;
                let first = *first.get_or_insert(began);
                seen.outage = clock::now().saturating_duration_since(first);
            }
            self.asked.fetch_add(1, Ordering::Relaxed);
            clock::sleep_until(clock::now() + PAUSE);
        }
        seen
    }

    fn ask(&self, ip: IpAddr, role: &str, shape: Shape) -> Result<(), Failure> {
        let asker = Asker {
            target: self.target,
            source: Some(ip),
            shape,
            answers: Answers::Matter,
            timeout: PATIENCE,
        };
        let target = Target {
            ip: Some(ip),
            role: role.into(),
        };
        asker
            .ask(drop)
            .and_then(|obtained| target.check(&obtained, &self.sts))
    }
}
