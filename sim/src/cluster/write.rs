//! POST, PUT, PATCH and DELETE: reads what the client sent, has it admitted, and changes the store.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::admission::{Part, admit_new, admit_update};
use super::events::{complete, to_core, to_events_v1};
use super::json::{put, text};
use super::kind::{Group, Kind};
use super::patch::{self, Style};
use super::protobuf;
use super::route::{Query, Subresource};
use super::state::{self, State};
use super::status::ApiError;
use super::store::{Object, Store};
use super::tokens;
use crate::shared::lock;

/// Which object a request is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) kind: Kind,
    pub(crate) group: Group,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

/// A body as the client sent it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent<'a> {
    pub(crate) content_type: &'a str,
    pub(crate) body: &'a [u8],
}

impl Sent<'_> {
    /// The object in it. A client that names no type is believed to send JSON, and so is `curl -d`.
    pub(crate) fn value(self) -> Result<Value, ApiError> {
        match self
            .content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
        {
            "" | "*/*" | "application/json" | "application/x-www-form-urlencoded" => {
                parse(self.body)
            }
            protobuf::MEDIA => protobuf::parse(self.body),
            _ => Err(ApiError::unsupported_media("application/json")),
        }
    }
}

fn parse(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!("the object provided is unrecognized: {error}"))
    })
}

/// Creates an object in a collection.
pub(crate) fn create(
    state: &State,
    target: Target<'_>,
    sent: Sent<'_>,
    query: &Query,
) -> Result<Arc<Object>, ApiError> {
    let mut value = sent.value()?;
    to_core_of(target, &mut value);
    let mut store = lock(&state.store);
    insert_new(&mut store, state, target, value, query)
}

fn to_core_of(target: Target<'_>, value: &mut Value) {
    if target.kind == Kind::Event && value.is_object() {
        to_core(value);
    }
}

fn insert_new(
    store: &mut Store,
    state: &State,
    target: Target<'_>,
    mut value: Value,
    query: &Query,
) -> Result<Arc<Object>, ApiError> {
    let suffix: String = std::iter::repeat_with(|| store.dice().lowercase())
        .take(5)
        .collect();
    admit_new(target.kind, target.namespace, &mut value, &suffix)?;
    if target.kind == Kind::Event {
        complete(&mut value);
    }
    if query.text("dryRun") == "All" {
        let mut rehearsal = Store::new(1, 0);
        return rehearsal.insert(target.kind, value, state.clock.now());
    }
    state::insert(store, target.kind, value, state.clock.now())
}

/// Replaces an object, or its status.
pub(crate) fn update(
    state: &State,
    target: Target<'_>,
    part: Part,
    sent: Sent<'_>,
) -> Result<Arc<Object>, ApiError> {
    let mut value = sent.value()?;
    to_core_of(target, &mut value);
    let mut store = lock(&state.store);
    let before = store.get(target.kind, target.namespace, target.name)?;
    admit_update(target.kind, part, &before.value(), &mut value)?;
    Ok(state::replace(&mut store, target.kind, &before, value))
}

/// Changes part of an object, or of its status. Apply creates what is not there (the flag returned).
pub(crate) fn patch(
    state: &State,
    target: Target<'_>,
    part: Part,
    (style, body): (Style, &[u8]),
    query: &Query,
) -> Result<(Arc<Object>, bool), ApiError> {
    let mut store = lock(&state.store);
    let before = match store.get(target.kind, target.namespace, target.name) {
        Err(_) if style == Style::Apply && part == Part::Main => {
            let mut value = parse(body)?;
            put(&mut value, &["metadata", "name"], target.name);
            to_core_of(target, &mut value);
            return Ok((insert_new(&mut store, state, target, value, query)?, true));
        }
        found => found?,
    };
    let kept = before.value();
    let mut value = kept.clone();
    if target.group == Group::Events {
        to_events_v1(&mut value);
    }
    patch::apply(style, &mut value, body)?;
    to_core_of(target, &mut value);
    admit_update(target.kind, part, &kept, &mut value)?;
    if query.text("dryRun") == "All" {
        return Ok((before, false));
    }
    Ok((
        state::replace(&mut store, target.kind, &before, value),
        false,
    ))
}

