//! How one client sees objects: all of them or their metadata, as core/v1 or events.k8s.io/v1, or as
//! rows of a table.
//!
//! The common view is the stored bytes themselves. The metadata view of a change is made once and
//! shared; tables and events.k8s.io are made for each client, because only people look at them.

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::events::to_events_v1;
use super::kind::{Group, Kind};
use super::route::Form;
use super::store::{CLOSING, Change, Object, Verb};
use super::table::{Include, definitions, row};

/// What a client asked to see, and as what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    pub(crate) kind: Kind,
    pub(crate) group: Group,
    pub(crate) form: Form,
    pub(crate) include: Include,
}

#[derive(Deserialize)]
struct MetadataOnly<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

impl View {
    /// Everything, as it is kept.
    const fn is_plain(self) -> bool {
        matches!((self.form, self.group), (Form::Full, Group::Core))
    }

    /// The object alone.
    pub(crate) fn object(self, object: &Object, now: Timestamp) -> Bytes {
        match self.form {
            Form::Full if self.is_plain() => object.body(),
            Form::Full => self.value(object).to_string().into(),
            Form::Metadata => metadata(&object.body()),
            Form::Table => {
                let row = row(self.kind, &object.value(), self.include, now);
                self.table(&json!({}), &[row]).to_string().into()
            }
        }
    }

    fn value(self, object: &Object) -> Value {
        let mut value = object.value();
        if self.group == Group::Events {
            to_events_v1(&mut value);
        }
        value
    }

    fn table(self, metadata: &Value, rows: &[Value]) -> Value {
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "columnDefinitions": definitions(self.kind), "rows": rows,
        })
    }

    /// What a list begins with; its items follow, with commas between them, and then `]}`.
    pub(crate) fn list_opening(self, metadata: &Value) -> String {
        let kind = self.kind.name();
        match self.form {
            Form::Full => format!(
                r#"{{"kind":"{kind}List","apiVersion":"{}","metadata":{metadata},"items":["#,
                self.group.api_version()
            ),
            Form::Metadata => format!(
                r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{metadata},"items":["#
            ),
            Form::Table => format!(
                r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{metadata},"columnDefinitions":{},"rows":["#,
                definitions(self.kind)
            ),
        }
    }

    /// One element of a list.
    pub(crate) fn list_item(self, object: &Object, now: Timestamp) -> Bytes {
        match self.form {
            Form::Table => row(self.kind, &object.value(), self.include, now)
                .to_string()
                .into(),
            Form::Full | Form::Metadata => self.object(object, now),
        }
    }

    /// A watch event saying that `verb` happened to `object`.
    pub(crate) fn event(self, verb: Verb, object: &Object, now: Timestamp) -> Bytes {
        if self.is_plain() && verb == object.announced() {
            return object.frame();
        }
        frame(verb, &self.object(object, now))
    }

    /// The watch event of a change, shared with the other watchers where it can be.
    pub(crate) fn change(self, change: &Change, now: Timestamp) -> Bytes {
        if self.form == Form::Metadata && self.group == Group::Core {
            let make = || frame(change.verb(), &metadata(&change.object.body()));
            return change.metadata_frame.get_or_init(make).clone();
        }
        self.event(change.verb(), &change.object, now)
    }

    /// A bookmark: everything up to `revision` has been sent.
    pub(crate) fn bookmark(self, revision: u64, initial_events_end: bool) -> Bytes {
        let mut metadata =
            json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_events_end {
            super::json::put(
                &mut metadata,
                &["annotations", "k8s.io/initial-events-end"],
                "true",
            );
        }
        let object = match self.form {
            Form::Full => json!({
                "kind": self.kind.name(), "apiVersion": self.group.api_version(),
                "metadata": metadata,
            }),
            Form::Metadata => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
            }),
            Form::Table => {
                let row = json!({"cells": [], "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata,
                }});
                self.table(&json!({"resourceVersion": revision.to_string()}), &[row])
            }
        };
        format!("{}\n", json!({"type": "BOOKMARK", "object": object})).into()
    }
}

fn metadata(body: &[u8]) -> Bytes {
    let whole: Option<MetadataOnly<'_>> = serde_json::from_slice(body).ok();
    let metadata = whole.as_ref().map_or("{}", |whole| whole.metadata.get());
    format!(
        r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{metadata}}}"#
    )
    .into()
}

fn frame(verb: Verb, object: &[u8]) -> Bytes {
    [verb.opening().as_bytes(), object, CLOSING.as_bytes()]
        .concat()
        .into()
}
