//! One agent's stream, from its Hello to its end.
//!
//! At any moment at most [`UNAPPLIED_MAX`] updates are on their way to the agent; while that many
//! are, changes gather in the node's table, where a newer state replaces an older one. So a slow
//! agent gets fewer, larger updates, and costs no more memory than a fast one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::report::{AgentMessage, Hello};
use kiam_wire::{Revision, Update, proto};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Status, Streaming};
use tracing::{debug, info};

use super::frames::Message;
use super::sent_on::SentOn;
use super::{AgentWord, Newcomer, Nodes, Place};
use crate::agent_auth::Identity;
use crate::clock::{Clock, Moment};
use crate::drain::Draining;
use crate::freshness::Freshness;
use crate::metrics::{AgentMetrics, AuthOutcome, StreamEnd};
use crate::snapshot::Told;
use crate::taint::{Announcement, ReadyNodes};
use crate::tls::Visit;

/// Updates that may be sent and not yet applied.
const UNAPPLIED_MAX: usize = 8;
/// An agent that applies nothing for so long is not going to.
const APPLY_TIMEOUT: Duration = Duration::from_mins(1);
/// How long an agent may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stream waits for this server to know the cluster. Another replica may know it.
const SYNC_TIMEOUT: Duration = Duration::from_secs(20);

/// What every stream needs.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) nodes: Arc<Nodes>,
    pub(super) words: mpsc::Sender<AgentWord>,
    pub(super) ready: ReadyNodes,
    pub(super) synced: watch::Receiver<bool>,
    pub(super) freshness: Freshness,
    pub(super) sent_on: Arc<SentOn>,
    pub(super) draining: Draining,
    pub(super) metrics: AgentMetrics,
    pub(super) clock: Clock,
    pub(super) age_max: Duration,
}

/// Who opened a stream, and on which connection.
pub(super) struct Caller {
    pub(super) identity: Identity,
    pub(super) visit: Option<Visit>,
}

/// What goes to the agent: gRPC takes one at a time, the rest is in the node's table.
pub(super) type Outbox = mpsc::Sender<Result<Message, Status>>;

/// Serves one stream to its end. Ends the stream with a status when the agent broke a rule.
pub(super) async fn serve(
    shared: Shared,
    caller: Caller,
    mut inbox: Streaming<proto::AgentMessage>,
    outbox: Outbox,
) -> Result<(), Status> {
    let Caller { identity, visit } = caller;
    let hello = hello(&shared, &identity, &mut inbox).await?;
    let _known = visit.as_ref().map(Visit::known);
    let node: Arc<str> = hello.node_name.as_str().into();
    wait_for_sync(&shared, &outbox).await?;
    shared.send_on_if_behind(&node)?;
    let at = shared.clock.now().monotonic;
    let agent = Newcomer {
        version: hello.agent_version.clone(),
        pod: identity.pod().cloned(),
    };
    let place = shared.nodes.join(&node, agent, at);
    let (heard, taken_in) = oneshot::channel();
    let held = AgentWord::Holds {
        node: Arc::clone(&node),
        held: hello.held,
        heard,
    };
    // Before the first update: told that it is refused, a pod would lose what its agent holds for
    // it. Nobody says more than that it is done, or never will be.
    let _owner_is_there = shared.words.send(held).await.is_ok();
    let _done = taken_in.await.is_ok();
    shared.metrics.stream_begins();
    let mut stream = Stream {
        until: shared.lifetime(&identity),
        place,
        node,
        outbox,
        unapplied: VecDeque::new(),
        told: None,
        holds: hello.holds,
        ready: Announcement::new(shared.ready.clone()),
        shared,
    };
    let ended = stream.run(&mut inbox).await;
    let reason = match &ended {
        Ok(reason) => *reason,
        Err(_status) => StreamEnd::Protocol,
    };
    let behind = stream.unapplied.len();
    stream.shared.metrics.stream_ends(reason, behind);
    info!(
        node = &*stream.node,
        reason = reason.as_str(),
        behind,
        "agent's stream ended"
    );
    match reason {
        StreamEnd::Stuck => Err(Status::deadline_exceeded(
            "no update was applied for a minute",
        )),
        StreamEnd::Agent
        | StreamEnd::Age
        | StreamEnd::Drain
        | StreamEnd::Protocol
        | StreamEnd::Identity
        | StreamEnd::Replaced => ended.map(drop),
    }
}

