//! The server of a case: its owner and its fetchers, without watches and without a socket.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use kiam_server::app::{Heard, Inputs, Owner, OwnerMetrics, Parts};
use kiam_server::arn::BaseArn;
use kiam_server::clock::Clock;
use kiam_server::drain::{self, Drain};
use kiam_server::events::Notes;
use kiam_server::ledger::Pace;
use kiam_server::metrics::Metrics;
use kiam_server::nodes::Kind;
use kiam_server::policy::{Matching, Policy, Rules};
use kiam_server::push::{AgentWord, Nodes};
use kiam_server::readiness::Readiness;
use kiam_server::sts::fetchers::{Answer as StsAnswer, Command, Fetchers};
use kiam_server::sts::schedule::Limits;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::sts::{CALLS_PER_S, FETCHERS, Sts};

/// What every role's ARN begins with.
pub(crate) const BASE: &str = "arn:aws:iam::123456789012:role/";
/// As STS gives them here.
pub(crate) const SESSION: Duration = Duration::from_mins(15);

/// A running server; dropping it ends it as a crash would.
pub(crate) struct Server {
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) epoch: u64,
    pub(crate) cluster: mpsc::Sender<Heard>,
    pub(crate) words: mpsc::Sender<AgentWord>,
    tasks: Vec<JoinHandle<()>>,
    _drain: Drain,
    _keys: watch::Sender<Option<Arc<kiam_wire::keys::VerificationKeys>>>,
    _questions: mpsc::Sender<kiam_server::app::Question>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

pub(crate) fn start(epoch: u64, clock: Clock, sts: &Arc<Sts>) -> Server {
    // Jitter is drawn from here; the same case is then the same twice.
    fastrand::seed(epoch);
    let metrics = Metrics::new();
    let nodes = Arc::new(Nodes::new(epoch));
    let (cluster, cluster_in) = mpsc::channel(4_096);
    let (words, words_in) = mpsc::channel(64);
    let (questions, questions_in) = mpsc::channel(1);
    let (answers, answers_in) = mpsc::channel::<StsAnswer>(64);
    let (orders, orders_in) = mpsc::channel::<Command>(64);
    let (keys, keys_in) = watch::channel(None);
    let (drain, draining) = drain::channel();
    let owner = Owner::new(Parts {
        policy: Policy {
            base: BaseArn::parse(BASE).unwrap(),
            session_name: "kiam".into(),
            session_duration: SESSION,
            service_account_roles: false,
            session_tags: None,
            source_identity: None,
        },
        rules: Rules::new(Matching::Whole),
        pace: Pace::default(),
        kinds: vec![Kind::Pods, Kind::Namespaces],
        nodes: Arc::clone(&nodes),
        orders: Some(orders),
        notes: Notes::unread(metrics.writes.clone()),
        synced: watch::channel(false).0,
        not_yet: Readiness::default().wait_for("test"),
        turned: watch::channel(()).0,
        clock,
        metrics: OwnerMetrics {
            watch: metrics.watch.clone(),
            decisions: metrics.decisions.clone(),
            sts: metrics.sts.clone(),
        },
    });
    let inputs = Inputs {
        cluster: cluster_in,
        answers: answers_in,
        words: words_in,
        questions: questions_in,
        keys: keys_in,
    };
    let limits = Limits {
        fetchers: NonZeroUsize::new(FETCHERS).unwrap(),
        calls_per_s_max: CALLS_PER_S,
    };
    let fetchers = Fetchers::new(
        Arc::clone(sts),
        limits,
        clock,
        metrics.fetchers.clone(),
        answers,
    );
    let tasks = vec![
        tokio::spawn(owner.run(inputs, draining)),
        tokio::spawn(fetchers.run(orders_in)),
    ];
    Server {
        nodes,
        epoch,
        cluster,
        words,
        tasks,
        _drain: drain,
        _keys: keys,
        _questions: questions,
    }
}
