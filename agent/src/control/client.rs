//! Follows a server for as long as the agent lives.
//!
//! This room touches the network and decides nothing: what to do with an update and how long to
//! wait is [`super::subscription`]'s business, what to tell the server [`super::outbox`]'s. Whatever
//! goes wrong here, the snapshot stays as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::readiness::Following;
use kiam_wire::limits::MESSAGE_BYTES_MAX;
use kiam_wire::proto::{self, NodeCredentialsClient};
use kiam_wire::report::{Hello, Report};
use kiam_wire::update::Parsed;
use kiam_wire::{AgentMessage, Malformed, Revision};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use tracing::{debug, error, info, warn};

use super::backoff;
use super::bearer;
use super::dial::{self, DialError, Resolve};
use super::kernel_first::KernelFirst;
use super::mailbox::Mailbox;
use super::metrics::{
    Attempt, AttemptLabels, ControlMetrics, EndLabels, Ended, LeftOutLabels, Outcome, Part,
    UpdateLabels,
};
use super::served::SharedServed;
use super::subscription::{End, Subscription, Verdict};
use super::tls::{Files, Unusable};
use crate::clock::Now;
use crate::config::Server;

/// Messages on their way into the stream. The rest waits in the outbox, where it is conflated.
const IN_FLIGHT: usize = 4;

/// Between two times that everything is asked for because granted credentials ended.
const LOSS_PAUSE: Duration = Duration::from_mins(1);

/// Follows the servers. Everything it needs is handed to it.
#[derive(Debug)]
pub struct Follower {
    /// Where they are and how to reach them.
    pub server: Server,
    /// Finds their addresses.
    pub resolver: Arc<dyn Resolve>,
    /// The node whose credentials are asked for.
    pub node_name: String,
    /// What updates are applied to.
    pub served: SharedServed,
    /// What is heard before an update is applied.
    pub kernel: KernelFirst,
    /// What the data plane and others want told.
    pub mailbox: Mailbox,
    /// The agent's own state.
    pub report: watch::Receiver<Report>,
    /// Certificates.
    pub files: Files,
    /// Counts.
    pub metrics: ControlMetrics,
    /// Told whether a server is followed.
    pub following: Following,
}

/// An open stream that has said something.
struct Stream {
    outgoing: mpsc::Sender<proto::AgentMessage>,
    incoming: Streaming<proto::ServerMessage>,
    first: proto::ServerMessage,
    named: Option<Revision>,
}

/// Why a stream could not be opened at one address.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Files(#[from] Unusable),
    #[error("the server refused the stream: {code:?} {message:?}")]
    Refused { code: Code, message: String },
    #[error("the server closed the stream before it said anything")]
    Silent,
    #[error("no update within --first-update-timeout")]
    TimedOut,
}

impl From<Status> for OpenError {
    fn from(status: Status) -> Self {
        Self::Refused {
            code: status.code(),
            message: status.message().to_owned(),
        }
    }
}

impl OpenError {
    /// A refusal will not go away until someone changes something.
    fn log(&self, address: SocketAddr) {
        let error = chain(self);
        let refused = matches!(
            self,
            Self::Refused {
                code: Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument,
                ..
            }
        );
        if refused {
            error!(%address, error, "a server refuses this agent");
        } else {
            warn!(%address, error, "cannot follow a server");
        }
    }
}

impl Follower {
    fn is_following(&self, following: bool) {
        self.following.set(following);
        self.metrics.connected.set(i64::from(following));
    }

    /// Follows for ever; dropped when the agent stops.
    pub async fn run(mut self) {
        let mut subscription = Subscription::new();
        let mut losses = Losses {
            seen: self.served.lock().losses(),
            asked_at: None,
        };
        loop {
            let attempt = self.attempt(&mut subscription, &mut losses);
            let (end, lived) = Box::pin(attempt).await;
            self.is_following(false);
            let failures = subscription.ended(end, lived);
            let wait = backoff::delay(self.server.reconnect, failures, fastrand::f64());
            debug!(
                ?end,
                ?lived,
                failures,
                ?wait,
                "waiting before the next attempt"
            );
            sleep(wait).await;
        }
    }

