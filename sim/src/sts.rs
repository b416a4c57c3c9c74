//! The simulated Security Token Service: `AssumeRole` and `GetCallerIdentity` in the AWS query
//! protocol, over plain HTTP.
//!
//! Signatures are not verified (there is no secret to verify them with), but the access key in them
//! is read: whoever signs with keys issued here is the role they were issued for, everybody else is
//! the base identity. What is refused is refused in the words of the real service, because clients
//! decide by the code. It never keeps a secret it issued: session tokens are derived, not stored.
//!
//! In reading order: a request is read and decided (`server`) after a check (`request`), answered in XML
//! (`answer`), remembered (`issued` keys, `record` of calls).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

mod answer;
mod identity;
mod issued;
mod record;
mod refusal;
mod request;
mod server;
mod throttle;

pub use identity::Identity;
pub use record::{Call, Outcome};

use crate::clock::Clock;
use crate::faults::Faults;
use crate::listen::{Door, Handler, StartError};
use crate::shared::lock;
use issued::Issued;
use record::Record;
use throttle::Bucket;

/// How the service is set up.
#[derive(Debug, Clone)]
pub struct StsOptions {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Who signs with keys that were not issued here.
    pub base_identity: Identity,
    /// The longest session of a role for which nothing else is set.
    pub session_max: Duration,
    /// Calls that are remembered one by one; the counts go on without bound.
    pub calls_max: usize,
    /// Where the dice for keys, faults and latencies start.
    pub seed: u64,
}

impl Default for StsOptions {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            base_identity: Identity::assumed_role(
                "123456789012",
                "kiam-server",
                "i-0123456789abcdef0",
            ),
            session_max: Duration::from_hours(12),
            calls_max: 100_000,
            seed: 0,
        }
    }
}

/// What the service does differently, changed at run time.
#[derive(Debug, Clone, Default)]
struct Rules {
    /// Role ARNs refused, `*` standing for any text.
    denied: Vec<String>,
    /// Sessions by role ARN pattern that may not be longer than this.
    session_max: Vec<(String, Duration)>,
    /// Share of the calls that are throttled.
    throttled_share: f64,
    /// Calls allowed by rate.
    bucket: Option<Bucket>,
    /// Whether a caller that is itself a role gets an hour at most.
    caps_chaining: bool,
    /// Sessions are given this long, whatever was asked.
    lifetime: Option<Duration>,
    /// Whether `Expiration` carries milliseconds.
    fractional_expiration: bool,
}

#[derive(Debug)]
struct State {
    options: StsOptions,
    faults: Faults,
    clock: Clock,
    rules: Mutex<Rules>,
    issued: Mutex<Issued>,
    record: Mutex<Record>,
    dice: Mutex<fastrand::Rng>,
}

/// A running service. Dropping it ends it, with every connection.
#[derive(Debug)]
pub struct Sts {
    handle: StsHandle,
    door: Door,
}

impl Sts {
    /// Starts the service.
    pub async fn start(options: StsOptions) -> Result<Self, StartError> {
        let (listen, seed) = (options.listen, options.seed);
        let state = Arc::new(State {
            faults: Faults::new(seed),
            clock: Clock::start(),
            rules: Mutex::default(),
            issued: Mutex::new(Issued::new(seed)),
            record: Mutex::new(Record::new(options.calls_max)),
            dice: Mutex::new(fastrand::Rng::with_seed(seed)),
            options,
        });
        let served = Arc::clone(&state);
        let handler: Handler =
            Arc::new(move |request| Box::pin(server::handle(Arc::clone(&served), request)));
        let door = Door::open(listen, None, state.faults.clone(), handler).await?;
        Ok(Self {
            handle: StsHandle(state),
            door,
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.door.address()
    }

    /// Where it listens, for `AWS_ENDPOINT_URL_STS`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The switches and the record; clone it freely.
    pub const fn handle(&self) -> &StsHandle {
        &self.handle
    }

    /// Stops listening, closes every connection, and returns when that is done.
    pub async fn shutdown(self) {
        self.door.close().await;
    }
}

/// The switches and the record of a running service. Clones act on the same service.
#[derive(Debug, Clone)]
pub struct StsHandle(Arc<State>);

impl StsHandle {
    /// The switches for what goes wrong with any server: down, hanging, latency, failures.
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// Answers this share of the calls (0.0 to 1.0) with `Throttling`.
    pub fn throttle_share(&self, share: f64) {
        lock(&self.0.rules).throttled_share = share;
    }

    /// Answers calls over this rate with `Throttling`: a token bucket of `burst` that is filled
    /// with `per_second`. `None` lifts the limit.
    pub fn throttle_rate(&self, limit: Option<(f64, f64)>) {
        let bucket =
            limit.map(|(per_second, burst)| Bucket::new(per_second, burst, self.0.clock.elapsed()));
        lock(&self.0.rules).bucket = bucket;
    }

    /// Refuses `AssumeRole` of these role ARNs with `AccessDenied`; `*` stands for any text.
    pub fn deny(&self, patterns: &[&str]) {
        lock(&self.0.rules).denied = patterns.iter().map(|one| (*one).to_owned()).collect();
    }

    /// Sets the longest session of the roles whose ARN matches; the last that matches counts.
    pub fn limit_session(&self, pattern: &str, longest: Duration) {
        lock(&self.0.rules)
            .session_max
            .push((pattern.to_owned(), longest));
    }

    /// Gives a caller that is itself an assumed role an hour at most, as AWS does.
    pub fn cap_role_chaining(&self, caps: bool) {
        lock(&self.0.rules).caps_chaining = caps;
    }

    /// Lets sessions end after this time whatever was asked; `None` gives what was asked.
    pub fn set_lifetime(&self, lifetime: Option<Duration>) {
        lock(&self.0.rules).lifetime = lifetime;
    }

    /// Writes `Expiration` with milliseconds, as some services do.
    pub fn fractional_expiration(&self, fractional: bool) {
        lock(&self.0.rules).fractional_expiration = fractional;
    }

    /// Lifts every rule and every fault.
    pub fn clear(&self) {
        *lock(&self.0.rules) = Rules::default();
        self.0.faults.clear();
    }

    /// The calls remembered, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.0.record).calls()
    }

    /// How often this role was asked for, whatever the outcome.
    pub fn count(&self, role_arn: &str) -> u64 {
        lock(&self.0.record).count(role_arn)
    }

    /// How often roles were asked for, by role ARN.
    pub fn counts(&self) -> std::collections::BTreeMap<String, u64> {
        lock(&self.0.record).counts()
    }

    /// How many `AssumeRole` calls there were in all.
    pub fn total(&self) -> u64 {
        lock(&self.0.record).total()
    }

    /// How many of the calls remembered asked again for what had been issued less than `share` (0 to 1)
    /// of its life before.
    pub fn early(&self, share: f64) -> u64 {
        lock(&self.0.record).early(share)
    }

    /// Whom this access key id was issued to, expired or not; `None` if it was not issued here.
    pub fn owner(&self, access_key_id: &str) -> Option<Identity> {
        lock(&self.0.issued).owner(access_key_id).cloned()
    }
}
