//! Everything the parts of one simulated API server share, and the few steps that need more than the
//! store: ending a pod, ending a namespace.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ClusterOptions;
use super::counters::Counters;
use super::json::{list, put, text, time};
use super::keys::Keys;
use super::kind::Kind;
use super::read::Unfinisheds;
use super::status::ApiError;
use super::store::{Object, Store};
use crate::clock::Clock;
use crate::faults::Faults;
use crate::shared::lock;

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) options: ClusterOptions,
    pub(crate) store: Mutex<Store>,
    pub(crate) unfinished: Mutex<Unfinisheds>,
    pub(crate) keys: Mutex<Keys>,
    pub(crate) faults: Faults,
    pub(crate) clock: Clock,
    pub(crate) counters: Counters,
}

/// What is left to do after a deletion was accepted.
#[derive(Debug)]
pub(crate) enum Deletion {
    /// The object is gone.
    Done(Arc<Object>),
    /// It is marked, and goes after this time unless somebody ends it earlier.
    Marked(Arc<Object>, Duration),
    /// It is marked, and goes when its last finalizer does.
    Held(Arc<Object>),
}

/// Adds an object to a namespace that exists and is not being deleted.
pub(crate) fn insert(
    store: &mut Store,
    kind: Kind,
    value: Value,
    now: Timestamp,
) -> Result<Arc<Object>, ApiError> {
    if kind.namespaced() {
        let namespace = text(&value, "/metadata/namespace");
        let parent = store.get(Kind::Namespace, "", namespace)?;
        if kind != Kind::Event && is_ending(&parent) {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(ApiError::forbidden(
                kind,
                text(&value, "/metadata/name"),
                &why,
            ));
        }
    }
    let object = store.insert(kind, value, now)?;
    if kind == Kind::Namespace {
        // The service account controller does this moments later; here nobody has to wait for it.
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"namespace": &*object.name, "name": "default"},
        });
        store.insert(Kind::ServiceAccount, account, now)?;
    }
    Ok(object)
}

/// The one field that decides whether a namespace takes new content: it is not parsed in full for
/// every pod that is created in it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct NamespacePhase {
    status: Phase,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Phase {
    phase: String,
}

fn is_ending(namespace: &Object) -> bool {
    let seen: NamespacePhase = serde_json::from_slice(&namespace.body()).unwrap_or_default();
    seen.status.phase == "Terminating"
}

/// Puts a new version of an object in place, unless nothing would change.
///
/// An object that was only waiting for its last finalizer goes instead.
pub(crate) fn replace(
    store: &mut Store,
    kind: Kind,
    before: &Arc<Object>,
    value: Value,
) -> Arc<Object> {
    let deleting = value.pointer("/metadata/deletionTimestamp").is_some();
    let over = value
        .pointer("/metadata/deletionGracePeriodSeconds")
        .is_none_or(|grace| grace == 0);
    if deleting && over && list(&value, "/metadata/finalizers").is_empty() {
        return store.remove(kind, before);
    }
    if value == before.value() {
        return Arc::clone(before);
    }
    store.replace(kind, before, value)
}

/// Deletes an object as an API server does: a pod on a node is given its grace, finalizers hold
/// everything, a namespace takes its content along.
pub(crate) fn delete(
    store: &mut Store,
    kind: Kind,
    object: &Arc<Object>,
    grace: Option<Duration>,
    now: Timestamp,
) -> Deletion {
    let mut value = object.value();
    let held = !list(&value, "/metadata/finalizers").is_empty();
    let grace = match kind {
        // Nobody runs a pod that has no node.
        Kind::Pod if !text(&value, "/spec/nodeName").is_empty() => grace.unwrap_or_else(|| {
            let own = value
                .pointer("/spec/terminationGracePeriodSeconds")
                .and_then(Value::as_u64);
            Duration::from_secs(own.unwrap_or(30))
        }),
        Kind::Pod | Kind::Namespace | Kind::ServiceAccount | Kind::Node | Kind::Event => {
            Duration::ZERO
        }
    };
    if grace.is_zero() && !held {
        if kind == Kind::Namespace {
            end_namespace(store, object, now);
        }
        let last = store.get(kind, &object.namespace, &object.name);
        return Deletion::Done(store.remove(kind, &last.unwrap_or_else(|_| Arc::clone(object))));
    }
    let at = now.saturating_add(SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX));
    let at = time(at.unwrap_or(Timestamp::MAX));
    // A second deletion may shorten the wait, never lengthen it.
    let earlier = text(&value, "/metadata/deletionTimestamp");
    if earlier.is_empty() || *at < *earlier {
        put(&mut value, &["metadata", "deletionTimestamp"], at);
        put(
            &mut value,
            &["metadata", "deletionGracePeriodSeconds"],
            grace.as_secs(),
        );
    }
    let marked = if value == object.value() {
        Arc::clone(object)
    } else {
        store.replace(kind, object, value)
    };
    if held {
        Deletion::Held(marked)
    } else {
        Deletion::Marked(marked, grace)
    }
}

fn end_namespace(store: &mut Store, namespace: &Arc<Object>, now: Timestamp) {
    let mut value = namespace.value();
    put(&mut value, &["metadata", "deletionTimestamp"], time(now));
    put(&mut value, &["status", "phase"], "Terminating");
    store.replace(Kind::Namespace, namespace, value);
    for kind in [Kind::Pod, Kind::ServiceAccount, Kind::Event] {
        let content: Vec<Arc<Object>> = store
            .range(kind, Some(&namespace.name))
            .map(Arc::clone)
            .collect();
        for object in content {
            store.remove(kind, &object);
        }
    }
}

impl State {
    /// Deletes, and sees to it that a pod goes when its grace is over.
    pub(crate) fn delete(
        self: &Arc<Self>,
        kind: Kind,
        object: &Arc<Object>,
        grace: Option<Duration>,
    ) -> Arc<Object> {
        let deletion = delete(
            &mut lock(&self.store),
            kind,
            object,
            grace,
            self.clock.now(),
        );
        match deletion {
            Deletion::Done(object) | Deletion::Held(object) => object,
            Deletion::Marked(object, grace) => {
                let wait = grace.min(self.options.termination_max);
                self.end_later(kind, &object, wait);
                object
            }
        }
    }

    /// Takes the object away after `wait`, unless another of its name has come meanwhile.
    fn end_later(self: &Arc<Self>, kind: Kind, object: &Arc<Object>, wait: Duration) {
        let (state, object) = (Arc::downgrade(self), Arc::clone(object));
        drop(tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let Some(state) = state.upgrade() else { return };
            let mut store = lock(&state.store);
            let Ok(present) = store.get(kind, &object.namespace, &object.name) else {
                return;
            };
            let uid = |object: &Object| text(&object.value(), "/metadata/uid").to_owned();
            if uid(&present) == uid(&object) {
                store.remove(kind, &present);
            }
        }));
    }
}
