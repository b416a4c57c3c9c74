//! The one task that owns what is known: it takes in what the cluster, STS and the agents say, has
//! it decided, and changes the nodes' tables.
//!
//! One owner means no locks around the cluster, the ledger or the decisions, and one order in which
//! things happen. It never waits for anyone but its own inputs: calls to STS go into a queue of its
//! own that is emptied as the fetchers take them. What arrives together is taken in together, and
//! each node is told once; nothing is ever held back to make a batch larger.

mod answers;
mod decided;
mod telling;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::keys::VerificationKeys;
use kiam_wire::{CredentialId, Credentials, PodUid, UnixSeconds};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

pub use answers::{Legacy, Question};

use crate::annotations::ImdsV2;
use crate::clock::{Clock, Moment, Now};
use crate::drain::Draining;
use crate::events::{Note, Notes, Reason};
use crate::ledger::{Effect, Event, Ledger, Pace};
use crate::metrics::{DecisionMetrics, StsMetrics, WatchMetrics};
use crate::nodes::{Cluster, ClusterEvent, Kind, Touched};
use crate::policy::{Policy, Rules};
use crate::push::{AgentWord, Nodes};
use crate::readiness::NotYet;
use crate::sts::fetchers::{Answer, Command, Order};
use crate::why::LastAnswer;
use decided::Decided;
use telling::Changes;

/// Inputs taken in before the nodes are told.
const BATCH_MAX: usize = 512;
/// How often things nobody refers to any more are swept up and slow gauges are set.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// Pods of one credential id that are told of an error by an event of their own.
const NOTED_PODS_MAX: usize = 20;

/// A watch event and when it arrived.
pub type Heard = (Moment, ClusterEvent);

/// What the owner listens to.
#[derive(Debug)]
pub struct Inputs {
    /// From the watches.
    pub cluster: mpsc::Receiver<Heard>,
    /// From the fetchers.
    pub answers: mpsc::Receiver<Answer>,
    /// From the streams.
    pub words: mpsc::Receiver<AgentWord>,
    /// From the admin port, the gate and the legacy service.
    pub questions: mpsc::Receiver<Question>,
    /// From the token keys' reader.
    pub keys: watch::Receiver<Option<Arc<VerificationKeys>>>,
}

/// What the owner is made of.
#[derive(Debug)]
pub struct Parts {
    /// What may be had.
    pub policy: Policy,
    /// Compiled namespace rules.
    pub rules: Rules,
    /// How the ledger paces itself.
    pub pace: Pace,
    /// The kinds that are watched.
    pub kinds: Vec<Kind>,
    /// The nodes' tables.
    pub nodes: Arc<Nodes>,
    /// To the fetchers; `None` in a dry run.
    pub orders: Option<mpsc::Sender<Command>>,
    /// Notes for developers.
    pub notes: Notes,
    /// Told once the cluster is known.
    pub synced: watch::Sender<bool>,
    /// Dropped once the cluster is known.
    pub not_yet: NotYet,
    /// Told after every batch that changed something, for those who wait for that.
    pub turned: watch::Sender<()>,
    /// The time.
    pub clock: Clock,
    /// What happened.
    pub metrics: OwnerMetrics,
}

/// What the owner counts.
#[derive(Debug, Clone)]
pub struct OwnerMetrics {
    /// What the watches said.
    pub watch: WatchMetrics,
    /// What was decided.
    pub decisions: DecisionMetrics,
    /// What is held.
    pub sts: StsMetrics,
}

