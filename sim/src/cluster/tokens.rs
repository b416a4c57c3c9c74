//! ServiceAccount tokens: issued for a `TokenRequest`, judged for a `TokenReview`.
//!
//! A token is believed only while what it is bound to exists: the same ServiceAccount and the same
//! pod, by uid. Pure but for the keys, which are handed in.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{list, text, time};
use super::keys::Keys;
use super::kind::Kind;
use super::status::{ApiError, Cause};
use super::store::Store;
use crate::shared::uuid;

/// The audience of the API server itself.
pub(crate) const API_AUDIENCE: &str = "https://kubernetes.default.svc";
/// The shortest and longest life a `TokenRequest` may ask for, and the one it gets without asking.
const LIFE_MIN_S: u64 = 600;
const LIFE_MAX_S: u64 = 1 << 32;
const LIFE_DEFAULT_S: u64 = 3600;

/// Whom a token is for and how long it is good.
#[derive(Debug)]
pub(crate) struct Grant<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) service_account: &'a str,
    pub(crate) pod: Option<&'a str>,
    pub(crate) audiences: Vec<String>,
    pub(crate) life: Duration,
}

fn uid(
    store: &Store,
    kind: Kind,
    namespace: &str,
    name: &str,
) -> Result<(String, Value), ApiError> {
    let value = store.get(kind, namespace, name)?.value();
    Ok((text(&value, "/metadata/uid").to_owned(), value))
}

/// Signs a token as the API server would.
pub(crate) fn issue(
    store: &mut Store,
    keys: &Keys,
    issuer: &str,
    grant: &Grant<'_>,
    now: Timestamp,
) -> Result<String, ApiError> {
    let (account_uid, _) = uid(
        store,
        Kind::ServiceAccount,
        grant.namespace,
        grant.service_account,
    )?;
    let mut bound = json!({
        "namespace": grant.namespace,
        "serviceaccount": {"name": grant.service_account, "uid": account_uid},
    });
    if let (Some(pod), Some(bound)) = (grant.pod, bound.as_object_mut()) {
        let (pod_uid, value) = uid(store, Kind::Pod, grant.namespace, pod)?;
        if text(&value, "/spec/serviceAccountName") != grant.service_account {
            let why = "cannot bind token for serviceaccount to pod running with different serviceaccount name";
            return Err(ApiError::forbidden(
                Kind::ServiceAccount,
                grant.service_account,
                why,
            ));
        }
        bound.insert("pod".to_owned(), json!({"name": pod, "uid": pod_uid}));
        let node = text(&value, "/spec/nodeName");
        if !node.is_empty() {
            let mut claim = json!({"name": node});
            if let (Ok((node_uid, _)), Some(claim)) =
                (uid(store, Kind::Node, "", node), claim.as_object_mut())
            {
                claim.insert("uid".to_owned(), node_uid.into());
            }
            bound.insert("node".to_owned(), claim);
        }
    }
    let issued_at = now.as_second();
    let expires_at = issued_at.saturating_add(seconds(grant.life));
    let claims = json!({
        "iss": issuer,
        "sub": format!("system:serviceaccount:{}:{}", grant.namespace, grant.service_account),
        "aud": grant.audiences,
        "iat": issued_at,
        "nbf": issued_at,
        "exp": expires_at,
        "jti": uuid(store.dice()),
        "kubernetes.io": bound,
    });
    keys.sign(&claims).map_err(|_failed| ApiError::fault(500))
}

fn seconds(life: Duration) -> i64 {
    i64::try_from(life.as_secs()).unwrap_or(i64::MAX)
}

/// Answers `POST …/serviceaccounts/NAME/token`.
pub(crate) fn request(
    store: &mut Store,
    keys: &Keys,
    issuer: &str,
    (namespace, service_account): (&str, &str),
    request: &Value,
    now: Timestamp,
) -> Result<Value, ApiError> {
    let asked = request
        .pointer("/spec/expirationSeconds")
        .and_then(Value::as_u64);
    let life_s = asked.unwrap_or(LIFE_DEFAULT_S);
    if !(LIFE_MIN_S..=LIFE_MAX_S).contains(&life_s) {
        let why = "may not specify a duration less than 10 minutes or larger than 2^32 seconds";
        let cause = Cause::invalid("spec.expirationSeconds", &life_s.to_string(), why);
        return Err(ApiError::invalid(
            Kind::ServiceAccount,
            service_account,
            &[cause],
        ));
    }
    let mut audiences = texts(request, "/spec/audiences");
    if audiences.is_empty() {
        audiences.push(API_AUDIENCE.to_owned());
    }
    let reference = request
        .pointer("/spec/boundObjectRef")
        .filter(|value| value.is_object());
    let pod = match reference.map(|value| (text(value, "/kind"), text(value, "/name"))) {
        None => None,
        Some(("Pod", name)) => Some(name),
        Some((kind, _)) => {
            let message = format!("cannot bind token to object of type {kind}");
            return Err(ApiError::bad_request(message));
        }
    };
    if let Some((pod, given)) = pod.zip(reference.map(|value| text(value, "/uid"))) {
        let (kept, _) = uid(store, Kind::Pod, namespace, pod)?;
        if !given.is_empty() && given != kept {
            let why = format!(
                "the UID in the bound object reference ({given}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(ApiError::conflict(Kind::Pod, pod, &why));
        }
    }
    let life = Duration::from_secs(life_s);
    let grant = Grant {
        namespace,
        service_account,
        pod,
        audiences: audiences.clone(),
        life,
    };
    let token = issue(store, keys, issuer, &grant, now)?;
    let expires_at = now.saturating_add(jiff::SignedDuration::from_secs(seconds(life)));
    Ok(json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": service_account, "namespace": namespace, "creationTimestamp": time(now)},
        "spec": {
            "audiences": audiences,
            "expirationSeconds": life_s,
            "boundObjectRef": reference.cloned(),
        },
        "status": {"token": token, "expirationTimestamp": time(expires_at.unwrap_or(Timestamp::MAX))},
    }))
}

