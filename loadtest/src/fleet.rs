//! Thousands of simulated agents: each a real connection with a real stream, that remembers just
//! enough of what it is told to check it.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kiam_wire::report::{Hello, Interception, Report};
use kiam_wire::update::Parsed;
use kiam_wire::{AgentMessage, CredentialId, Pod, PodState, PodUid, Update, limits, proto};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::clock;
use crate::measure::Latencies;
use crate::simulation::Files;

/// What all agents of a fleet saw together.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Pods that are granted credentials which their node has.
    granted: AtomicU64,
    /// Streams open now.
    streams: AtomicU64,
    /// Updates received.
    updates: AtomicU64,
    /// Their bytes, as they are encoded.
    bytes: AtomicU64,
    /// Credentials that came alone, because the earlier ones age, and the bytes of their updates.
    refreshed: AtomicU64,
    refresh_bytes: AtomicU64,
    /// Streams that ended or could not be opened.
    disconnects: AtomicU64,
    /// Pods of another node, updates that do not follow, malformed parts: never.
    violations: AtomicU64,
    /// Pods that were changed, by name, and when that was due; taken out when their agent hears of it.
    awaited: Mutex<HashMap<String, Instant>>,
    /// From when a change of the API was due to the agent.
    latencies: Mutex<Option<Latencies>>,
    /// Counts the times that all agents were told to connect again.
    reconnects: watch::Sender<u64>,
}

impl Seen {
    /// Pods that are granted credentials which their node has.
    pub(crate) fn granted(&self) -> u64 {
        self.granted.load(Ordering::Relaxed)
    }

    /// Streams open now.
    pub(crate) fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// Updates received.
    pub(crate) fn updates(&self) -> u64 {
        self.updates.load(Ordering::Relaxed)
    }

    /// Bytes received.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Credentials that came alone, because the earlier ones age, and the bytes of their updates.
    pub(crate) fn refreshes(&self) -> (u64, u64) {
        let [count, bytes] = [&self.refreshed, &self.refresh_bytes];
        (count.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed))
    }

    fn weigh(&self, update: &Update, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.updates.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Update::Delta(delta) = update
            && delta.pods.is_empty()
            && delta.removed_pods.is_empty()
        {
            let count = u64::try_from(delta.credentials.len()).unwrap_or(u64::MAX);
            self.refreshed.fetch_add(count, Ordering::Relaxed);
            self.refresh_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Streams that ended or could not be opened.
    pub(crate) fn disconnects(&self) -> u64 {
        self.disconnects.load(Ordering::Relaxed)
    }

    /// What must never be.
    pub(crate) fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }

    /// Every agent hangs up and connects again, all of them at this moment.
    pub(crate) fn reconnect_all(&self) {
        self.reconnects.send_modify(|times| *times += 1);
    }

    /// A change of this pod was due then; its agent must hear of it.
    pub(crate) fn expect(&self, pod: String, due: Instant) {
        self.awaited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pod, due);
    }

    /// Waits for no change any more and says how many no agent has heard of. Each has taken until now
    /// at least, and counts as that: what is never heard of is not fast.
    pub(crate) fn give_up(&self) -> u64 {
        let lost =
            std::mem::take(&mut *self.awaited.lock().unwrap_or_else(PoisonError::into_inner));
        for due in lost.values() {
            self.took_since(*due);
        }
        u64::try_from(lost.len()).unwrap_or(u64::MAX)
    }

    /// Changes no agent has heard of yet.
    pub(crate) fn outstanding(&self) -> usize {
        self.awaited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// How long the changes took.
    pub(crate) fn latencies(&self) -> Latencies {
        let latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        latencies.clone().unwrap_or_else(Latencies::new)
    }

    fn heard(&self, pod: &str) {
        let changed = self
            .awaited
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(pod);
        if let Some(due) = changed {
            self.took_since(due);
        }
    }

    fn took_since(&self, due: Instant) {
        let took = clock::now().saturating_duration_since(due);
        let mut latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        latencies.get_or_insert_with(Latencies::new).record(took);
    }

    fn violated(&self, node: &str, what: &str) {
        tracing::warn!(node, what, "the server broke its promise");
        self.violations.fetch_add(1, Ordering::Relaxed);
    }
}

/// Which node a pod's name says it is on: `NODE.NUMBER`.
pub(crate) fn node_of(pod: &str) -> &str {
    pod.rsplit_once('.').map_or("", |(node, _)| node)
}

/// How an agent of the fleet reaches the server.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    endpoint: Endpoint,
}

impl Way {
    /// To the server at `address`, with the agent's certificate of a simulation.
    pub(crate) fn new(address: SocketAddr, files: &Files) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = files.path(name);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")?))
            .identity(Identity::from_pem(
                read("agent.pem")?,
                read("agent-key.pem")?,
            ))
            .domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{address}"))?
            .tls_config(tls)?
            .connect_timeout(Duration::from_secs(10))
            // Each agent keeps little: windows as large as one update usually is.
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(64 * 1024);
        Ok(Self { endpoint })
    }
}

/// How long an agent waits before it connects again: up to this, evenly spread.
const AGAIN_AFTER_MS: u64 = 1_000;

