//! Pods that ask all the time, what they were answered, and how long it took until all was well.
//!
//! A slow answer is no failure here: the time-out is far beyond what any SDK waits, so that a busy
//! machine does not look like a broken program. What counts is whether a pod was refused, hung up
//! on, or given what is not its own. How long that went on is measured beside it: the longest time
//! that a pod was without, and how long after a fault's end everything worked again.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiam_sim::sts::StsHandle;

use super::PATIENCE;
use crate::clock;
use crate::dialogue::{Answers, Asker, Failure, Patience, Shape};
use crate::population::Target;

/// Clients in each pod that ask at the same time.
const THREADS: usize = 3;
/// Between one client's dialogues.
const PAUSE: Duration = Duration::from_millis(10);

/// Asking goes on until it is told to [`Witness::end`].
#[derive(Debug)]
pub struct Witness {
    over: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

/// What the pods saw.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Dialogues, each of a token, the role list and the credentials.
    pub asked: u64,
    /// Those that did not end with the pod's own credentials, by what they ended with.
    pub failures: BTreeMap<Failure, u64>,
    /// The longest that a client in one of the pods went without an answer: from the beginning of a
    /// dialogue to the end of the first that did not fail. Without a failure, the slowest dialogue.
    pub longest_outage: Duration,
    /// The longest of all [`Witness::heals`]; `None` when nothing was to heal.
    pub healed_after: Option<Duration>,
    /// Dialogues that failed although they began after everything had healed for the last time.
    pub relapses: u64,
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
            .filter(|(kind, _count)| kind.is_wrong())
            .map(|(_kind, count)| count)
            .sum()
    }

    /// One line, always of the same form, for people and for whoever collects them. Times are in
    /// seconds; what was not measured is `-`.
    pub fn line(&self, fault: &str) -> String {
        let healed = self.healed_after;
        let healed = healed.map_or_else(|| "-".into(), |time| format!("{:.2}", time.as_secs_f64()));
        format!(
            "fault={fault} dialogues={} failed={} longest_outage_s={:.2} healed_after_s={healed}",
            self.asked,
            self.failed(),
            self.longest_outage.as_secs_f64(),
        )
    }
}

impl Witness {
    pub(super) fn begin(
        target: SocketAddr,
        sts: &StsHandle,
        pods: impl Into<Arc<[(IpAddr, String)]>>,
    ) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let pods: Arc<[(IpAddr, String)]> = pods.into();
        let threads = (0..THREADS).map(|number| {
            let asking = Asking {
                target,
                sts: sts.clone(),
                pods: Arc::clone(&pods),
                over: Arc::clone(&over),
                tally: Arc::clone(&tally),
            };
            std::thread::spawn(move || asking.until_over(number))
        });
        Self {
            threads: threads.collect(),
            tally,
            over,
        }
    }

    /// Waits until the pods have had `dialogues` more, whatever they ended with.
    pub fn sees(&self, dialogues: u64) -> anyhow::Result<()> {
        let enough = locked(&self.tally).seen.asked + dialogues;
        super::within("the witness goes on", || {
            (locked(&self.tally).seen.asked >= enough).then_some(())
        })
    }

    /// The fault ends now, and nobody helps. `until` returns when everything else that is asked for
    /// works again; then it is waited for every pod whose last dialogue failed. How long it took is
    /// in [`Seen::healed_after`].
    pub fn heals<T>(&self, until: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let ended = clock::now();
        let works = until()?;
        super::within("every pod has its credentials again", || {
            locked(&self.tally).without.is_empty().then_some(())
        })?;
        locked(&self.tally).healed(ended, clock::now());
        Ok(works)
    }

    /// What was seen so far.
    pub fn so_far(&self) -> Seen {
        locked(&self.tally).seen.clone()
    }

    /// Ends the asking and says what was seen.
    pub fn end(self) -> Seen {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        std::mem::take(&mut locked(&self.tally).seen)
    }
}