    /// One round over all addresses, and the stream that comes of it until it ends.
    async fn attempt(
        &mut self,
        subscription: &mut Subscription,
        losses: &mut Losses,
    ) -> (End, Duration) {
        let Some((address, stream)) = Box::pin(self.open_any(*subscription)).await else {
            return (End::Failed, Duration::ZERO);
        };
        info!(%address, "following a server");
        let opened_at = Instant::now();
        subscription.opened(stream.named);
        let end = self.follow(subscription, losses, stream).await;
        let reason = match end {
            End::Closed => Ended::Closed,
            End::Failed => Ended::Failed,
            End::OutOfStep => Ended::OutOfStep,
        };
        self.metrics
            .streams_ended
            .get_or_create(&EndLabels { reason })
            .inc();
        (end, opened_at.elapsed())
    }

    /// The first address at which a stream can be opened.
    async fn open_any(&mut self, subscription: Subscription) -> Option<(SocketAddr, Stream)> {
        let addresses = match dial::addresses(&self.server, self.resolver.as_ref()).await {
            Ok(addresses) => addresses,
            Err(error) => {
                warn!(error = chain(&error), server = %self.server.address, "no server");
                return None;
            }
        };
        for address in addresses {
            let opened = Box::pin(self.open(address, subscription)).await;
            let result = if opened.is_ok() {
                Attempt::Opened
            } else {
                Attempt::Failed
            };
            self.metrics
                .attempts
                .get_or_create(&AttemptLabels { result })
                .inc();
            match opened {
                Ok(stream) => return Some((address, stream)),
                Err(error) => error.log(address),
            }
        }
        None
    }

    async fn open(
        &mut self,
        address: SocketAddr,
        subscription: Subscription,
    ) -> Result<Stream, OpenError> {
        let tls = self.files.current(Now::read())?;
        let channel = Box::pin(dial::dial(&self.server, address, tls)).await?;
        let mut client = NodeCredentialsClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (outgoing, queued) = mpsc::channel(IN_FLIGHT);
        let (hello, named) = self.hello(subscription);
        // The channel is new and empty, so this cannot fail.
        drop(outgoing.try_send(AgentMessage::Hello(hello).into()));
        let mut request = Request::new(ReceiverStream::new(queued));
        if let Some(path) = &self.server.token_file {
            let token = bearer::read(path)?;
            request.metadata_mut().insert("authorization", token);
        }
        let opening = timeout(self.server.first_update_timeout, async {
            let mut incoming = client.follow(request).await?.into_inner();
            let first = incoming.message().await?.ok_or(OpenError::Silent)?;
            Ok(Stream {
                outgoing,
                incoming,
                first,
                named,
            })
        });
        opening.await.map_err(|_elapsed| OpenError::TimedOut)?
    }

    fn hello(&self, subscription: Subscription) -> (Hello, Option<Revision>) {
        let served = self.served.lock();
        let named = subscription.names(served.store().named());
        let hello = Hello {
            node_name: self.node_name.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            holds: named,
            held: served.store().held(),
        };
        (hello, named)
    }

    async fn follow(
        &mut self,
        subscription: &mut Subscription,
        losses: &mut Losses,
        stream: Stream,
    ) -> End {
        let Stream {
            outgoing,
            mut incoming,
            first,
            named: _,
        } = stream;
        if let Err(end) = self.heard(subscription, first).await {
            return end;
        }
        self.is_following(true);
        self.mailbox.lock().reset();
        self.report.mark_changed();
        if let Some(revision) = self.served.lock().store().revision() {
            self.mailbox.put(|outbox| outbox.applied(revision));
        }
        let mut told_peers = None;
        loop {
            tokio::select! {
                message = incoming.message() => {
                    if let Err(end) = self.received(subscription, message).await {
                        return end;
                    }
                },
                // Takes nothing out of the mailbox before there is room for it.
                permit = room(&self.mailbox, told_peers, &outgoing) => {
                    let Some(permit) = permit else { return End::Failed };
                    if let Some(message) = self.mailbox.lock().take() {
                        if matches!(message, AgentMessage::Waiting(_)) {
                            told_peers = Some(Instant::now());
                        }
                        permit.send(message.into());
                    }
                },
                () = losses.next() => {
                    warn!("credentials that pods are granted have ended; asking for everything");
                    return End::OutOfStep;
                },
                changed = self.report.changed() => {
                    // An error means that the agent is stopping.
                    if changed.is_err() { return End::Closed; }
                    let report = self.report.borrow_and_update().clone();
                    self.mailbox.put(|outbox| outbox.report(report));
                },
            }
        }
    }

