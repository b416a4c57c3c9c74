//! Puts the rooms together.
//!
//! [`build`] reads what must be read and binds what must be bound, so that a mistake is found before
//! anything runs and a test knows where to connect; [`Bound::run`] serves until it is told to stop.

mod door;
mod fetching;
mod listening;
mod owner;
mod probe;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kiam_wire::process::numbers::Numbers;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

#[cfg(test)]
pub(crate) use owner::testing;
pub use owner::{Heard, Inputs, Legacy, Owner, OwnerMetrics, Parts, Question};
pub use probe::{health, why};

use crate::admin::{self, Admin};
use crate::arn::BaseArn;
use crate::clock::Clock;
use crate::config::{Base, Config};
use crate::drain::{self, Drain, Draining};
use crate::freshness::Freshness;
use crate::metrics::Metrics;
use crate::pods::{self, Connection, Following, KubeApi};
use crate::policy::{Policy, Rules};
use crate::push::Nodes;
use crate::readiness::{NotYet, Readiness};
use crate::sts::fetchers::{Answer, Command};
use crate::taint::ReadyNodes;
use crate::{events, keys, taint};
use door::Door;
use listening::listen_on;

/// Watch events that may wait for the owner. Full, it slows the watches down.
const EVENTS: usize = 4_096;
/// Orders and answers on their way between the owner and the fetchers.
const CALLS: usize = 256;
/// Words of agents and questions that may wait for the owner.
const WORDS: usize = 1_024;
/// How long agents have to leave once the server stops.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Everything bound and read; nothing running that matters yet.
#[derive(Debug)]
pub struct Bound {
    grpc: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    drain: Drain,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// Where things come together: channels and what everyone is handed.
struct Wiring {
    clock: Clock,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    freshness: Freshness,
    nodes: Arc<Nodes>,
    api: KubeApi,
    questions: mpsc::Sender<Question>,
    draining: Draining,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Wiring {
    fn new(api: KubeApi, questions: mpsc::Sender<Question>, draining: Draining) -> Self {
        let clock = Clock::system();
        let mut metrics = Metrics::new();
        let process = Numbers::new(clock.now().wall);
        metrics.registry.register_collector(Box::new(process));
        Self {
            clock,
            metrics: Arc::new(metrics),
            readiness: Readiness::default(),
            freshness: Freshness::default(),
            nodes: Arc::new(Nodes::new(fastrand::u64(..))),
            api,
            questions,
            draining,
            tasks: JoinSet::new(),
        }
    }

    /// The same, for what is only put together later; its tasks are its own.
    fn for_later(&self) -> Self {
        Self {
            clock: self.clock,
            metrics: Arc::clone(&self.metrics),
            readiness: self.readiness.clone(),
            freshness: self.freshness.clone(),
            nodes: Arc::clone(&self.nodes),
            api: self.api.clone(),
            questions: self.questions.clone(),
            draining: self.draining.clone(),
            tasks: JoinSet::new(),
        }
    }

    /// Completes with the first error of a task, or when all have ended.
    async fn ended(mut self) -> anyhow::Result<()> {
        let mut tasks = std::mem::take(&mut self.tasks);
        // What is left of it would keep others from noticing that this is over.
        drop(self);
        while let Some(ended) = tasks.join_next().await {
            ended.context("a part panicked")??;
        }
        Ok(())
    }

    /// Has the program end, with an error, should this task end before it is told to.
    fn keep(&mut self, what: &'static str, task: tokio::task::JoinHandle<()>) {
        let draining = self.draining.clone();
        self.tasks.spawn(async move {
            let ended = task.await;
            anyhow::ensure!(
                draining.has_started(),
                "{what} ended unexpectedly: {ended:?}"
            );
            Ok(())
        });
    }
}

/// Reads, connects and binds.
pub async fn build(config: Config) -> anyhow::Result<Bound> {
    let connection = Connection::new(config.kubernetes.clone());
    connection.check().await?;
    let (questions, questions_in) = mpsc::channel(WORDS);
    let (drain, draining) = drain::channel();
    let api = KubeApi::new(connection.clone());
    let mut wiring = Wiring::new(api, questions, draining);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let (synced, synced_out) = watch::channel(false);
    let (turned, turned_out) = watch::channel(());
    let (words, words_in) = mpsc::channel(WORDS);
    let not_yet = wiring.readiness.wait_for("kubernetes caches");
    let listener = listen(&config).await?;
    let grpc = address(listener.as_ref())?;
    let admin = admin(&config, &mut wiring).await?;
    if let (Some(listener), Some(files)) = (listener, config.tls.clone()) {
        let ready = startup_taint(&config, &mut wiring);
        let door = Door {
            listener,
            files,
            words,
            ready,
            synced: synced_out,
            turned: turned_out,
        };
        door.open(&config, &mut wiring)?;
    }
    let ownership = Ownership {
        connection,
        questions: questions_in,
        words: words_in,
        synced,
        turned,
        not_yet,
    };
    match config.base.clone() {
        Base::Given(base) => own(config, base, ownership, &mut wiring).await?,
        Base::Autodetect => own_later(config, ownership, &mut wiring),
    }
    Ok(Bound {
        grpc,
        admin,
        drain,
        tasks: wiring.tasks,
    })
}

/// A dry run serves nobody, so it binds nothing.
async fn listen(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    if config.dry_run {
        return Ok(None);
    }
    let listener = listen_on(&config.bind).await;
    listener
        .map(Some)
        .with_context(|| format!("--bind {}", config.bind))
}

fn address(listener: Option<&TcpListener>) -> std::io::Result<Option<SocketAddr>> {
    listener.map(TcpListener::local_addr).transpose()
}

async fn admin(config: &Config, wiring: &mut Wiring) -> anyhow::Result<Option<SocketAddr>> {
    let Some(address) = &config.admin else {
        return Ok(None);
    };
    let listener = listen_on(address).await;
    let listener = listener.with_context(|| format!("--admin-listen-addr {address}"))?;
    let bound = listener.local_addr()?;
    let admin = Admin {
        metrics: Arc::clone(&wiring.metrics),
        readiness: wiring.readiness.clone(),
        questions: wiring.questions.clone(),
        draining: wiring.draining.clone(),
        clock: wiring.clock,
        config: config.shown.as_str().into(),
    };
    wiring.tasks.spawn(async move {
        let served = admin::serve(listener, admin).await;
        served.context("the admin port")
    });
    Ok(Some(bound))
}

fn startup_taint(config: &Config, wiring: &mut Wiring) -> ReadyNodes {
    let Some(key) = config.startup_taint.clone() else {
        return ReadyNodes::unwanted();
    };
    let (ready, task) = taint::start(
        key,
        wiring.api.clone(),
        Arc::clone(&wiring.nodes),
        wiring.metrics.writes.clone(),
        wiring.draining.clone(),
    );
    wiring.keep("removing start-up taints", task);
    ready
}

type TokenKeys = watch::Receiver<Option<Arc<kiam_wire::keys::VerificationKeys>>>;

struct Ownership {
    connection: Connection,
    questions: mpsc::Receiver<Question>,
    words: mpsc::Receiver<crate::push::AgentWord>,
    synced: watch::Sender<bool>,
    turned: watch::Sender<()>,
    not_yet: NotYet,
}

/// Starts the owner once the base ARN is known. Until then this server is not ready: whoever could
/// tell may be away for a moment, and ending would only have it come back later.
fn own_later(config: Config, ownership: Ownership, wiring: &mut Wiring) {
    let not_yet = wiring.readiness.wait_for("role base ARN");
    let mut later = wiring.for_later();
    wiring.tasks.spawn(async move {
        let mut draining = later.draining.clone();
        let base = tokio::select! {
            () = draining.started() => return Ok(()),
            base = fetching::detected(&config, later.clock) => base?,
        };
        drop(draining);
        own(config, base, ownership, &mut later).await?;
        drop(not_yet);
        later.ended().await
    });
}

/// Starts the owner, and everything that feeds it.
async fn own(
    config: Config,
    base: BaseArn,
    ownership: Ownership,
    wiring: &mut Wiring,
) -> anyhow::Result<()> {
    let issuer = fetching::way(&config, &base, wiring.clock).await?;
    info!(base = base.as_str(), "role base ARN");
    let (answers_out, answers) = mpsc::channel::<Answer>(CALLS);
    let orders = issuer.map(|issuer| {
        let (orders, orders_in) = mpsc::channel::<Command>(CALLS);
        let metrics = wiring.metrics.fetchers.clone();
        let ends = (orders_in, answers_out);
        let task = fetching::start(issuer, config.limits, wiring.clock, metrics, ends);
        wiring.keep("fetching", task);
        orders
    });
    let (notes, token_keys) = chores(config.dry_run, wiring);
    let (heard, cluster) = mpsc::channel::<Heard>(EVENTS);
    let following = Following {
        connection: ownership.connection,
        kinds: config.kinds.clone(),
        events: heard,
        clock: wiring.clock,
        freshness: wiring.freshness.clone(),
        metrics: wiring.metrics.watch.clone(),
    };
    let owner = Owner::new(Parts {
        policy: Policy {
            base,
            session_name: config.session_name,
            session_duration: config.session_duration,
            service_account_roles: config.service_account_roles,
            session_tags: config.session_tags,
            source_identity: config.source_identity,
        },
        rules: Rules::new(config.matching),
        pace: crate::ledger::Pace::default(),
        kinds: config.kinds,
        nodes: Arc::clone(&wiring.nodes),
        orders,
        notes,
        synced: ownership.synced,
        not_yet: ownership.not_yet,
        turned: ownership.turned,
        clock: wiring.clock,
        metrics: OwnerMetrics {
            watch: wiring.metrics.watch.clone(),
            decisions: wiring.metrics.decisions.clone(),
            sts: wiring.metrics.sts.clone(),
        },
    });
    let inputs = Inputs {
        cluster,
        answers,
        words: ownership.words,
        questions: ownership.questions,
        keys: token_keys,
    };
    let draining = wiring.draining.clone();
    let watches = pods::follow(&following);
    drop(following);
    let task = tokio::spawn(while_watched(owner.run(inputs, draining), watches));
    wiring.keep("the owner or a watch", task);
    Ok(())
}

/// The watches end with their owner, and the owner with the first of them: without it, it would go on to say
/// what was, and look well.
async fn while_watched(owner: impl Future<Output = ()>, mut watches: JoinSet<()>) {
    tokio::select! {
        () = owner => {}
        ended = watches.join_next() => error!(?ended, "a watch has ended"),
    }
}

/// What the owner's decisions are told to besides agents, and the token keys it hands to them.
fn chores(dry_run: bool, wiring: &mut Wiring) -> (events::Notes, TokenKeys) {
    if dry_run {
        let (_sender, none) = watch::channel(None);
        return (events::Notes::unread(wiring.metrics.writes.clone()), none);
    }
    let (notes, task) = events::start(
        wiring.api.clone(),
        wiring.metrics.writes.clone(),
        wiring.clock,
        wiring.draining.clone(),
    );
    wiring.keep("writing events", task);
    let (token_keys, task) = keys::start(wiring.api.clone(), wiring.draining.clone());
    wiring.keep("reading token keys", task);
    (notes, token_keys)
}

impl Bound {
    /// Where agents connect; `None` in a dry run.
    pub const fn grpc(&self) -> Option<SocketAddr> {
        self.grpc
    }

