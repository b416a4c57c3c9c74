//! Objects as rows, for `kubectl get`: the columns and the cells that the real API server prints.
//! Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{list, text};
use super::kind::Kind;

/// Name, type, format, description, priority (0 always shown, 1 with `-o wide`).
type Column = (&'static str, &'static str, &'static str, u8);

const fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Pod => &[
            ("Name", "string", "name", 0),
            ("Ready", "string", "", 0),
            ("Status", "string", "", 0),
            ("Restarts", "string", "", 0),
            ("Age", "string", "", 0),
            ("IP", "string", "", 1),
            ("Node", "string", "", 1),
            ("Nominated Node", "string", "", 1),
            ("Readiness Gates", "string", "", 1),
        ],
        Kind::Namespace => &[
            ("Name", "string", "name", 0),
            ("Status", "string", "", 0),
            ("Age", "string", "", 0),
        ],
        Kind::ServiceAccount => &[
            ("Name", "string", "name", 0),
            ("Secrets", "string", "", 0),
            ("Age", "string", "", 0),
        ],
        Kind::Node => &[
            ("Name", "string", "name", 0),
            ("Status", "string", "", 0),
            ("Roles", "string", "", 0),
            ("Age", "string", "", 0),
            ("Version", "string", "", 0),
            ("Internal-IP", "string", "", 1),
            ("External-IP", "string", "", 1),
            ("OS-Image", "string", "", 1),
            ("Kernel-Version", "string", "", 1),
            ("Container-Runtime", "string", "", 1),
        ],
        Kind::Event => &[
            ("Last Seen", "string", "", 0),
            ("Type", "string", "", 0),
            ("Reason", "string", "", 0),
            ("Object", "string", "", 0),
            ("Subobject", "string", "", 1),
            ("Source", "string", "", 1),
            ("Message", "string", "", 0),
            ("First Seen", "string", "", 1),
            ("Count", "string", "", 1),
            ("Name", "string", "name", 1),
        ],
    }
}

/// `columnDefinitions` of a table of this kind.
pub(crate) fn definitions(kind: Kind) -> Value {
    let definition = |(name, r#type, format, priority): &Column| {
        json!({
            "name": name, "type": r#type, "format": format,
            "description": format!("{name} of the {}", kind.singular()), "priority": priority,
        })
    };
    columns(kind).iter().map(definition).collect()
}

/// One row: the cells, and as much of the object as the client asked to have along.
pub(crate) fn row(kind: Kind, object: &Value, include: Include, now: Timestamp) -> Value {
    let cells = cells(kind, object, now);
    let along = match include {
        Include::Nothing => return json!({"cells": cells}),
        Include::Object => object.clone(),
        Include::Metadata => json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": object.get("metadata"),
        }),
    };
    json!({"cells": cells, "object": along})
}

/// What a row carries besides its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    Nothing,
    Metadata,
    Object,
}

impl Include {
    /// By the query parameter `includeObject`.
    pub(crate) fn of(parameter: &str) -> Self {
        match parameter {
            "None" => Self::Nothing,
            "Object" => Self::Object,
            _ => Self::Metadata,
        }
    }
}

fn cells(kind: Kind, object: &Value, now: Timestamp) -> Vec<Value> {
    let name = text(object, "/metadata/name").into();
    let age = age(text(object, "/metadata/creationTimestamp"), now).into();
    match kind {
        Kind::Pod => pod(object, name, age),
        Kind::Namespace => vec![name, text(object, "/status/phase").into(), age],
        Kind::ServiceAccount => {
            vec![name, list(object, "/secrets").len().to_string().into(), age]
        }
        Kind::Node => node(object, name, age),
        Kind::Event => event(object, name, now),
    }
}

fn or_none(value: &str) -> Value {
    if value.is_empty() {
        "<none>".into()
    } else {
        value.into()
    }
}

fn pod(pod: &Value, name: Value, age: Value) -> Vec<Value> {
    let statuses = list(pod, "/status/containerStatuses");
    let ready = statuses
        .iter()
        .filter(|one| one.get("ready") == Some(&Value::Bool(true)))
        .count();
    let restarts: u64 = statuses
        .iter()
        .filter_map(|one| one.get("restartCount").and_then(Value::as_u64))
        .sum();
    let waiting = statuses
        .iter()
        .map(|one| text(one, "/state/waiting/reason"))
        .rfind(|reason| !reason.is_empty());
    let phase = match text(pod, "/status/phase") {
        "Succeeded" => "Completed",
        "Failed" if text(pod, "/status/reason").is_empty() => "Error",
        phase => phase,
    };
    let status = if text(pod, "/metadata/deletionTimestamp").is_empty() {
        match (waiting, text(pod, "/status/reason")) {
            (None, "") => phase,
            (Some(reason), _) | (None, reason) => reason,
        }
    } else {
        "Terminating"
    };
    vec![
        name,
        format!("{ready}/{}", list(pod, "/spec/containers").len()).into(),
        status.into(),
        restarts.to_string().into(),
        age,
        or_none(text(pod, "/status/podIP")),
        or_none(text(pod, "/spec/nodeName")),
        or_none(text(pod, "/status/nominatedNodeName")),
        "<none>".into(),
    ]
}