/// The owner.
#[derive(Debug)]
pub struct Owner {
    policy: Policy,
    rules: Rules,
    cluster: Cluster,
    ledger: Ledger,
    nodes: Arc<Nodes>,
    /// What was decided about each pod that is on a node and has been decided at all.
    decided: HashMap<PodUid, Decided>,
    /// What is being served, by id. The ledger is the truth; this is for metrics and `why`.
    sessions: HashMap<CredentialId, Arc<Credentials>>,
    last_answers: HashMap<CredentialId, LastAnswer>,
    /// Orders that the fetchers have not taken yet.
    outbox: VecDeque<Command>,
    /// How many answers of the fetchers were taken.
    answers_taken: u64,
    orders: Option<mpsc::Sender<Command>>,
    /// What nodes are to be told at the end of this batch.
    untold: HashMap<Arc<str>, Changes>,
    effects: Vec<Effect>,
    notes: Notes,
    synced: watch::Sender<bool>,
    not_yet: Option<NotYet>,
    turned: watch::Sender<()>,
    clock: Clock,
    metrics: OwnerMetrics,
    swept_at: Moment,
    /// Something that an answer may depend on has changed in this turn.
    changed: bool,
    /// Those who wait until what their agents hold has been taken into account.
    heard: Vec<oneshot::Sender<()>>,
}

impl Owner {
    /// An owner that knows nothing yet.
    pub fn new(parts: Parts) -> Self {
        let now = parts.clock.now();
        Self {
            policy: parts.policy,
            rules: parts.rules,
            cluster: Cluster::new(&parts.kinds),
            ledger: Ledger::new(parts.pace, fastrand::u64(..), now),
            nodes: parts.nodes,
            decided: HashMap::new(),
            sessions: HashMap::new(),
            last_answers: HashMap::new(),
            outbox: VecDeque::new(),
            answers_taken: 0,
            orders: parts.orders,
            untold: HashMap::new(),
            effects: Vec::new(),
            notes: parts.notes,
            synced: parts.synced,
            not_yet: Some(parts.not_yet),
            turned: parts.turned,
            clock: parts.clock,
            metrics: parts.metrics,
            swept_at: now.monotonic,
            changed: false,
            heard: Vec::new(),
        }
    }

    /// Owns until the drain begins.
    pub async fn run(mut self, mut inputs: Inputs, mut draining: Draining) {
        let orders = self.orders.clone();
        loop {
            let wake = self.wakes_at();
            let mut touched = Touched::default();
            tokio::select! {
                () = draining.started() => return,
                heard = inputs.cluster.recv() => match heard {
                    Some(heard) => self.hear(heard, &mut touched),
                    None => return,
                },
                Some(answer) = inputs.answers.recv() => self.answered(answer),
                Some(word) = inputs.words.recv() => self.word(word),
                Some(question) = inputs.questions.recv() => self.answer(question),
                Ok(()) = inputs.keys.changed() => self.new_keys(&mut inputs.keys),
                permit = reserve(orders.as_ref()), if !self.outbox.is_empty() => {
                    let Some(permit) = permit else { return };
                    if let Some(command) = self.outbox.pop_front() {
                        permit.send(command);
                    }
                }
                () = tokio::time::sleep_until(self.clock.instant(wake)) => {}
            }
            self.take_what_is_there(&mut inputs, &mut touched);
            self.settle(touched);
        }
    }

    /// Takes in what has arrived meanwhile, without waiting for more.
    fn take_what_is_there(&mut self, inputs: &mut Inputs, touched: &mut Touched) {
        for _ in 0..BATCH_MAX {
            if let Ok(heard) = inputs.cluster.try_recv() {
                self.hear(heard, touched);
            } else if let Ok(answer) = inputs.answers.try_recv() {
                self.answered(answer);
            } else {
                return;
            }
        }
    }

    fn hear(&mut self, (at, event): Heard, touched: &mut Touched) {
        let now = self.clock.now().monotonic;
        self.metrics.watch.lag(now.since(at));
        self.report_imds_v2(&event);
        self.cluster.on(event, touched);
    }

