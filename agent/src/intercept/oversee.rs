//! Keeps the rules in place for as long as the agent runs, and keeps saying how things stand.
//!
//! It waits for the kernel to say that somebody touched them; it does not poll, with one exception:
//! iptables-legacy tells nobody, so with iptables a slow check runs beside the notifications.
//!
//! Without `NET_ADMIN` it can neither read rules nor put them back, and the kernel tells it of routing
//! rules only. It then sends a connection of its own through the rules every few seconds
//! ([`telltale`]), and says so when that no longer comes back.
//!
//! Two agents side by side in an upgrade must not fight over different rules. Each installation
//! carries the time it was made; whoever finds a later one than its own gives way, for as long as pods
//! get an answer through the later rules.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::UnixSeconds;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use super::probe::{Outcome, from_namespace, telltale, telltales};
use super::record::Record;
use super::rules::Rules;
use super::verdict::{Probed, Seen, Verdict, verdict};
use super::watch::Watch;
use super::witness::Witness;
use super::{Backend, InterceptError, Placement, install, nft, status, wall};

/// A removal is answered at once, a war of removals at this rate.
const PAUSE: Duration = Duration::from_millis(100);
/// Between looks at tables that others change too: kube-proxy writes its rules into the same one all day,
/// and a look runs a tool several times.
const LOOKS_APART: Duration = Duration::from_secs(1);
/// How often to look where nobody tells.
const SLOW_CHECK: Duration = Duration::from_secs(30);
/// Between telltales.
const FEEL: Duration = Duration::from_secs(5);
/// A telltale is lost when so many in a row are, with a pause between them.
const TELLTALES: u32 = 3;
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
        let mut watch = Watch::open(self.backend);
        let mut sight = Sight::default();
        let seen = self.settle(&mut sight).await;
        let mut standing = Standing {
            probed: self.probe(&sight).await,
            sight,
            seen,
        };
        let mut clocks = Clocks::new();
        let mut pace = Pace::default();
        loop {
            self.publish(&standing, &verdicts);
            match self.told(&mut watch, &mut clocks, &standing).await {
                Told::Touched => {
                    if self.backend == Backend::Iptables {
                        sleep_until(pace.next(Instant::now())).await;
                        watch.forget();
                    }
                    self.look_again(&mut standing).await;
                }
                Told::Soon if standing.needs_repair() => self.look_again(&mut standing).await,
                Told::Soon => {}
                Told::Slowly => {
                    let deaf = !watch.hears_tables();
                    self.check_slowly(&mut standing, deaf).await;
                }
                Told::Deaf(error) => {
                    tracing::warn!(%error, "notifications of rule changes ended, starting again");
                    tokio::time::sleep(RETRY).await;
                    watch = Watch::open(self.backend);
                    self.look_again(&mut standing).await;
                }
            }
        }
    }

    async fn told(&self, watch: &mut Watch, clocks: &mut Clocks, standing: &Standing) -> Told {
        let soon = self.witness.wants() || standing.needs_repair();
        tokio::select! {
            told = watch.changed() => told.map_or_else(Told::Deaf, |()| Told::Touched),
            _ = clocks.soon.tick(), if soon => Told::Soon,
            _ = clocks.feel.tick(), if standing.sight.blind.is_some() => Told::Touched,
            _ = clocks.slow.tick() => Told::Slowly,
        }
    }

    /// What nobody tells: legacy iptables has no notifications, and a probe that went badly may go
    /// well once something else was repaired.
    async fn check_slowly(&self, standing: &mut Standing, deaf: bool) {
        if standing.sight.blind.is_none() && (deaf || self.backend == Backend::Iptables) {
            self.look_again(standing).await;
        }
        if standing.seen == Seen::GaveWay {
            return self.take_back(standing).await;
        }
        let badly = standing
            .probed
            .is_some_and(|probed| !probed.by_installer && probed.outcome != Outcome::Agent);
        if badly && standing.seen == Seen::Read(Placement::InPlace) {
            standing.probed = self.probe(&standing.sight).await;
        }
    }

    /// An agent that failed soon after it started leaves rules behind that lead nowhere.
    async fn take_back(&self, standing: &mut Standing) {
        for _ in 0..TELLTALES {
            let outcomes: Vec<Outcome> = match from_namespace(&self.rules).await {
                Ok(outcomes) => outcomes.into_iter().map(|(_, outcome)| outcome).collect(),
                // What it lacks for that is a privilege that it is usually not given.
                Err(error) => {
                    tracing::debug!(%error, "asking without a namespace");
                    self.telltales().await
                }
            };
            let is_nobody = outcomes.iter().all(|outcome| *outcome == Outcome::Refused);
            if outcomes.is_empty() || !is_nobody {
                // Somebody answers, or nobody can tell.
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
        tracing::error!("nobody answers where a later agent's rules lead, restoring this agent's");
        // With this agent's age: the later one, should it come back, has the last word again.
        let installed = install(self.backend, &self.rules, self.started_at).await;
        if let Err(error) = installed {
            self.failed(&error);
            return;
        }
        standing.seen = self.look(&mut standing.sight).await;
        standing.probed = self.probe(&standing.sight).await;
        self.metrics.restored.inc();
    }

    async fn look_again(&self, standing: &mut Standing) {
        if standing.seen == Seen::GaveWay {
            return;
        }
        let now = self.look(&mut standing.sight).await;
        let before = std::mem::replace(&mut standing.seen, now);
        if standing.seen != before {
            say_if_lost(&standing.seen);
        }
        let Seen::Read(Placement::Absent | Placement::Altered(_)) = &standing.seen else {
            return;
        };
        if self.is_superseded().await {
            tracing::warn!("a later agent put other rules in place; they are its to keep");
            standing.seen = Seen::GaveWay;
            return;
        }
        tracing::error!(found = ?standing.seen, "the interception rules were touched, restoring");
        standing.seen = self.settle(&mut standing.sight).await;
        if standing.seen == Seen::Read(Placement::InPlace) {
            self.metrics.restored.inc();
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Installs what is not in place, and looks at the result.
    async fn settle(&self, sight: &mut Sight) -> Seen {
        let seen = self.look(sight).await;
        let Seen::Read(Placement::Absent | Placement::Altered(_)) = &seen else {
            return seen;
        };
        if let Err(error) = install(self.backend, &self.rules, self.started_at).await {
            self.failed(&error);
            return seen;
        }
        self.look(sight).await
    }

    async fn look(&self, sight: &mut Sight) -> Seen {
        if sight.blind.is_none() {
            match status(self.backend, &self.rules).await {
                Ok(placement) => return Seen::Read(placement),
                // Privileges do not come back.
                Err(error) if error.is_not_permitted() => sight.blind = Some(error.to_string()),
                Err(error) => {
                    self.failed(&error);
                    return Seen::Unreadable(error.to_string());
                }
            }
        }
        self.feel(sight).await
    }

    /// What can be known of the rules without reading them.
    async fn feel(&self, sight: &mut Sight) -> Seen {
        match wall::stands().await {
            Ok(true) => sight.wall_stood = true,
            Ok(false) if sight.wall_stood => {
                return Seen::Lost("the routing rules behind the rules were removed".to_owned());
            }
            // Where the installer could not build it, it is not missed.
            Ok(false) | Err(_) => {}
        }
        match self.telltale().await {
            Some(Outcome::Agent) => Seen::Felt,
            Some(Outcome::Leak | Outcome::Refused | Outcome::Silent | Outcome::Stranger) => {
                let how = "a connection of the agent's own does not come back to it through the \
                           rules: they are not in place, or lead elsewhere";
                Seen::Lost(how.to_owned())
            }
            None if self.vouched.is_some() => Seen::Vouched,
            None => Seen::Unreadable(sight.blind.clone().unwrap_or_default()),
        }
    }

    /// A single one may fail for other reasons, on a node that is short of something.
    async fn telltale(&self) -> Option<Outcome> {
        let mut outcome = None;
        for _ in 0..TELLTALES {
            let (rules, witness) = (self.rules.clone(), Arc::clone(&self.witness));
            // An error means that the agent is ending.
            outcome = tokio::task::spawn_blocking(move || telltale(&rules, &witness))
                .await
                .ok()?;
            if outcome.is_none_or(|outcome| outcome == Outcome::Agent) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        outcome
    }

    /// One for each family, where any can be tried.
    async fn telltales(&self) -> Vec<Outcome> {
        let (rules, witness) = (self.rules.clone(), Arc::clone(&self.witness));
        let felt = tokio::task::spawn_blocking(move || telltales(&rules, &witness)).await;
        // An error means that the agent is ending.
        felt.unwrap_or_default()
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

    async fn probe(&self, sight: &Sight) -> Option<Probed> {
        if sight.blind.is_some() {
            return self.probed_before();
        }
        match from_namespace(&self.rules).await {
            // The worse outcome counts.
            Ok(outcomes) => {
                for (metadata, outcome) in &outcomes {
                    tracing::info!(%metadata, outcome = outcome.sentence(), "probed");
                }
                let mut outcomes = outcomes.into_iter().map(|(_, outcome)| outcome);
                Some(Probed {
                    outcome: outcomes
                        .find(|outcome| *outcome != Outcome::Agent)
                        .unwrap_or(Outcome::Agent),
                    by_installer: false,
                })
            }
            Err(error) => {
                tracing::info!(%error, "no probe by this agent; what an installer left counts, and pods' requests");
                self.probed_before()
            }
        }
    }

    fn probed_before(&self) -> Option<Probed> {
        let outcome = self.vouched.as_ref().and_then(Record::probed)?;
        Some(Probed {
            outcome,
            by_installer: true,
        })
    }

    fn publish(&self, standing: &Standing, verdicts: &watch::Sender<Verdict>) {
        let arrived = self.witness.has_seen();
        let now = verdict(&standing.seen, standing.probed, arrived);
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

/// What this agent may see.
#[derive(Debug, Default)]
struct Sight {
    /// Why it may not read rules, if so.
    blind: Option<String>,
    /// The routing rules were once there.
    wall_stood: bool,
}

/// What the last looks showed.
#[derive(Debug)]
struct Standing {
    sight: Sight,
    seen: Seen,
    probed: Option<Probed>,
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

/// When to look next: at once after a while of quiet, and never so soon that looking is all that is done.
#[derive(Debug, Default)]
struct Pace(Option<Instant>);

impl Pace {
    /// Since the last look something has changed, so the look is only put off, never left out.
    fn next(&mut self, now: Instant) -> Instant {
        let next = self.0.map_or(now, |last| now.max(last + LOOKS_APART));
        self.0 = Some(next);
        next
    }
}

/// They outlive each wait: a timer that began anew with every other event might never end.
struct Clocks {
    soon: Interval,
    slow: Interval,
    feel: Interval,
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
            feel: every(FEEL),
        }
    }
}

/// Says what restores the rules, when this agent cannot.
fn say_if_lost(seen: &Seen) {
    if let Seen::Lost(how) = seen {
        tracing::error!(
            how,
            "the interception rules are gone, and this agent may not put them back: run the \
             agent's pod anew, or `kiam-agent intercept install` on this node"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_put_off_and_never_left_out() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let mut next = |after_ms: u64| {
            let now = start + Duration::from_millis(after_ms);
            (pace.next(now) - start).as_millis()
        };
        assert_eq!(next(0), 0);
        assert_eq!(next(10), 1_000);
        assert_eq!(next(1_001), 2_000);
        assert_eq!(next(5_000), 5_000);
    }
}
