//! One request to the service: read, decided, answered, recorded.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};

use super::State;
use super::answer;
use super::identity::Identity;
use super::record::{Call, Outcome};
use super::refusal::Refusal;
use super::request::{self, AssumeRole, Parameters};
use crate::faults::Fate;
use crate::listen::{Answer, endure, whole};
use crate::shared::{lock, uuid};

/// The largest request body; the real limit on policies and tags is far below.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// The longest session that role chaining gives.
const CHAINED_SESSION_MAX: Duration = Duration::from_hours(1);

/// Answers one request.
pub(super) async fn handle(state: Arc<State>, request: Request<Incoming>) -> Answer {
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
