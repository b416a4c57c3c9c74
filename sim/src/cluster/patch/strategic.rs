//! Strategic merge: a merge patch that merges the elements of known lists by their key instead of
//! replacing the list, with the directives `$patch`, `$deleteFromPrimitiveList/…`,
//! `$setElementOrder/…` and `$retainKeys`.
//!
//! The keys are those of the Kubernetes API types; a list that is not named here is replaced, as
//! `tolerations` and `taints` are by the real API server.

use serde_json::{Map, Value};

use crate::cluster::json::object;

/// Lists whose elements are merged, with the field that tells the elements apart.
const KEYED: &[(&str, &str)] = &[
    ("containers", "name"),
    ("initContainers", "name"),
    ("ephemeralContainers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("imagePullSecrets", "name"),
    ("secrets", "name"),
    ("volumeMounts", "mountPath"),
    ("volumeDevices", "devicePath"),
    ("ports", "containerPort"),
    ("hostAliases", "ip"),
    ("podIPs", "ip"),
    ("hostIPs", "ip"),
    ("conditions", "type"),
    ("addresses", "type"),
    ("ownerReferences", "uid"),
    ("topologySpreadConstraints", "topologyKey"),
];

/// Lists of plain values that are merged as sets.
const SETS: &[&str] = &["finalizers"];

/// Merges `patch` into `target`.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if patch.get("$patch").and_then(Value::as_str) == Some("replace") {
        *target = Value::Object(without_directives(patch));
        return;
    }
    let target = object(target);
    if let Some(retained) = patch.get("$retainKeys").and_then(Value::as_array) {
        target.retain(|key, _| retained.iter().any(|one| one.as_str() == Some(key)));
    }
    for (key, value) in patch {
        if let Some(directive) = key.strip_prefix('$') {
            if let Some(list) = directive.strip_prefix("deleteFromPrimitiveList/") {
                remove_values(target.get_mut(list), value);
            }
        } else if value.is_null() || value.get("$patch").and_then(Value::as_str) == Some("delete") {
            target.remove(key);
        } else {
            merge_field(
                key,
                target.entry(key.as_str()).or_insert(Value::Null),
                value,
            );
        }
    }
    for (key, order) in patch {
        if let (Some(list), Some(order)) = (key.strip_prefix("$setElementOrder/"), order.as_array())
            && let Some(Value::Array(elements)) = target.get_mut(list)
        {
            reorder(list, elements, order);
        }
    }
}

fn merge_field(key: &str, target: &mut Value, patch: &Value) {
    match patch {
        Value::Object(_) => merge(target, patch),
        Value::Array(elements) => {
            if let Some(identity) = identity(key) {
                merge_list(identity, target, elements);
            } else if SETS.contains(&key) {
                let mut values = target.as_array().cloned().unwrap_or_default();
                values.extend(
                    elements
                        .iter()
                        .filter(|new| !values.contains(new))
                        .cloned()
                        .collect::<Vec<_>>(),
                );
                *target = Value::Array(values);
            } else {
                *target = patch.clone();
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            *target = patch.clone();
        }
    }
}

fn identity(list: &str) -> Option<&'static str> {
    KEYED
        .iter()
        .find(|(name, _)| *name == list)
        .map(|(_, key)| *key)
}

fn merge_list(identity: &str, target: &mut Value, patch: &[Value]) {
    let directive = |element: &Value| {
        element
            .get("$patch")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let mut elements = match target.take() {
        Value::Array(elements) => elements,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            Vec::new()
        }
    };
    // `{"$patch": "replace"}` as an element means: nothing of the old list stays.
    if patch
        .iter()
        .any(|one| directive(one).as_deref() == Some("replace") && one.get(identity).is_none())
    {
        elements.clear();
    }
    for change in patch {
        let Some(key) = change.get(identity) else {
            continue;
        };
        let place = elements
            .iter()
            .position(|element| element.get(identity) == Some(key));
        match (
            directive(change).as_deref(),
            place.and_then(|at| elements.get_mut(at)),
        ) {
            (Some("delete"), _) => elements.retain(|element| element.get(identity) != Some(key)),
            (_, Some(element)) => merge(element, change),
            (_, None) => {
                let mut element = Value::Null;
                merge(&mut element, change);
                elements.push(element);
            }
        }
    }
    *target = Value::Array(elements);
}

fn remove_values(list: Option<&mut Value>, unwanted: &Value) {
    if let (Some(Value::Array(list)), Value::Array(unwanted)) = (list, unwanted) {
        list.retain(|value| !unwanted.contains(value));
    }
}

/// Puts the elements into the order given; those not named keep theirs, at the end.
fn reorder(name: &str, list: &mut [Value], order: &[Value]) {
    let place = |element: &Value| {
        let key = identity(name)
            .and_then(|identity| element.get(identity))
            .unwrap_or(element);
        order
            .iter()
            .position(|one| {
                identity(name)
                    .and_then(|identity| one.get(identity))
                    .unwrap_or(one)
                    == key
            })
            .unwrap_or(usize::MAX)
    };
    list.sort_by_key(place);
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::merge;

    #[track_caller]
    fn check(mut target: Value, patch: &Value, expected: &Value) {
        merge(&mut target, patch);
        assert_eq!(target, *expected, "for {patch}");
    }

    #[test]
    fn keyed_lists_are_merged_by_element() {
        check(
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
            &json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}),
            &json!({"containers": [
                {"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"},
            ]}),
        );
        check(
            json!({"containers": [{"name": "a"}, {"name": "b"}]}),
            &json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            &json!({"containers": [{"name": "b"}]}),
        );
        check(
            json!({"conditions": [{"type": "Ready", "status": "False"}]}),
            &json!({"conditions": [{"$patch": "replace"}, {"type": "Other", "status": "True"}]}),
            &json!({"conditions": [{"type": "Other", "status": "True"}]}),
        );
    }

    #[test]
    fn taints_are_replaced_and_finalizers_added() {
        check(
            json!({"taints": [{"key": "a"}, {"key": "b"}], "finalizers": ["x"]}),
            &json!({"taints": [{"key": "b"}], "finalizers": ["y", "x"]}),
            &json!({"taints": [{"key": "b"}], "finalizers": ["x", "y"]}),
        );
        check(
            json!({"taints": [{"key": "a"}]}),
            &json!({"taints": null}),
            &json!({}),
        );
        check(
            json!({"finalizers": ["x", "y"]}),
            &json!({"$deleteFromPrimitiveList/finalizers": ["x"]}),
            &json!({"finalizers": ["y"]}),
        );
    }

    #[test]
    fn directives_never_stay_behind() {
        check(
            json!({"ports": [{"containerPort": 1}, {"containerPort": 2}], "m": {"a": 1}}),
            &json!({
                "$setElementOrder/ports": [{"containerPort": 2}, {"containerPort": 1}],
                "m": {"$patch": "replace", "b": 2},
            }),
            &json!({"ports": [{"containerPort": 2}, {"containerPort": 1}], "m": {"b": 2}}),
        );
        check(
            json!({"m": {"a": 1}}),
            &json!({"m": {"$patch": "delete"}}),
            &json!({}),
        );
        check(
            json!({"m": {"a": 1, "b": 2}}),
            &json!({"m": {"$retainKeys": ["b"], "b": 3}}),
            &json!({"m": {"b": 3}}),
        );
    }
}
