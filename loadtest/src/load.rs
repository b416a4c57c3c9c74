//! The open loop: dialogues start when they are due, whether or not earlier ones have ended.
//!
//! Each thread takes the next arrival, sleeps until it is due, and asks over blocking sockets. An
//! answer is late from when its request was *due*; what the generator itself lost before the first
//! byte is recorded as lag, so that a reader can tell a slow agent from a slow generator.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::dialogue::{Answers, Asker, Mix, Patience, Shape, Tokens};
use crate::measure::Figures;
use crate::population::{Issuer, Population, Target};
use crate::proc_stats;

/// How hard, how long, whom.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The agent, or the null server.
    pub target: SocketAddr,
    /// What is made of its answers.
    pub answers: Answers,
    /// Dialogues a second, on average; their gaps are exponential (a Poisson process).
    pub dialogues_per_s: f64,
    /// How long dialogues are started.
    pub duration: Duration,
    /// Who asks.
    pub mix: Mix,
    /// Same seed, same arrivals and same pods.
    pub seed: u64,
}

/// Dialogues in flight at most. A parked one holds its thread for up to a second.
const THREADS: usize = 64;

/// When each dialogue is due, from the start.
fn arrivals(load: &Load) -> Vec<Duration> {
    let mut dice = fastrand::Rng::with_seed(load.seed);
    let mut due = Vec::new();
    let mut at = 0.0_f64;
    loop {
        at += -(1.0 - dice.f64()).ln() / load.dialogues_per_s;
        // An absurd rate ends the loop here rather than in a panic.
        let Ok(offset) = Duration::try_from_secs_f64(at) else {
            return due;
        };
        if offset >= load.duration {
            return due;
        }
        due.push(offset);
    }
}

/// Runs the load to its end. `done` is told of each dialogue that ended.
pub(crate) fn run(
    load: &Load,
    population: &Population,
    issuer: &dyn Issuer,
    done: &AtomicU64,
) -> Figures {
    let arrivals = arrivals(load);
    let next = AtomicUsize::new(0);
    let tokens = Tokens::default();
    // Late enough for all threads to be up.
    let start = clock::now() + Duration::from_millis(50);
    let worker = || {
        let mut figures = Figures::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(offset) = arrivals.get(index) else {
                return figures;
            };
            let due = start + *offset;
            figures.lag.record(clock::sleep_until(due));
            let mut dice = fastrand::Rng::with_seed(load.seed ^ number(index));
            if let Some(target) = population.pick(dice.f64()) {
                let asking = Asking {
                    shape: load.mix.at(index),
                    target: &target,
                    tokens: &tokens,
                    due,
                };
                converse(load, &asking, issuer, &mut figures);
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    on_threads(THREADS, worker)
}

/// A pod whose address has just become visible in the Kubernetes API: its first dialogue is due.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    /// The pod.
    pub target: Target,
    /// When its address became visible.
    pub visible: Instant,
}

/// Started pods that several threads wait for.
#[derive(Debug)]
pub(crate) struct Waiting(Mutex<Receiver<Started>>);

impl Waiting {
    /// For those that are sent here.
    pub(crate) const fn new(started: Receiver<Started>) -> Self {
        Self(Mutex::new(started))
    }

    /// The next one; `None` when there will be no more.
    pub(crate) fn next(&self) -> Option<Started> {
        // Held while waiting: the others wait for the lock instead, which is the same.
        let started = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        started.recv().ok()
    }
}

/// Asks for each started pod's first credentials, until the sending side is dropped. Pods that were
/// given theirs go into the population, if there is one.
pub(crate) fn first_credentials(
    load: &Load,
    started: Receiver<Started>,
    population: Option<&Population>,
    issuer: &dyn Issuer,
) -> Figures {
    let started = Waiting::new(started);
    let tokens = Tokens::default();
    let worker = || {
        let mut figures = Figures::new();
        while let Some(Started { target, visible }) = started.next() {
            figures
                .lag
                .record(clock::now().saturating_duration_since(visible));
            let failed = figures.failed();
            let asking = Asking {
                // A first dialogue is a client's that has just started.
                shape: load.mix.first(),
                target: &target,
                tokens: &tokens,
                due: visible,
            };
            converse(load, &asking, issuer, &mut figures);
            // Only a pod that was granted once must be answered from now on.
            if figures.failed() == failed
                && let Some(population) = population
            {
                population.insert(target);
            }
        }
        figures
    };
    on_threads(THREADS, worker)
}

/// One dialogue: who has it, in which pod, with which tokens, and when it was due.
struct Asking<'a> {
    shape: Shape,
    target: &'a Target,
    tokens: &'a Tokens,
    due: Instant,
}

fn converse(load: &Load, asking: &Asking<'_>, issuer: &dyn Issuer, figures: &mut Figures) {
    let Asking {
        shape,
        target,
        tokens,
        due,
    } = *asking;
    let asker = Asker {
        target: load.target,
        source: target.ip,
        shape,
        answers: load.answers,
        patience: Patience::Sdk,
    };
    let outcome = asker.ask_again(tokens, |took| figures.requests.record(took));
    let outcome = outcome.and_then(|obtained| match load.answers {
        Answers::Matter => target.check(&obtained, issuer),
        Answers::Ignored => Ok(()),
    });
    match outcome {
        Ok(()) => figures
            .dialogues
            .record(clock::now().saturating_duration_since(due)),
        Err(failure) => {
            tracing::warn!(pod_ip = ?target.ip, role = %target.role, %failure, "dialogue failed");
            figures.fail(failure);
        }
    }
}

fn on_threads(threads: usize, worker: impl Fn() -> Figures + Sync) -> Figures {
    std::thread::scope(|scope| {
        let worker = || {
            let before = proc_stats::this_thread();
            let mut figures = worker();
            figures.waited = proc_stats::this_thread()
                .waited
                .saturating_sub(before.waited);
            figures
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut all = Figures::new();
        for thread in threads {
            match thread.join() {
                Ok(figures) => all.add(&figures),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

fn number(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(dialogues_per_s: f64) -> Load {
        Load {
            target: "127.0.0.1:1".parse().unwrap(),
            answers: Answers::Matter,
            dialogues_per_s,
            duration: Duration::from_secs(10),
            mix: Mix::new(&[]),
            seed: 7,
        }
    }

    #[test]
    fn arrivals_come_at_the_rate_and_are_repeatable() {
        let due = arrivals(&load(200.0));
        assert!(
            (1_800..2_200).contains(&due.len()),
            "{} arrivals",
            due.len()
        );
        assert!(due.is_sorted());
        assert_eq!(due, arrivals(&load(200.0)));
    }

    #[test]
    fn no_rate_is_no_arrival() {
        assert!(arrivals(&load(0.0)).is_empty());
    }
}
