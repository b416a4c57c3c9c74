//! What goes wrong, and since when: switches that a test turns while the simulation runs.
//!
//! The same handle serves the Kubernetes API and STS; each holds its own. It only decides: the
//! server it belongs to waits, refuses or hangs up. The dice are seeded, so that the same sequence
//! of requests meets the same faults.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::shared::lock;

/// A delay put before each answer: `fixed` plus up to `jitter`, uniformly drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    /// Waited always.
    pub fixed: Duration,
    /// The most that is added to it.
    pub jitter: Duration,
}

/// Turns a share of the requests away with an HTTP status.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Failures {
    /// The status answered, for instance 429, 500 or 503.
    pub status: u16,
    /// How many of the requests, from 0.0 (none) to 1.0 (all).
    pub share: f64,
}

/// Whether the server can be reached at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// Connections are accepted and answered.
    #[default]
    Up,
    /// Open connections are reset and new ones are reset as they arrive; the data stays.
    Down,
    /// Connections and requests are accepted and never answered.
    Hanging,
}

/// What a request meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is answered.
    Answered,
    /// It is turned away with this status.
    Failed(u16),
    /// It is answered as if its credentials were wrong.
    Unauthorized,
}

/// The outside of a server, as its listener sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Weather {
    pub(crate) reach: Reach,
    /// Counts the times that every open connection was ordered closed.
    pub(crate) disconnects: u64,
    /// Counts the times that every open watch was ordered closed.
    pub(crate) watch_drops: u64,
    /// Counts the times that every open watch was ordered to end with 410 Gone.
    pub(crate) watch_expiries: u64,
}

#[derive(Debug)]
struct Settings {
    latency: Latency,
    failures: Option<Failures>,
    unauthorized: bool,
    dice: fastrand::Rng,
}

/// The switches of one simulated server; clones turn the same ones.
#[derive(Debug, Clone)]
pub struct Faults {
    settings: Arc<Mutex<Settings>>,
    weather: Arc<watch::Sender<Weather>>,
}

impl Faults {
    /// No faults; the dice that later choose among requests start from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            settings: Arc::new(Mutex::new(Settings {
                latency: Latency::default(),
                failures: None,
                unauthorized: false,
                dice: fastrand::Rng::with_seed(seed),
            })),
            weather: Arc::new(watch::Sender::new(Weather::default())),
        }
    }

    /// Up, down or hanging, from now on.
    pub fn set_reach(&self, reach: Reach) {
        self.weather.send_modify(|weather| weather.reach = reach);
    }

    /// Closes every open connection once; the next ones are welcome.
    pub fn disconnect_all(&self) {
        self.weather.send_modify(|weather| weather.disconnects += 1);
    }

    /// Ends every open watch once, as an API server does when it restarts its watch cache.
    pub fn drop_watches(&self) {
        self.weather.send_modify(|weather| weather.watch_drops += 1);
    }

    /// Ends every open watch once with an ERROR event that says 410 Gone.
    pub fn expire_watches(&self) {
        self.weather
            .send_modify(|weather| weather.watch_expiries += 1);
    }

    /// Delays every answer from now on.
    pub fn set_latency(&self, latency: Latency) {
        lock(&self.settings).latency = latency;
    }

    /// Turns requests away from now on, or stops doing so.
    pub fn set_failures(&self, failures: Option<Failures>) {
        lock(&self.settings).failures = failures;
    }

    /// Answers every request as unauthorized, or stops doing so.
    pub fn set_unauthorized(&self, unauthorized: bool) {
        lock(&self.settings).unauthorized = unauthorized;
    }

    /// Back to a healthy server.
    pub fn clear(&self) {
        let mut settings = lock(&self.settings);
        settings.latency = Latency::default();
        settings.failures = None;
        settings.unauthorized = false;
        drop(settings);
        self.set_reach(Reach::Up);
    }

    /// How long the next request waits, and what it meets then.
    pub(crate) fn draw(&self) -> (Duration, Fate) {
        let mut settings = lock(&self.settings);
        let roll = settings.dice.f64();
        let delay = settings.latency.fixed + settings.latency.jitter.mul_f64(roll);
        let chance = settings.dice.f64();
        let fate = match settings.failures {
            _ if settings.unauthorized => Fate::Unauthorized,
            Some(failures) if chance < failures.share => Fate::Failed(failures.status),
            Some(_) | None => Fate::Answered,
        };
        (delay, fate)
    }

    /// Follows the reach of the server and its orders to hang up.
    pub(crate) fn weather(&self) -> watch::Receiver<Weather> {
        self.weather.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Failures, Fate, Faults, Latency};

    #[test]
    fn a_share_of_requests_fails_and_the_seed_chooses_which() {
        let fates = |seed| {
            let faults = Faults::new(seed);
            faults.set_failures(Some(Failures {
                status: 429,
                share: 0.25,
            }));
            (0..1000).map(|_| faults.draw().1).collect::<Vec<_>>()
        };
        let failed = fates(1)
            .iter()
            .filter(|fate| **fate == Fate::Failed(429))
            .count();
        assert!((200..300).contains(&failed), "{failed} of 1000");
        assert_eq!(fates(1), fates(1));
        assert_ne!(fates(1), fates(2));
    }

    #[test]
    fn latency_stays_within_its_jitter() {
        let faults = Faults::new(1);
        let (fixed, jitter) = (Duration::from_millis(50), Duration::from_millis(20));
        faults.set_latency(Latency { fixed, jitter });
        for _ in 0..100 {
            let (delay, _) = faults.draw();
            assert!(delay >= fixed && delay <= fixed + jitter, "{delay:?}");
        }
        faults.clear();
        assert_eq!(faults.draw(), (Duration::ZERO, Fate::Answered));
    }
}
