//! What streams, identities and certificates count.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{label, wide_buckets, words};

words! {
    /// What became of an agent's claim to be who it is.
    AuthOutcome {
        /// It is.
        Accepted = "accepted",
        /// It showed nothing.
        Missing = "missing",
        /// What it showed is not valid (any more), or for someone else.
        Invalid = "invalid",
        /// It is another `ServiceAccount`.
        NotAnAgent = "not_an_agent",
        /// It is another node's.
        OtherNode = "other_node",
        /// The API server could not be asked.
        Unavailable = "unavailable",
    }
}

words! {
    /// Why a stream ended.
    StreamEnd {
        /// The agent left.
        Agent = "agent",
        /// It was old enough; the agent comes back, perhaps to another replica.
        Age = "age",
        /// This server is stopping.
        Drain = "drain",
        /// The agent broke the protocol.
        Protocol = "protocol",
        /// The agent applied nothing for too long.
        Stuck = "stuck",
        /// Its identity had run out, or its agent's pod was gone.
        Identity = "identity",
        /// A newer stream of the same node took its place.
        Replaced = "replaced",
    }
}

words! {
    /// The status of a call, as gRPC names them. Only those that this server gives.
    GrpcCode {
        /// All is well.
        Ok = "OK",
        /// kiam's errors, all of them.
        Unknown = "Unknown",
        /// A broken message.
        InvalidArgument = "InvalidArgument",
        /// Not this node's agent.
        PermissionDenied = "PermissionDenied",
        /// Nobody we know.
        Unauthenticated = "Unauthenticated",
        /// Not now.
        Unavailable = "Unavailable",
        /// Too slow.
        DeadlineExceeded = "DeadlineExceeded",
        /// Not served here.
        Unimplemented = "Unimplemented",
        /// Anything else.
        Internal = "Internal",
    }
}

impl From<tonic::Code> for GrpcCode {
    fn from(code: tonic::Code) -> Self {
        match code {
            tonic::Code::Ok => Self::Ok,
            tonic::Code::Unknown => Self::Unknown,
            tonic::Code::InvalidArgument => Self::InvalidArgument,
            tonic::Code::PermissionDenied => Self::PermissionDenied,
            tonic::Code::Unauthenticated => Self::Unauthenticated,
            tonic::Code::Unavailable => Self::Unavailable,
            tonic::Code::DeadlineExceeded => Self::DeadlineExceeded,
            tonic::Code::Unimplemented => Self::Unimplemented,
            tonic::Code::Cancelled
            | tonic::Code::NotFound
            | tonic::Code::AlreadyExists
            | tonic::Code::ResourceExhausted
            | tonic::Code::FailedPrecondition
            | tonic::Code::Aborted
            | tonic::Code::OutOfRange
            | tonic::Code::Internal
            | tonic::Code::DataLoss => Self::Internal,
        }
    }
}

label!(ByAuth {
    outcome: AuthOutcome
});
label!(ByEnd { reason: StreamEnd });

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Handled {
    kind: &'static str,
    service: &'static str,
    method: &'static str,
    code: GrpcCode,
}

impl EncodeLabelSet for Handled {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        ("grpc_type", self.kind).encode(encoder.encode_label())?;
        ("grpc_service", self.service).encode(encoder.encode_label())?;
        ("grpc_method", self.method).encode(encoder.encode_label())?;
        ("grpc_code", self.code.as_str()).encode(encoder.encode_label())
    }
}

/// Streams and their agents.
#[derive(Debug, Clone)]
pub struct AgentMetrics {
    auth: Family<ByAuth, Counter>,
    streams: Gauge,
    ended: Family<ByEnd, Counter>,
    fulls: Counter,
    deltas: Counter,
    sent: Histogram,
    applied: Histogram,
    behind: Gauge,
    waiting: Counter,
    handled: Family<Handled, Counter>,
}