/// Follows `node` until the task is aborted.
pub(crate) async fn agent(node: String, way: Way, seen: Arc<Seen>) {
    let mut dice = fastrand::Rng::new();
    loop {
        let mut told = Told::new(&node, &seen);
        let ended = follow(&node, &way, &seen, &mut told).await;
        told.forget();
        match ended {
            Ok(Ended::Told) => continue,
            Ok(Ended::ByServer) => {}
            Err(error) => tracing::debug!(node, %error, "disconnected"),
        }
        seen.disconnects.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(dice.u64(0..AGAIN_AFTER_MS))).await;
    }
}

/// Why a stream ended.
enum Ended {
    /// All agents were told to connect again.
    Told,
    /// The server closed it.
    ByServer,
}

async fn follow(node: &str, way: &Way, seen: &Seen, told: &mut Told<'_>) -> anyhow::Result<Ended> {
    let mut reconnects = seen.reconnects.subscribe();
    let channel: Channel = way.endpoint.connect().await?;
    let mut client = proto::NodeCredentialsClient::new(channel)
        .max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
    let (say, said) = mpsc::channel::<proto::AgentMessage>(16);
    let hello = Hello {
        node_name: node.to_owned(),
        agent_version: concat!("loadtest-", env!("CARGO_PKG_VERSION")).to_owned(),
        holds: None,
        held: Vec::new(),
    };
    say.send(AgentMessage::Hello(hello).into()).await?;
    let report = Report {
        serving: true,
        interception: Interception::Off,
        driver: "simulated".to_owned(),
    };
    say.send(AgentMessage::Report(report).into()).await?;
    let said = futures::stream::unfold(said, |mut said| async {
        said.recv().await.map(|message| (message, said))
    });
    let mut updates = client.follow(said).await?.into_inner();
    seen.streams.fetch_add(1, Ordering::Relaxed);
    let outcome = async {
        loop {
            let message = tokio::select! {
                message = updates.message() => message?,
                _again = reconnects.changed() => return Ok(Ended::Told),
            };
            let Some(message) = message else {
                return Ok(Ended::ByServer);
            };
            let bytes = message.encoded_len();
            let Parsed {
                update, left_out, ..
            } = Parsed::try_from(message)?;
            if let Some(malformed) = left_out.first() {
                seen.violated(node, &malformed.to_string());
            }
            seen.weigh(&update, bytes);
            let revision = update.leads_to();
            told.apply(update);
            say.send(AgentMessage::Applied(revision).into()).await?;
        }
    };
    let outcome: anyhow::Result<Ended> = outcome.await;
    seen.streams.fetch_sub(1, Ordering::Relaxed);
    outcome
}

/// What one agent has been told on its present stream.
struct Told<'a> {
    node: &'a str,
    seen: &'a Seen,
    revision: Option<kiam_wire::Revision>,
    pods: HashMap<PodUid, Option<CredentialId>>,
    credentials: HashSet<CredentialId>,
    granted: u64,
}

impl<'a> Told<'a> {
    fn new(node: &'a str, seen: &'a Seen) -> Self {
        Self {
            node,
            seen,
            revision: None,
            pods: HashMap::new(),
            credentials: HashSet::new(),
            granted: 0,
        }
    }

    fn apply(&mut self, update: Update) {
        match update {
            Update::Full(full) => {
                self.pods.clear();
                self.revision = Some(full.revision);
                self.credentials
                    .extend(full.credentials.iter().map(|one| one.id()));
                full.pods.iter().for_each(|pod| self.put(pod));
            }
            Update::Delta(delta) => {
                if self.revision.is_some_and(|revision| revision != delta.from) {
                    self.seen.violated(self.node, "a delta does not follow");
                }
                self.revision = Some(delta.to);
                self.credentials
                    .extend(delta.credentials.iter().map(|one| one.id()));
                for uid in &delta.removed_pods {
                    self.pods.remove(uid);
                }
                delta.pods.iter().for_each(|pod| self.put(pod));
            }
        }
        let has = |id: &Option<CredentialId>| id.is_some_and(|id| self.credentials.contains(&id));
        let granted = self.pods.values().filter(|id| has(id)).count();
        self.count(u64::try_from(granted).unwrap_or(u64::MAX));
    }

    fn put(&mut self, pod: &Pod) {
        if node_of(&pod.name) != self.node {
            self.seen.violated(self.node, "a pod of another node");
        }
        let granted = match pod.state {
            PodState::Granted(id) => Some(id),
            PodState::Pending(_) | PodState::Refused(_) | PodState::NoRole => None,
        };
        if let Some(id) = granted {
            if !self.credentials.contains(&id) {
                self.seen.violated(self.node, "granted without credentials");
            }
            if !pod.ips.is_empty() {
                self.seen.heard(&pod.name);
            }
        }
        self.pods.insert(pod.uid.clone(), granted);
    }

    fn count(&mut self, granted: u64) {
        // Two steps, so that the total never wraps whatever the other agents do.
        self.seen.granted.fetch_add(granted, Ordering::Relaxed);
        self.seen.granted.fetch_sub(self.granted, Ordering::Relaxed);
        self.granted = granted;
    }

    fn forget(&mut self) {
        self.count(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_says_its_node() {
        assert_eq!(node_of("node-0007.12"), "node-0007");
        assert_eq!(node_of("elsewhere"), "");
    }
}
