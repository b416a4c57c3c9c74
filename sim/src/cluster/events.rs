//! Events under their two names: kept as core/v1, shown also as events.k8s.io/v1. Pure.

use serde_json::Value;

use super::json::{object, put_default};

/// Field names that differ: core/v1, events.k8s.io/v1.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// The core event as events.k8s.io/v1 shows it.
pub(crate) fn to_events_v1(event: &mut Value) {
    let fields = object(event);
    for (core, new) in NAMES {
        if let Some(value) = fields.remove(*core) {
            fields.insert((*new).to_owned(), value);
        }
    }
    fields.insert("apiVersion".to_owned(), "events.k8s.io/v1".into());
}

/// What a client of events.k8s.io/v1 sent, as it is kept. A core event stays as it is, but for its
/// version.
pub(crate) fn to_core(event: &mut Value) {
    let fields = object(event);
    for (core, new) in NAMES {
        if let Some(value) = fields.remove(*new) {
            fields.insert((*core).to_owned(), value);
        }
    }
    if fields.get("apiVersion").and_then(Value::as_str) == Some("events.k8s.io/v1") {
        fields.insert("apiVersion".to_owned(), "v1".into());
    }
}

/// Completes an event that is about to be kept.
pub(crate) fn complete(event: &mut Value) {
    for key in ["involvedObject", "source"] {
        put_default(event, &[key], Value::Object(serde_json::Map::new()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{to_core, to_events_v1};

    #[test]
    fn the_two_forms_are_one_event() {
        let core = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "involvedObject": {"name": "a"},
            "message": "m",
            "reportingComponent": "c",
            "eventTime": "t",
        });
        let mut event = core.clone();
        to_events_v1(&mut event);
        assert_eq!(event["regarding"]["name"], "a");
        assert_eq!(event["note"], "m");
        assert_eq!(event["apiVersion"], "events.k8s.io/v1");
        to_core(&mut event);
        assert_eq!(event, core);
    }
}