impl AgentMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            auth: Family::default(),
            streams: Gauge::default(),
            ended: Family::default(),
            fulls: Counter::default(),
            deltas: Counter::default(),
            sent: wide_buckets(),
            applied: wide_buckets(),
            behind: Gauge::default(),
            waiting: Counter::default(),
            handled: Family::default(),
        };
        for outcome in AuthOutcome::ALL {
            drop(metrics.auth.get_or_create(&ByAuth { outcome: *outcome }));
        }
        for reason in StreamEnd::ALL {
            drop(metrics.ended.get_or_create(&ByEnd { reason: *reason }));
        }
        metrics.register(registry);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "kiam_agent_auth",
            "Agents that asked for a node's credentials, by outcome",
            self.auth.clone(),
        );
        registry.register(
            "kiam_push_streams",
            "Agents that follow this server",
            self.streams.clone(),
        );
        registry.register(
            "kiam_push_streams_ended",
            "Streams that ended, by reason",
            self.ended.clone(),
        );
        registry.register(
            "kiam_push_full",
            "Updates that carried everything",
            self.fulls.clone(),
        );
        registry.register(
            "kiam_push_delta",
            "Updates that carried what had changed",
            self.deltas.clone(),
        );
        registry.register(
            "kiam_push_latency_seconds",
            "From a change (a watch event, an answer of STS) to the update that carries it",
            self.sent.clone(),
        );
        registry.register(
            "kiam_push_applied_latency_seconds",
            "From a change to the word of the agent that it is being served",
            self.applied.clone(),
        );
        registry.register(
            "kiam_push_revisions_behind",
            "Updates sent and not yet applied, over all agents",
            self.behind.clone(),
        );
        registry.register(
            "kiam_push_waiting_peers",
            "Addresses that agents reported requests of being held for",
            self.waiting.clone(),
        );
        registry.register(
            "grpc_server_handled",
            "Calls that ended, by status",
            self.handled.clone(),
        );
    }

    /// What became of a claim.
    pub fn auth(&self, outcome: AuthOutcome) {
        self.auth.get_or_create(&ByAuth { outcome }).inc();
    }

    /// A stream began.
    pub fn stream_begins(&self) {
        self.streams.inc();
    }

    /// A stream ended with so many updates not yet applied.
    pub fn stream_ends(&self, reason: StreamEnd, behind: usize) {
        self.streams.dec();
        self.ended.get_or_create(&ByEnd { reason }).inc();
        self.behind.dec_by(i64::try_from(behind).unwrap_or(0));
    }

    /// A full update was sent.
    pub fn full(&self) {
        self.fulls.inc();
        self.behind.inc();
    }

    /// A delta was sent so long after the oldest change in it.
    pub fn delta(&self, latency: Option<Duration>) {
        self.deltas.inc();
        self.behind.inc();
        if let Some(latency) = latency {
            self.sent.observe(latency.as_secs_f64());
        }
    }

    /// An update was applied so long after the oldest change in it.
    pub fn applied(&self, latency: Option<Duration>) {
        self.behind.dec();
        if let Some(latency) = latency {
            self.applied.observe(latency.as_secs_f64());
        }
    }

    /// An agent holds requests of so many peers.
    pub fn waiting(&self, peers: usize) {
        self.waiting.inc_by(u64::try_from(peers).unwrap_or(0));
    }

    /// A call ended. The names are those of the `.proto`.
    pub fn handled(
        &self,
        kind: &'static str,
        service: &'static str,
        method: &'static str,
        code: GrpcCode,
    ) {
        let labels = Handled {
            kind,
            service,
            method,
            code,
        };
        self.handled.get_or_create(&labels).inc();
    }
}

/// Certificates, under kiam's names.
#[derive(Debug, Clone)]
pub struct TlsMetrics {
    update_error: Gauge,
    verify_error: Gauge,
    expiry: Gauge,
}

impl TlsMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            update_error: Gauge::default(),
            verify_error: Gauge::default(),
            expiry: Gauge::default(),
        };
        registry.register(
            "grpc_server_tls_certificate_update_error",
            "1 while the certificate files cannot be used and older ones are",
            metrics.update_error.clone(),
        );
        registry.register(
            "grpc_server_tls_certificate_verify_error",
            "1 while the certificate is outside its validity",
            metrics.verify_error.clone(),
        );
        registry.register(
            "grpc_server_tls_certificate_expiry_seconds",
            "When the first certificate of the chain or of the authority ends, in Unix time",
            metrics.expiry.clone(),
        );
        metrics
    }

    /// Whether the files could be used.
    pub fn updated(&self, ok: bool) {
        self.update_error.set(i64::from(!ok));
    }

    /// The certificates' end, and whether they are valid now.
    pub fn validity(&self, ends_at_unix_s: i64, valid: bool) {
        self.expiry.set(ends_at_unix_s);
        self.verify_error.set(i64::from(!valid));
    }
}
