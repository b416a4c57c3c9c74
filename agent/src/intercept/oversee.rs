//! Keeps the rules in place for as long as the agent runs, and keeps saying how things stand.
//!
//! It waits for the kernel to say that somebody touched them; it does not poll, with one exception:
//! iptables-legacy tells nobody, so with iptables a slow check runs beside the notifications.
//!
//! Two agents side by side in an upgrade must not fight over different rules. Each installation
//! carries the time it was made; whoever finds a later one than its own gives way for good.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::UnixSeconds;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::probe::{Outcome, from_namespace};
use super::record::Record;
use super::rules::Rules;
use super::verdict::{Seen, Verdict, verdict};
use super::watch::Watch;
use super::witness::Witness;
use super::{Backend, InterceptError, Placement, install, nft, status};

/// A removal is answered at once, a war of removals at this rate.
const PAUSE: Duration = Duration::from_millis(100);
/// How often to look where nobody tells.
const SLOW_CHECK: Duration = Duration::from_secs(30);
/// After the notifications broke off.
const RETRY: Duration = Duration::from_secs(1);
/// How often to see whether a pod's request has arrived, until one has, and to try again what failed.
const SOON: Duration = Duration::from_millis(500);

/// What the metrics say.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    restored: Counter,
    failed: Counter,
    verified: Gauge,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "kiam_agent_interception_restored",
            "Times the interception rules were found removed or altered and put back",
            metrics.restored.clone(),
        );
        registry.register(
            "kiam_agent_interception_failed",
            "Times the interception rules could not be read or put back",
            metrics.failed.clone(),
        );
        registry.register(
            "kiam_agent_interception_verified",
            "1 when a connection came through the interception rules",
            metrics.verified.clone(),
        );
        metrics
    }
}

/// What to oversee.
#[derive(Debug)]
pub struct Oversight {
    /// Where the rules are.
    pub backend: Backend,
    /// What they should be.
    pub rules: Rules,
    /// When this agent started: the age of its rules.
    pub started_at: UnixSeconds,
    /// What the data plane sees arriving.
    pub witness: Arc<Witness>,
    /// For `/metrics`.
    pub metrics: Metrics,
    /// An installer's record, where there is one for these rules and this boot. Counts when the
    /// rules cannot be read.
    pub vouched: Option<Record>,
}

impl Oversight {
    /// Installs, then watches until the task is dropped. Every change of the verdict is published.
    ///
    /// Call it once the agent listens: the first probe expects an answer.
    pub async fn run(self, verdicts: watch::Sender<Verdict>) {
        // Listening before the first look, so that nothing happens unseen in between.
        let mut watch = self.watch();
        let seen = self.settle().await;
        let mut standing = Standing {
            probed: self.probe(&seen).await,
            seen,
            gave_way: false,
        };
        let mut clocks = Clocks::new();
        loop {
            self.publish(&standing, &verdicts);
            match self.told(&mut watch, &mut clocks, &standing).await {
                Told::Touched => self.look_again(&mut standing).await,
                Told::Soon if standing.needs_repair() => self.look_again(&mut standing).await,
                Told::Soon => {}
                Told::Slowly => self.check_slowly(&mut standing, watch.is_none()).await,
                Told::Deaf(error) => {
                    tracing::warn!(%error, "notifications of rule changes ended, starting again");
                    tokio::time::sleep(RETRY).await;
                    watch = self.watch();
                    self.look_again(&mut standing).await;
                }
            }
        }
    }