fn texts(value: &Value, pointer: &str) -> Vec<String> {
    list(value, pointer)
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// Whom a token speaks for, and for which of the audiences asked about.
pub(crate) fn judge(
    store: &Store,
    keys: &Keys,
    issuer: &str,
    token: &str,
    audiences: &[String],
    now: Timestamp,
) -> Result<(Value, Vec<String>), String> {
    let claims = keys.verify(token).ok_or("invalid bearer token")?;
    let second = |pointer| claims.pointer(pointer).and_then(Value::as_i64);
    if text(&claims, "/iss") != issuer {
        return Err("invalid bearer token, unknown issuer".to_owned());
    }
    if second("/exp").is_none_or(|at| at <= now.as_second()) {
        return Err("[invalid bearer token, service account token has expired]".to_owned());
    }
    if second("/nbf").is_none_or(|at| at > now.as_second()) {
        return Err("[invalid bearer token, service account token is not valid yet]".to_owned());
    }
    let held = texts(&claims, "/aud");
    let shared: Vec<String> = audiences
        .iter()
        .filter(|wanted| held.contains(wanted))
        .cloned()
        .collect();
    if shared.is_empty() {
        return Err(format!(
            "[invalid bearer token, token audiences {held:?} is invalid for the target audiences {audiences:?}]"
        ));
    }
    let bound = claims.get("kubernetes.io").cloned().unwrap_or_default();
    let namespace = text(&bound, "/namespace");
    for (kind, claim, words) in [
        (Kind::ServiceAccount, "serviceaccount", "service account"),
        (Kind::Pod, "pod", "pod"),
    ] {
        let Some(claim) = bound.get(claim) else {
            continue;
        };
        let same = uid(store, kind, namespace, text(claim, "/name"))
            .is_ok_and(|(kept, _)| kept == text(claim, "/uid"));
        if !same {
            return Err(format!(
                "[invalid bearer token, {words} has been deleted or replaced]"
            ));
        }
    }
    Ok((user(&claims, &bound), shared))
}

/// `status.user` of a review.
fn user(claims: &Value, bound: &Value) -> Value {
    let mut extra = json!({
        "authentication.kubernetes.io/credential-id": [format!("JTI={}", text(claims, "/jti"))],
    });
    for (claim, key) in [
        ("/pod/name", "pod-name"),
        ("/pod/uid", "pod-uid"),
        ("/node/name", "node-name"),
        ("/node/uid", "node-uid"),
    ] {
        let value = text(bound, claim);
        if let (false, Some(extra)) = (value.is_empty(), extra.as_object_mut()) {
            extra.insert(
                format!("authentication.kubernetes.io/{key}"),
                json!([value]),
            );
        }
    }
    let namespace = text(bound, "/namespace");
    json!({
        "username": text(claims, "/sub"),
        "uid": text(bound, "/serviceaccount/uid"),
        "groups": [
            "system:serviceaccounts",
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated",
        ],
        "extra": extra,
    })
}

/// Answers `POST …/tokenreviews`.
pub(crate) fn review(
    store: &Store,
    keys: &Keys,
    issuer: &str,
    review: &Value,
    now: Timestamp,
) -> Result<Value, ApiError> {
    let token = text(review, "/spec/token");
    if token.is_empty() {
        return Err(ApiError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let mut audiences = texts(review, "/spec/audiences");
    if audiences.is_empty() {
        audiences.push(API_AUDIENCE.to_owned());
    }
    let status = match judge(store, keys, issuer, token, &audiences, now) {
        Ok((user, shared)) => json!({"authenticated": true, "user": user, "audiences": shared}),
        Err(error) => json!({"user": {}, "error": error}),
    };
    Ok(json!({
        "kind": "TokenReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"creationTimestamp": null},
        "spec": review.get("spec"),
        "status": status,
    }))
}