/// `DeleteOptions`, from the body and the query.
#[derive(Debug, Default)]
pub(crate) struct DeleteOptions {
    grace: Option<Duration>,
    uid: String,
    revision: String,
    dry_run: bool,
}

impl DeleteOptions {
    pub(crate) fn parse(body: &[u8], query: &Query) -> Result<Self, ApiError> {
        let value = if body.is_empty() {
            json!({})
        } else {
            parse(body)?
        };
        let given = value.get("gracePeriodSeconds").and_then(Value::as_u64);
        let grace = query.number("gracePeriodSeconds")?.or(given);
        Ok(Self {
            grace: grace.map(Duration::from_secs),
            uid: text(&value, "/preconditions/uid").to_owned(),
            revision: text(&value, "/preconditions/resourceVersion").to_owned(),
            dry_run: query.text("dryRun") == "All" || text(&value, "/dryRun/0") == "All",
        })
    }
}

/// Deletes one object, now or after its grace.
pub(crate) fn delete(
    state: &Arc<State>,
    target: Target<'_>,
    options: &DeleteOptions,
) -> Result<Arc<Object>, ApiError> {
    let object = lock(&state.store).get(target.kind, target.namespace, target.name)?;
    let value = object.value();
    for (wanted, kept) in [
        (&options.uid, text(&value, "/metadata/uid")),
        (&options.revision, text(&value, "/metadata/resourceVersion")),
    ] {
        if !wanted.is_empty() && wanted != kept {
            let why =
                format!("Precondition failed: {wanted} in precondition, {kept} in object meta");
            return Err(ApiError::conflict(target.kind, target.name, &why));
        }
    }
    if options.dry_run {
        return Ok(object);
    }
    Ok(state.delete(target.kind, &object, options.grace))
}

/// Deletes every selected object of a collection and says how many there were.
pub(crate) fn delete_collection(
    state: &Arc<State>,
    kind: Kind,
    namespace: Option<&str>,
    query: &Query,
    options: &DeleteOptions,
) -> Result<usize, ApiError> {
    let selector = query.selector(kind)?;
    let objects: Vec<Arc<Object>> = lock(&state.store)
        .range(kind, namespace)
        .filter(|object| selector.matches(object))
        .map(Arc::clone)
        .collect();
    for object in &objects {
        state.delete(kind, object, options.grace);
    }
    Ok(objects.len())
}

/// POST to a subresource: a binding or a token.
pub(crate) fn post_to(
    state: &State,
    target: Target<'_>,
    part: Subresource,
    sent: Sent<'_>,
) -> Result<Value, ApiError> {
    let value = sent.value()?;
    let mut store = lock(&state.store);
    match part {
        Subresource::Binding => {
            bind(
                &mut store,
                target.namespace,
                target.name,
                text(&value, "/target/name"),
            )?;
            Ok(success())
        }
        Subresource::Token => tokens::request(
            &mut store,
            &lock(&state.keys),
            &state.options.issuer,
            (target.namespace, target.name),
            &value,
            state.clock.now(),
        ),
        Subresource::Itself | Subresource::Status => Err(ApiError::method_not_allowed()),
    }
}

/// Puts a pod on a node, once.
pub(crate) fn bind(
    store: &mut Store,
    namespace: &str,
    name: &str,
    node: &str,
) -> Result<(), ApiError> {
    if node.is_empty() {
        return Err(ApiError::bad_request("binding.target.name: Required value"));
    }
    let pod = store.get(Kind::Pod, namespace, name)?;
    let mut value = pod.value();
    let already = text(&value, "/spec/nodeName");
    if !already.is_empty() {
        let why = format!("pod {name} is already assigned to node \"{already}\"");
        return Err(ApiError::conflict(Kind::Pod, name, &why));
    }
    put(&mut value, &["spec", "nodeName"], node);
    store.replace(Kind::Pod, &pod, value);
    Ok(())
}

/// The `Status` of something that went well.
pub(crate) fn success() -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Success", "code": 201,
    })
}