    /// Draws the conclusions of a batch and tells whom they concern.
    fn settle(&mut self, mut touched: Touched) {
        let now = self.clock.now();
        self.changed |= touched.synced || !touched.pods.is_empty() || !touched.gone.is_empty();
        for uid in std::mem::take(&mut touched.gone) {
            if self.cluster.get(&uid).is_none() {
                self.forget(&uid, now);
                self.nodes.agent_gone(&uid);
            }
        }
        if touched.synced {
            info!(pods = self.cluster.len(), "the cluster is known");
            touched.pods = self.cluster.pods().map(|pod| pod.uid.clone()).collect();
        }
        // A decision without all the facts could only be wrong.
        if self.cluster.synced() {
            for uid in &touched.pods {
                self.decide(uid, now);
            }
        }
        if now.monotonic >= self.ledger.wakes_at() {
            self.tell_ledger(Event::Tick, now);
        }
        self.apply_effects(now);
        self.tell_nodes(now);
        self.report_contests(&touched.contested);
        if touched.synced {
            self.sum_up();
            self.synced.send_replace(true);
            self.not_yet = None;
        }
        if now.monotonic.since(self.swept_at) >= SWEEP_EVERY {
            self.sweep(now);
        }
        // Only now do the tables say it.
        self.heard.clear();
        // Answering a question changes nothing: whoever waits would ask again, and again.
        if std::mem::take(&mut self.changed) {
            self.turned.send_replace(());
        }
    }

    /// Says when a namespace's word about `IMDSv2` had to be guessed, once for each change.
    fn report_imds_v2(&self, event: &ClusterEvent) {
        let ClusterEvent::Namespace { name, annotations } = event else {
            return;
        };
        if let Some(value) = ImdsV2::of(annotations).odd()
            && self.cluster.namespace(name) != Some(annotations)
        {
            warn!(
                namespace = &**name,
                value,
                "the annotation iam.amazonaws.com/imds-v2 is neither required nor optional; it is \
                 taken for required"
            );
        }
    }

    /// Says which addresses have come to be shown by several pods, once for each contest.
    fn report_contests(&self, contested: &[IpAddr]) {
        self.metrics.watch.contested(self.cluster.contested());
        for ip in contested
            .iter()
            .filter(|ip| self.cluster.is_contested(**ip))
        {
            let pods: Vec<String> = self
                .cluster
                .claimants(*ip)
                .take(NOTED_PODS_MAX)
                .map(|pod| format!("{}/{}", pod.namespace, pod.name))
                .collect();
            warn!(
                %ip,
                pods = pods.join(", "),
                "several running pods of one node show one address; none of them is served by it \
                 until the others let go"
            );
        }
    }

    fn wakes_at(&self) -> Moment {
        let sweep = self.swept_at.after(SWEEP_EVERY);
        sweep.min(self.ledger.wakes_at())
    }

    fn tell_ledger(&mut self, event: Event, now: Now) {
        self.ledger.on(event, now, &mut self.effects);
    }

    fn answered(&mut self, Answer { id, outcome }: Answer) {
        self.answers_taken += 1;
        let now = self.clock.now();
        let error = outcome.as_ref().err().map(ToString::to_string);
        let last = LastAnswer {
            at: now.wall,
            error: error.as_deref().map(Arc::from),
        };
        self.last_answers.insert(id, last);
        if let Some(error) = error {
            self.note_credential_error(&id, &error);
        }
        self.tell_ledger(Event::Answered { id, outcome }, now);
        self.changed = true;
        self.apply_effects(now);
    }

    /// Tells the developers of pods that have nothing; those that still have something, be it from
    /// before this server started, are not concerned yet.
    fn note_credential_error(&self, id: &CredentialId, error: &str) {
        if self.sessions.contains_key(id) {
            return;
        }
        let without = self
            .ledger
            .pods(id)
            .filter(|uid| !self.ledger.is_covered(uid));
        let pods = without.filter_map(|uid| self.cluster.get(uid));
        for pod in pods.take(NOTED_PODS_MAX) {
            self.notes.note(Note {
                namespace: pod.namespace.to_string(),
                pod_name: pod.name.to_string(),
                pod_uid: pod.uid.clone(),
                reason: Reason::CredentialError,
                message: format!("failed retrieving credentials: {error}"),
            });
        }
    }

    fn apply_effects(&mut self, now: Now) {
        while !self.effects.is_empty() {
            self.changed = true;
            for effect in std::mem::take(&mut self.effects) {
                self.apply(effect, now);
            }
        }
    }