async fn hello(
    shared: &Shared,
    identity: &Identity,
    inbox: &mut Streaming<proto::AgentMessage>,
) -> Result<Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbox.message())
        .await
        .map_err(|_elapsed| Status::deadline_exceeded("the agent did not say who it is"))??;
    let first = first.ok_or_else(|| Status::invalid_argument("the stream ended before Hello"))?;
    let AgentMessage::Hello(hello) = parse(first)? else {
        return Err(Status::invalid_argument("the first message is not Hello"));
    };
    if !identity.may_be(&hello.node_name) {
        shared.metrics.auth(AuthOutcome::OtherNode);
        info!(claims = hello.node_name, identity = %identity, "an agent claimed another node");
        return Err(Status::permission_denied(format!(
            "this agent is {identity} and may not follow node {}",
            hello.node_name
        )));
    }
    shared.metrics.auth(AuthOutcome::Accepted);
    info!(
        node = hello.node_name,
        version = hello.agent_version,
        held = hello.held.len(),
        "agent follows"
    );
    Ok(hello)
}

fn parse(message: proto::AgentMessage) -> Result<AgentMessage, Status> {
    AgentMessage::try_from(message).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Before the cluster is known, saying anything would say that its pods do not exist.
async fn wait_for_sync(shared: &Shared, outbox: &Outbox) -> Result<(), Status> {
    let mut synced = shared.synced.clone();
    let mut draining = shared.draining.clone();
    let later = || Status::unavailable("this server does not know the cluster yet");
    tokio::select! {
        known = synced.wait_for(|synced| *synced) => known.map(drop).map_err(|_gone| later()),
        () = tokio::time::sleep(SYNC_TIMEOUT) => Err(later()),
        () = draining.started() => Err(Status::unavailable("this server is stopping")),
        () = outbox.closed() => Err(later()),
    }
}

impl Shared {
    /// Another replica may know what has happened since this one's watches began to fail; an agent that knows
    /// it already would be told what was.
    fn send_on_if_behind(&self, node: &Arc<str>) -> Result<(), Status> {
        let now = self.clock.now().monotonic;
        let Some(since) = self.freshness.behind_since(now) else {
            return Ok(());
        };
        let behind = now.since(since);
        if !self.sent_on.sends(node, now) {
            info!(
                node = &**node,
                ?behind,
                "no other server would have this agent"
            );
            return Ok(());
        }
        Err(Status::unavailable(format!(
            "this server has not heard from the Kubernetes API for {} s; another may have",
            behind.as_secs()
        )))
    }

    /// Until when a stream of this identity lives, and why it ends then. Jittered by a tenth, so
    /// that agents which came together do not come back together.
    fn lifetime(&self, identity: &Identity) -> (Moment, StreamEnd) {
        let now = self.clock.now();
        let jittered = self.age_max.mul_f64(0.9 + 0.2 * fastrand::f64());
        let mut until = (now.monotonic.after(jittered), StreamEnd::Age);
        if let Some(valid_until) = identity.valid_until() {
            let end = now.monotonic.after(valid_until.since(now.wall));
            if end < until.0 {
                until = (end, StreamEnd::Identity);
            }
        }
        until
    }
}

struct Stream {
    shared: Shared,
    place: Place,
    node: Arc<str>,
    outbox: Outbox,
    /// Updates sent and not yet applied, oldest first; never more than [`UNAPPLIED_MAX`].
    unapplied: VecDeque<Unapplied>,
    /// `None` before the first update.
    told: Option<Told>,
    holds: Option<Revision>,
    /// That the agent is ready, so that its node is freed of the start-up taint.
    ready: Announcement,
    until: (Moment, StreamEnd),
}

struct Unapplied {
    leads_to: Revision,
    /// When the oldest change in it was made; `None` for a first update.
    changed_at: Option<Moment>,
    sent_at: Moment,
}

impl Stream {
    async fn run(
        &mut self,
        inbox: &mut Streaming<proto::AgentMessage>,
    ) -> Result<StreamEnd, Status> {
        let mut changed = self.place.node.changed.subscribe();
        let mut draining = self.shared.draining.clone();
        // The first update does not wait for a change.
        let mut dirty = true;
        let outbox = self.outbox.clone();
        loop {
            let may_send = dirty && self.unapplied.len() < UNAPPLIED_MAX;
            let deadline = self.shared.clock.instant(self.deadline().0);
            tokio::select! {
                () = draining.started() => return Ok(StreamEnd::Drain),
                () = tokio::time::sleep_until(deadline) => return Ok(self.deadline().1),
                ended = &mut self.place.ended => return Ok(ended.unwrap_or(StreamEnd::Replaced)),
                message = inbox.message() => match message {
                    Ok(Some(message)) => self.heard(parse(message)?).await?,
                    Ok(None) => return Ok(StreamEnd::Agent),
                    Err(status) => {
                        debug!(node = &*self.node, %status, "an agent's stream broke");
                        return Ok(StreamEnd::Agent);
                    }
                },
                woken = changed.changed(), if !dirty => match woken {
                    Ok(()) => dirty = true,
                    Err(_gone) => return Ok(StreamEnd::Drain),
                },
                permit = outbox.reserve(), if may_send => {
                    let Ok(permit) = permit else { return Ok(StreamEnd::Agent) };
                    changed.mark_unchanged();
                    dirty = false;
                    if let Some(update) = self.next_update() {
                        permit.send(Ok(Message::of(&update)?));
                    }
                }
            }
        }
    }

    /// When the stream ends by itself, and why.
    fn deadline(&self) -> (Moment, StreamEnd) {
        let stuck = self.unapplied.front().map(|oldest| {
            let at = oldest.sent_at.after(APPLY_TIMEOUT);
            (at, StreamEnd::Stuck)
        });
        match stuck {
            Some(stuck) if stuck.0 < self.until.0 => stuck,
            Some(_) | None => self.until,
        }
    }

    /// What the agent has not been told, as the table stands now.
    fn next_update(&mut self) -> Option<Update> {
        let now = self.shared.clock.now().monotonic;
        let epoch = self.shared.nodes.epoch;
        let (update, changed_at) = {
            let table = self.place.node.table();
            if let Some(told) = &mut self.told {
                let (delta, changed_at) = told.since(&table)?;
                (Update::Delta(delta), Some(changed_at))
            } else {
                let number = table.number();
                let (told, update) = if self.holds == Some(Revision { epoch, number }) {
                    let (told, delta) = Told::unchanged(&table, epoch);
                    (told, Update::Delta(delta))
                } else {
                    let (told, full) = Told::full(&table, epoch);
                    (told, Update::Full(full))
                };
                self.told = Some(told);
                (update, None)
            }
        };
        match update {
            Update::Full(_) => self.shared.metrics.full(),
            Update::Delta(_) => {
                let latency = changed_at.map(|at| now.since(at));
                self.shared.metrics.delta(latency);
            }
        }
        let leads_to = update.leads_to();
        self.place.note(|status| status.sent = leads_to);
        self.unapplied.push_back(Unapplied {
            leads_to,
            changed_at,
            sent_at: now,
        });
        Some(update)
    }

    async fn heard(&mut self, message: AgentMessage) -> Result<(), Status> {
        match message {
            AgentMessage::Hello(_) => return Err(Status::invalid_argument("a second Hello")),
            AgentMessage::Applied(revision) => self.applied(revision),
            AgentMessage::Waiting(peers) => {
                self.shared.metrics.waiting(peers.len());
                let word = AgentWord::Waiting {
                    node: Arc::clone(&self.node),
                    peers,
                };
                let _owner_is_there = self.shared.words.send(word).await.is_ok();
            }
            AgentMessage::Report(report) => {
                self.place.note(|status| status.report = Some(report));
                self.announce_ready();
            }
        }
        Ok(())
    }

    /// An applied revision stands for those sent before it, too. One that is not waited for (an
    /// agent may repeat itself) says nothing new.
    fn applied(&mut self, revision: Revision) {
        let Some(at) = self
            .unapplied
            .iter()
            .position(|update| update.leads_to == revision)
        else {
            debug!(node = &*self.node, %revision, "not waiting for this revision");
            return;
        };
        let now = self.shared.clock.now().monotonic;
        for update in self.unapplied.drain(..=at) {
            let latency = update.changed_at.map(|changed| now.since(changed));
            self.shared.metrics.applied(latency);
        }
        self.place.note(|status| status.applied = Some(revision));
        self.announce_ready();
    }

    /// The node is ready once its agent serves what this server sent and nothing goes past it.
    fn announce_ready(&mut self) {
        let mut is_ready = false;
        self.place
            .note(|status| is_ready = crate::taint::is_ready(status));
        self.ready.note(&self.node, is_ready);
    }
}