    /// Takes in what came over the stream, or says how it ended.
    async fn received(
        &self,
        subscription: &mut Subscription,
        message: Result<Option<proto::ServerMessage>, Status>,
    ) -> Result<(), End> {
        match message {
            Ok(Some(message)) => self.heard(subscription, message).await,
            Ok(None) => {
                info!("the server closed the stream");
                Err(End::Closed)
            }
            Err(status) => {
                let (code, message) = (status.code(), status.message());
                warn!(?code, ?message, "the stream broke");
                Err(End::Failed)
            }
        }
    }

    /// Applies what the server said, or says how the stream must end.
    async fn heard(
        &self,
        subscription: &mut Subscription,
        message: proto::ServerMessage,
    ) -> Result<(), End> {
        let Parsed {
            update,
            left_out,
            unreadable,
        } = Parsed::try_from(message).map_err(|malformed| {
            error!(%malformed, "an update cannot be read; asking for everything");
            self.count(Outcome::Malformed);
            End::OutOfStep
        })?;
        self.report_left_out(&left_out);
        let revision = update.leads_to();
        let outcome = match &update {
            kiam_wire::Update::Full(_) => Outcome::Full,
            kiam_wire::Update::Delta(_) => Outcome::Delta,
        };
        self.kernel.heard().await;
        let now = Now::read();
        let applied = match subscription.heard(&update) {
            Verdict::Apply => {
                let mut served = self.served.lock();
                served.lose(&unreadable, now);
                let applied = served.apply(update, now).ok();
                if !left_out.is_empty() {
                    served.lacks_something();
                }
                applied
            }
            Verdict::Gap => None,
        };
        let Some(applied) = applied else {
            warn!(%revision, "an update does not start where this agent is; asking for everything");
            self.count(Outcome::Gap);
            return Err(End::OutOfStep);
        };
        self.count(outcome);
        let took = Now::read()
            .monotonic
            .saturating_duration_since(now.monotonic);
        self.metrics.apply_seconds.observe(took.as_secs_f64());
        debug!(%revision, ?applied, ?took, "applied an update");
        subscription.applied(revision);
        self.mailbox.put(|outbox| outbox.applied(revision));
        Ok(())
    }

    fn count(&self, outcome: Outcome) {
        let labels = UpdateLabels { outcome };
        self.metrics.updates.get_or_create(&labels).inc();
    }

    fn report_left_out(&self, left_out: &[Malformed]) {
        for malformed in left_out {
            let part = part_of(malformed.field);
            let labels = LeftOutLabels { part };
            self.metrics.left_out.get_or_create(&labels).inc();
        }
        if let Some(first) = left_out.first() {
            let count = left_out.len();
            error!(count, %first, "parts of an update break the protocol and were left out");
        }
    }
}

/// Granted credentials that ended.
struct Losses {
    seen: watch::Receiver<u64>,
    asked_at: Option<Instant>,
}

impl Losses {
    /// Returns when some have and it is time to ask for them. Safe to cancel.
    async fn next(&mut self) {
        if let Some(asked_at) = self.asked_at {
            sleep_until(asked_at + LOSS_PAUSE).await;
        }
        // The sender lives as long as what is served, which the follower holds.
        drop(self.seen.changed().await);
        self.asked_at = Some(Instant::now());
    }
}

/// Room for one message in the stream, once there is one to send; `None` when the stream is over.
async fn room<'a>(
    mailbox: &Mailbox,
    told_peers: Option<Instant>,
    outgoing: &'a mpsc::Sender<proto::AgentMessage>,
) -> Option<mpsc::Permit<'a, proto::AgentMessage>> {
    mailbox.ready(told_peers).await;
    outgoing.reserve().await.ok()
}

/// Which part of an update a field belongs to, by the first word of its name.
fn part_of(field: &str) -> Part {
    match field.split('.').next() {
        Some("credentials") => Part::Credentials,
        Some("keys" | "key") => Part::Keys,
        _ => Part::Pod,
    }
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