fn node(node: &Value, name: Value, age: Value) -> Vec<Value> {
    let ready = list(node, "/status/conditions")
        .iter()
        .find(|one| text(one, "/type") == "Ready");
    let mut status = match ready.map(|condition| text(condition, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let address = |wanted: &str| {
        let addresses = list(node, "/status/addresses");
        let found = addresses.iter().find(|one| text(one, "/type") == wanted);
        or_none(found.map_or("", |one| text(one, "/address")))
    };
    let roles: Vec<&str> = node
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(label, _)| label.strip_prefix("node-role.kubernetes.io/"))
        .collect();
    let info = |field: &str| text(node, &format!("/status/nodeInfo/{field}")).into();
    vec![
        name,
        status.into(),
        or_none(&roles.join(",")),
        age,
        info("kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn event(event: &Value, name: Value, now: Timestamp) -> Vec<Value> {
    let first = [text(event, "/firstTimestamp"), text(event, "/eventTime")];
    let last = [
        text(event, "/series/lastObservedTime"),
        text(event, "/lastTimestamp"),
    ];
    let seen = |times: &[&str]| {
        age(
            times.iter().find(|time| !time.is_empty()).unwrap_or(&""),
            now,
        )
    };
    let count = event
        .get("count")
        .or_else(|| event.pointer("/series/count"));
    let source = match text(event, "/source/component") {
        "" => text(event, "/reportingComponent"),
        component => component,
    };
    vec![
        seen(&[last, first].concat()).into(),
        text(event, "/type").into(),
        text(event, "/reason").into(),
        format!(
            "{}/{}",
            text(event, "/involvedObject/kind").to_lowercase(),
            text(event, "/involvedObject/name")
        )
        .into(),
        text(event, "/involvedObject/fieldPath").into(),
        source.into(),
        text(event, "/message").trim().into(),
        seen(&first).into(),
        count
            .and_then(Value::as_u64)
            .unwrap_or(1)
            .to_string()
            .into(),
        name,
    ]
}

/// How long ago, in the words of `kubectl`: `5s`, `3m20s`, `12m`, `4h30m`, `2d`.
fn age(since: &str, now: Timestamp) -> String {
    let Ok(since) = since.parse::<Timestamp>() else {
        return "<unknown>".to_owned();
    };
    let seconds = now.duration_since(since).as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |big: i64, unit: char, rest: i64, small: char| match rest {
        0 => format!("{big}{unit}"),
        rest => format!("{big}{unit}{rest}{small}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, 'm', seconds % 60, 's'),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => pair(days, 'd', hours % 24, 'h'),
        () => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use serde_json::{Value, json};

    use super::{Include, Kind, age, definitions, row};

    #[track_caller]
    fn check(kind: Kind, object: &Value, expected: &str) {
        let now: Timestamp = "2030-01-01T00:00:30Z".parse().unwrap();
        let row = row(kind, object, Include::Nothing, now);
        let cells: Vec<&str> = row["cells"]
            .as_array()
            .unwrap()
            .iter()
            .map(|cell| cell.as_str().unwrap())
            .collect();
        assert_eq!(cells.join("|"), expected);
        assert_eq!(cells.len(), definitions(kind).as_array().unwrap().len());
    }

    #[test]
    fn pods() {
        let mut pod = json!({
            "metadata": {"name": "a", "creationTimestamp": "2030-01-01T00:00:00Z"},
            "spec": {"containers": [{}, {}], "nodeName": "n"},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [
                {"ready": true, "restartCount": 2}, {"ready": false, "restartCount": 1},
            ]},
        });
        check(
            Kind::Pod,
            &pod,
            "a|1/2|Running|3|30s|10.0.0.1|n|<none>|<none>",
        );
        pod["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:00:10Z");
        check(
            Kind::Pod,
            &pod,
            "a|1/2|Terminating|3|30s|10.0.0.1|n|<none>|<none>",
        );
        let bare = json!({"metadata": {"name": "a"}, "status": {"phase": "Succeeded"}});
        check(
            Kind::Pod,
            &bare,
            "a|0/0|Completed|0|<unknown>|<none>|<none>|<none>|<none>",
        );
    }

    #[test]
    fn the_rest() {
        let time = "2030-01-01T00:00:00Z";
        let object = json!({
            "metadata": {"name": "a", "creationTimestamp": time,
                "labels": {"node-role.kubernetes.io/worker": ""}},
            "status": {"phase": "Active", "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.9"}]},
        });
        check(Kind::Namespace, &object, "a|Active|30s");
        check(Kind::ServiceAccount, &object, "a|0|30s");
        check(
            Kind::Node,
            &object,
            "a|Ready|worker|30s||10.0.0.9|<none>|||",
        );
        let event = json!({
            "metadata": {"name": "a.1"}, "type": "Warning", "reason": "R", "message": "m\n",
            "involvedObject": {"kind": "Pod", "name": "a"}, "eventTime": time,
            "reportingComponent": "kiam",
        });
        check(Kind::Event, &event, "30s|Warning|R|pod/a||kiam|m|30s|1|a.1");
    }

    #[test]
    fn ages() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        for (seconds, expected) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (3600, "60m"),
            (4 * 3600 + 60, "4h1m"),
            (20 * 3600, "20h"),
            (3 * 86_400 + 3600, "3d1h"),
            (30 * 86_400, "30d"),
        ] {
            let since = now - SignedDuration::from_secs(seconds);
            assert_eq!(age(&since.to_string(), now), expected, "{seconds}");
        }
    }
}