fn locked(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    // A panicking thread leaves the counts whole: it holds them for one call only.
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One of the clients in a pod.
type Client = (usize, IpAddr);

/// What was seen so far.
#[derive(Debug, Default)]
struct Tally {
    seen: Seen,
    /// Clients whose last dialogue failed, and since when they ask.
    without: HashMap<Client, Instant>,
    healed_at: Option<Instant>,
}

impl Tally {
    fn record(&mut self, client: Client, asked: (Instant, Instant), outcome: Result<(), Failure>) {
        let (began, ended) = asked;
        let seen = &mut self.seen;
        seen.asked += 1;
        let since = *self.without.entry(client).or_insert(began);
        let outage = ended.saturating_duration_since(since);
        seen.longest_outage = seen.longest_outage.max(outage);
        let Err(failure) = outcome else {
            self.without.remove(&client);
            return;
        };
        *seen.failures.entry(failure).or_default() += 1;
        if self.healed_at.is_some_and(|healed| began > healed) {
            seen.relapses += 1;
        }
    }

    fn healed(&mut self, ended: Instant, now: Instant) {
        let took = Some(now.saturating_duration_since(ended));
        self.seen.healed_after = self.seen.healed_after.max(took);
        // What failed since the time before was the next fault's.
        self.seen.relapses = 0;
        self.healed_at = Some(now);
    }
}

struct Asking {
    target: SocketAddr,
    sts: StsHandle,
    pods: Arc<[(IpAddr, String)]>,
    over: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
}

impl Asking {
    fn until_over(&self, thread: usize) {
        let pods = self.pods.iter().cycle().skip(thread * 5);
        let shapes = Shape::ALL.into_iter().cycle().skip(thread);
        for ((ip, role), shape) in pods.zip(shapes) {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            let began = clock::now();
            let outcome = self.ask(*ip, role, shape);
            let asked = (began, clock::now());
            locked(&self.tally).record((thread, *ip), asked, outcome);
            clock::sleep_until(clock::now() + PAUSE);
        }
    }

    fn ask(&self, ip: IpAddr, role: &str, shape: Shape) -> Result<(), Failure> {
        let asker = Asker {
            target: self.target,
            source: Some(ip),
            shape,
            answers: Answers::Matter,
            patience: Patience::For(PATIENCE),
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ONE: Client = (0, IpAddr::V4(Ipv4Addr::new(127, 64, 0, 1)));
    const OTHER: Client = (1, IpAddr::V4(Ipv4Addr::new(127, 64, 0, 1)));

    #[test]
    fn an_outage_lasts_until_the_same_client_is_answered() {
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut tally = Tally::default();
        tally.record(ONE, (at(0), at(1)), Ok(()));
        tally.record(ONE, (at(2), at(3)), Err(Failure::Closed));
        tally.record(OTHER, (at(3), at(4)), Ok(()));
        tally.record(ONE, (at(5), at(6)), Err(Failure::Refused));
        assert!(!tally.without.is_empty());
        tally.record(ONE, (at(8), at(9)), Ok(()));
        assert!(tally.without.is_empty());
        tally.record(ONE, (at(20), at(21)), Ok(()));
        assert_eq!(tally.seen.longest_outage, Duration::from_secs(7));
        assert_eq!((tally.seen.asked, tally.seen.failed()), (6, 2));
    }

    #[test]
    fn what_fails_after_the_last_healing_is_a_relapse() {
        let start = clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut tally = Tally::default();
        tally.record(ONE, (at(0), at(1)), Err(Failure::Refused));
        tally.healed(at(1), at(5));
        tally.record(ONE, (at(4), at(6)), Err(Failure::Refused));
        assert_eq!(tally.seen.relapses, 0, "it began before");
        tally.record(ONE, (at(6), at(7)), Err(Failure::Refused));
        assert_eq!(tally.seen.relapses, 1);
        tally.healed(at(8), at(9));
        assert_eq!(tally.seen.relapses, 0, "the next fault's");
        assert_eq!(tally.seen.healed_after, Some(Duration::from_secs(4)));
    }

    #[test]
    fn the_line_always_has_the_same_form() {
        let mut seen = Seen {
            asked: 120,
            longest_outage: Duration::from_millis(1_234),
            ..Seen::default()
        };
        assert_eq!(
            seen.line("server-killed"),
            "fault=server-killed dialogues=120 failed=0 longest_outage_s=1.23 healed_after_s=-"
        );
        seen.failures.insert(Failure::Closed, 3);
        seen.healed_after = Some(Duration::from_millis(500));
        assert_eq!(
            seen.line("server-killed"),
            "fault=server-killed dialogues=120 failed=3 longest_outage_s=1.23 healed_after_s=0.50"
        );
    }
}