    fn apply(&mut self, effect: Effect, now: Now) {
        let id = match effect {
            Effect::Hurry(id, urgency) => return self.order(Order::Hurry(id, urgency)),
            Effect::Fetch { request, urgency } => {
                return self.order(Order::Fetch(request, urgency));
            }
            Effect::Cancel(id) => return self.order(Order::Cancel(id)),
            Effect::Retell(pod) => return self.publish(&pod),
            Effect::Publish(credentials) => {
                let id = credentials.id();
                if let Some(old) = self.sessions.insert(id, credentials) {
                    self.metrics.sts.replaced(old.expires_at().since(now.wall));
                }
                id
            }
            Effect::Withdraw(id) => {
                self.sessions.remove(&id);
                self.withdraw(&id);
                id
            }
            // Nothing is in hand, and what agents still hold from before is not ours to take.
            Effect::Refuse(id, _refused) => id,
        };
        let pods: Vec<PodUid> = self.ledger.pods(&id).cloned().collect();
        for uid in pods {
            self.publish(&uid);
        }
    }

    /// In a dry run nobody takes orders.
    fn order(&mut self, order: Order) {
        if self.orders.is_some() {
            self.outbox.push_back(Command {
                order,
                answers_taken: self.answers_taken,
            });
        }
    }

    fn withdraw(&mut self, id: &CredentialId) {
        let nodes: HashSet<Arc<str>> = self
            .ledger
            .pods(id)
            .filter_map(|uid| self.decided.get(uid))
            .map(|decided| Arc::clone(decided.node()))
            .collect();
        for node in nodes {
            self.untold.entry(node).or_default().withdraw(*id);
        }
    }

    fn word(&mut self, word: AgentWord) {
        let now = self.clock.now();
        match word {
            AgentWord::Holds { node, held, heard } => {
                let ends: HashMap<CredentialId, UnixSeconds> =
                    held.iter().map(|one| (one.id, one.expires_at)).collect();
                for (pod, id) in self.granted_on(&node) {
                    if let Some(expires_at) = ends.get(&id).copied() {
                        let event = Event::Held {
                            pod,
                            id,
                            expires_at,
                        };
                        self.tell_ledger(event, now);
                    }
                }
                self.heard.push(heard);
            }
            AgentWord::Waiting { node, peers } => {
                for peer in peers {
                    let owner = self.cluster.owner_on(&node, peer);
                    if let Some(pod) = owner.map(|pod| pod.uid.clone()) {
                        self.tell_ledger(Event::Waiting { pod }, now);
                    }
                }
            }
        }
        self.apply_effects(now);
    }

    /// The pods of a node that are granted something. A node has few pods, and a role may have as
    /// many as the cluster: its agents all come back at once.
    fn granted_on(&self, node: &str) -> Vec<(PodUid, CredentialId)> {
        let granted = self.nodes.look(node, |table| {
            let pods = table.pods();
            pods.filter_map(|pod| Some((pod.uid().clone(), self.granted(pod.uid())?)))
                .collect()
        });
        granted.unwrap_or_default()
    }

    fn new_keys(&self, keys: &mut watch::Receiver<Option<Arc<VerificationKeys>>>) {
        let now = self.clock.now().monotonic;
        if let Some(keys) = &*keys.borrow_and_update() {
            self.nodes.put_keys(keys, now);
        }
    }

    fn sweep(&mut self, now: Now) {
        self.swept_at = now.monotonic;
        self.sessions
            .retain(|id, _credentials| self.ledger.standing(id).is_some());
        self.last_answers
            .retain(|id, _answer| self.ledger.standing(id).is_some());
        self.nodes.sweep();
        let is_known = |agent: &PodUid| self.cluster.get(agent).is_some();
        self.nodes.end_unknown_agents(now.monotonic, is_known);
        let soonest = self.sessions.values().map(|one| one.expires_at()).min();
        self.metrics.sts.held(self.sessions.len(), soonest);
        self.metrics.watch.pods(self.cluster.len());
    }
}

async fn reserve(orders: Option<&mpsc::Sender<Command>>) -> Option<mpsc::Permit<'_, Command>> {
    match orders {
        Some(orders) => orders.reserve().await.ok(),
        None => std::future::pending().await,
    }
}