    async fn told(
        &self,
        watch: &mut Option<Watch>,
        clocks: &mut Clocks,
        standing: &Standing,
    ) -> Told {
        let changed = async {
            match watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        let soon = self.witness.wants() || standing.needs_repair();
        tokio::select! {
            told = changed => told.map_or_else(Told::Deaf, |()| Told::Touched),
            _ = clocks.soon.tick(), if soon => Told::Soon,
            _ = clocks.slow.tick() => Told::Slowly,
        }
    }

    /// What nobody tells: legacy iptables has no notifications, an agent without privileges gets
    /// none, and a probe that went badly may go well once something else was repaired.
    async fn check_slowly(&self, standing: &mut Standing, deaf: bool) {
        if deaf || self.backend == Backend::Iptables {
            self.look_again(standing).await;
        }
        let badly = standing
            .probed
            .is_some_and(|outcome| outcome != Outcome::Agent);
        if badly && standing.seen == Seen::Read(Placement::InPlace) {
            standing.probed = self.probe(&standing.seen).await;
        }
    }

    fn watch(&self) -> Option<Watch> {
        Watch::open(self.backend)
            .inspect_err(|error| {
                tracing::info!(
                    %error,
                    "without NET_ADMIN nobody tells when the rules change; an installer must keep \
                     them in place"
                );
            })
            .ok()
    }

    async fn look_again(&self, standing: &mut Standing) {
        if standing.gave_way {
            return;
        }
        let before = std::mem::replace(&mut standing.seen, self.look().await);
        let Seen::Read(Placement::Absent | Placement::Altered(_)) = &standing.seen else {
            return;
        };
        if self.is_superseded().await {
            tracing::warn!("a later agent put other rules in place; they are its to keep");
            standing.gave_way = true;
            standing.seen = before;
            return;
        }
        tracing::error!(found = ?standing.seen, "the interception rules were touched, restoring");
        standing.seen = self.settle().await;
        if standing.seen == Seen::Read(Placement::InPlace) {
            self.metrics.restored.inc();
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Installs what is not in place, and looks at the result.
    async fn settle(&self) -> Seen {
        let seen = self.look().await;
        let Seen::Read(Placement::Absent | Placement::Altered(_)) = &seen else {
            return seen;
        };
        if let Err(error) = install(self.backend, &self.rules, self.started_at).await {
            self.failed(&error);
            return seen;
        }
        self.look().await
    }

    async fn look(&self) -> Seen {
        match status(self.backend, &self.rules).await {
            Ok(placement) => Seen::Read(placement),
            Err(error) if self.vouched.is_some() && error.is_not_permitted() => Seen::Vouched,
            Err(error) => {
                if !error.is_not_permitted() {
                    self.failed(&error);
                }
                Seen::Unreadable(error.to_string())
            }
        }
    }

    fn failed(&self, error: &InterceptError) {
        self.metrics.failed.inc();
        tracing::error!(%error, "the interception rules could not be read or put in place");
    }

    async fn is_superseded(&self) -> bool {
        self.backend == Backend::Nftables
            && nft::installed_at()
                .await
                .is_some_and(|at| at > self.started_at)
    }

    async fn probe(&self, seen: &Seen) -> Option<Outcome> {
        if *seen == Seen::Vouched {
            return self.vouched.as_ref().and_then(Record::probed);
        }
        match from_namespace(&self.rules).await {
            // The worse outcome counts.
            Ok(outcomes) => outcomes
                .into_iter()
                .inspect(|(metadata, outcome)| {
                    tracing::info!(%metadata, outcome = outcome.sentence(), "probed");
                })
                .map(|(_, outcome)| outcome)
                .find(|outcome| *outcome != Outcome::Agent)
                .or(Some(Outcome::Agent)),
            Err(error) => {
                tracing::info!(%error, "no probe from this node; the first pod's request will tell");
                None
            }
        }
    }

    fn publish(&self, standing: &Standing, verdicts: &watch::Sender<Verdict>) {
        let arrived = self.witness.has_seen();
        let now = verdict(&standing.seen, standing.probed.as_ref(), arrived);
        let verified = now.interception == kiam_wire::report::Interception::Verified;
        self.metrics.verified.set(i64::from(verified));
        verdicts.send_if_modified(|last| {
            let changed = *last != now;
            if changed {
                tracing::info!(ready = now.ready, reason = now.reason, "interception");
                *last = now;
            }
            changed
        });
    }
}

/// What the last looks showed.
#[derive(Debug)]
struct Standing {
    seen: Seen,
    probed: Option<Outcome>,
    /// A later agent's rules are in place.
    gave_way: bool,
}

impl Standing {
    fn needs_repair(&self) -> bool {
        matches!(
            self.seen,
            Seen::Read(Placement::Absent | Placement::Altered(_))
        )
    }
}

/// Why to look up.
enum Told {
    /// Somebody touched a table that holds rules of ours.
    Touched,
    Soon,
    Slowly,
    /// There will be no more notifications on this socket.
    Deaf(io::Error),
}

/// They outlive each wait: a timer that began anew with every other event might never end.
struct Clocks {
    soon: Interval,
    slow: Interval,
}

impl Clocks {
    fn new() -> Self {
        let every = |period| {
            let mut interval = interval_at(Instant::now() + period, period);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        };
        Self {
            soon: every(SOON),
            slow: every(SLOW_CHECK),
        }
    }
}