    /// Where operators connect.
    pub const fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Serves until `stop` completes, then lets agents go. An error means that it could not go on.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let shown = |address: Option<SocketAddr>| address.map(tracing::field::display);
        info!(
            grpc = shown(self.grpc),
            admin = shown(self.admin),
            "listening"
        );
        let failure = tokio::select! {
            () = stop => None,
            Some(ended) = self.tasks.join_next() => Some(match ended {
                Ok(Ok(())) => anyhow::anyhow!("a part ended unexpectedly"),
                Ok(Err(error)) => error,
                Err(panicked) => anyhow::anyhow!("a part panicked: {panicked}"),
            }),
        };
        self.leave().await;
        info!("stopped");
        failure.map_or(Ok(()), Err)
    }

    async fn leave(self) {
        info!("stopping");
        let Self {
            drain, mut tasks, ..
        } = self;
        let drained = async {
            drain.drain().await;
            while tasks.join_next().await.is_some() {}
        };
        if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
            warn!("not everything ended in time; leaving anyway");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_that_ends_takes_the_server_with_it() {
        let (drain, draining) = drain::channel();
        let (questions, _asked) = mpsc::channel(1);
        let source = pods::Source::Kubeconfig("/nowhere".into());
        let api = KubeApi::new(Connection::new(source));
        let mut wiring = Wiring::new(api, questions, draining);
        let mut watches = JoinSet::new();
        watches.spawn(std::future::pending());
        watches.spawn(async { panic!("a fault in a watch") });
        let task = tokio::spawn(while_watched(std::future::pending(), watches));
        wiring.keep("the owner or a watch", task);
        let ended = tokio::time::timeout(Duration::from_secs(20), wiring.tasks.join_next());
        let error = ended.await.unwrap().unwrap().unwrap().unwrap_err();
        assert!(error.to_string().contains("a watch"), "{error}");
        drop(drain);
    }
}
