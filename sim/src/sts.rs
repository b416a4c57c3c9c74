//! The simulated Security Token Service: `AssumeRole` and `GetCallerIdentity` in the AWS query
//! protocol, over plain HTTP.
//!
//! Signatures are not verified (there is no secret to verify them with), but the access key in them
//! is read: whoever signs with keys issued here is the role they were issued for, everybody else is
//! the base identity. What is refused is refused in the words of the real service, because clients
//! decide by the code. It never keeps a secret it issued: session tokens are derived, not stored.
//!
//! In reading order: a request is read (`query`), checked (`request`), decided here, answered in XML
//! (`answer`), remembered (`issued` keys, `record` of calls).

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};

mod answer;
mod identity;
mod issued;
mod record;
mod refusal;
mod request;
mod throttle;

pub use identity::Identity;
pub use record::{Call, Outcome};

use crate::clock::Clock;
use crate::faults::{Fate, Faults};
use crate::listen::{Answer, Door, Handler, StartError, endure, whole};
use crate::shared::{lock, uuid};
use issued::Issued;
use record::Record;
use refusal::Refusal;
use request::{AssumeRole, Parameters};
use throttle::Bucket;

/// The largest request body; the real limit on policies and tags is far below.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// The longest session that role chaining gives.
const CHAINED_SESSION_MAX: Duration = Duration::from_secs(3600);

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
            session_max: Duration::from_secs(12 * 3600),
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
            Arc::new(move |request| Box::pin(handle(Arc::clone(&served), request)));
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

    /// Whom this access key id was issued to, expired or not; `None` if it was not issued here.
    pub fn owner(&self, access_key_id: &str) -> Option<Identity> {
        lock(&self.0.issued).owner(access_key_id).cloned()
    }

    /// Forgets calls and counts.
    pub fn forget_calls(&self) {
        lock(&self.0.record).clear();
    }
}

async fn handle(state: Arc<State>, request: Request<Incoming>) -> Answer {
    let request_id = uuid(&mut lock(&state.dice));
    let answered = match endure(&state.faults).await {
        Fate::Answered => read(request).await,
        Fate::Unauthorized => Err(Refusal::invalid_token()),
        Fate::Failed(status) => Err(Refusal::fault(status)),
    };
    let answered = answered
        .and_then(|(headers, parameters)| decide(&state, &headers, &parameters, &request_id));
    let (status, body) = match answered {
        Ok(body) => (StatusCode::OK, body),
        Err(refusal) => (refusal.status(), answer::error(&refusal, &request_id)),
    };
    let mut response = Response::new(whole(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

/// The headers and the parameters of a request, wherever it put them.
async fn read(request: Request<Incoming>) -> Result<(HeaderMap, Parameters), Refusal> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body
        .map_err(|_too_large_or_gone| Refusal::too_large())?
        .to_bytes();
    let query = head.uri.query().unwrap_or_default().as_bytes();
    let parameters = match head.method {
        Method::POST if !body.is_empty() => Parameters::parse(&body),
        Method::POST | Method::GET => Parameters::parse(query),
        _ => return Err(Refusal::method()),
    };
    Ok((head.headers, parameters))
}

fn decide(
    state: &State,
    headers: &HeaderMap,
    parameters: &Parameters,
    request_id: &str,
) -> Result<String, Refusal> {
    if let Some(version) = parameters
        .get("Version")
        .filter(|version| *version != "2011-06-15")
    {
        return Err(Refusal::no_such_version(version));
    }
    let now = state.clock.now();
    match parameters.get("Action").unwrap_or_default() {
        "AssumeRole" => {
            let request = AssumeRole::parse(parameters);
            let outcome = request.as_ref().map_err(Clone::clone).and_then(|request| {
                let caller = caller(state, headers, parameters, now)?;
                assume(state, &caller, request, now, request_id)
            });
            remember(state, parameters, &outcome);
            outcome
        }
        "GetCallerIdentity" => {
            let caller = caller(state, headers, parameters, now)?;
            Ok(answer::caller_identity(&caller, request_id))
        }
        action => Err(Refusal::no_such_action(action)),
    }
}

/// Who signed the request.
fn caller(
    state: &State,
    headers: &HeaderMap,
    parameters: &Parameters,
    now: Timestamp,
) -> Result<Identity, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let credential = match authorization {
        Some(authorization) => request::credential(authorization),
        // A presigned request carries its signature in the query.
        None => parameters.get("X-Amz-Credential"),
    };
    let key = credential
        .and_then(|credential| credential.split('/').next())
        .filter(|key| !key.is_empty())
        .ok_or_else(Refusal::unsigned)?;
    let token = header("x-amz-security-token").or_else(|| parameters.get("X-Amz-Security-Token"));
    let issued = lock(&state.issued);
    issued
        .identify(key, token, now)
        .map(|known| known.unwrap_or_else(|| state.options.base_identity.clone()))
}

fn assume(
    state: &State,
    caller: &Identity,
    request: &AssumeRole,
    now: Timestamp,
    request_id: &str,
) -> Result<String, Refusal> {
    let mut rules = lock(&state.rules);
    let roll = lock(&state.dice).f64();
    let over_rate = rules
        .bucket
        .as_mut()
        .is_some_and(|bucket| !bucket.take(state.clock.elapsed()));
    if over_rate || roll < rules.throttled_share {
        return Err(Refusal::throttled());
    }
    if rules
        .denied
        .iter()
        .any(|pattern| matches(pattern, &request.role_arn))
    {
        return Err(Refusal::denied(caller, &request.role_arn));
    }
    let longest = rules
        .session_max
        .iter()
        .rfind(|(pattern, _)| matches(pattern, &request.role_arn))
        .map_or(state.options.session_max, |(_, longest)| *longest);
    if request.duration > longest {
        return Err(Refusal::over_session_max());
    }
    if rules.caps_chaining && caller.is_role() && request.duration > CHAINED_SESSION_MAX {
        return Err(Refusal::over_chaining_cap());
    }
    let lifetime = rules.lifetime.unwrap_or(request.duration);
    let fractional = rules.fractional_expiration;
    drop(rules);
    let lifetime = SignedDuration::try_from(lifetime).unwrap_or(SignedDuration::MAX);
    let expires_at = now.saturating_add(lifetime).unwrap_or(Timestamp::MAX);
    let session = lock(&state.issued).issue(request, expires_at);
    Ok(answer::assume_role(
        request, &session, fractional, request_id,
    ))
}

fn remember(state: &State, parameters: &Parameters, outcome: &Result<String, Refusal>) {
    let text = |key: &str| parameters.get(key).map(str::to_owned);
    lock(&state.record).add(Call {
        after: state.clock.elapsed(),
        role_arn: text("RoleArn").unwrap_or_default(),
        session_name: text("RoleSessionName").unwrap_or_default(),
        external_id: text("ExternalId"),
        source_identity: text("SourceIdentity"),
        duration: text("DurationSeconds")
            .and_then(|seconds| seconds.parse().ok())
            .map(Duration::from_secs),
        tags: parameters.pairs("Tags.member", "Key", "Value"),
        transitive_tag_keys: parameters.list("TransitiveTagKeys.member"),
        policy: text("Policy"),
        policy_arns: parameters.list_of("PolicyArns.member", "arn"),
        outcome: match outcome {
            Ok(_) => Outcome::Issued,
            Err(refusal) => Outcome::Refused(refusal.code().to_owned()),
        },
    });
}

/// Whether `text` is the pattern, `*` standing for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("arn:aws:iam::*:role/x", "arn:aws:iam::1:role/y", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
