//! Reading and writing JSON by path, without a panic where a client sent another shape.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// The text at a JSON pointer, or "" where there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The elements of the list at a JSON pointer, or none.
pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The object inside `value`, which becomes an empty one if it was anything else.
pub(crate) fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        // Made an object just above.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            unreachable!("an object by construction")
        }
    }
}

/// Writes `new` at `path`, making the objects on the way.
pub(crate) fn put(value: &mut Value, path: &[&str], new: impl Into<Value>) {
    let mut place = value;
    for step in path {
        place = object(place).entry(*step).or_insert(Value::Null);
    }
    *place = new.into();
}

/// Writes `new` at `path` unless something other than null is there.
pub(crate) fn put_default(value: &mut Value, path: &[&str], new: impl Into<Value>) {
    let mut place = value;
    for step in path {
        place = object(place).entry(*step).or_insert(Value::Null);
    }
    if place.is_null() {
        *place = new.into();
    }
}

/// Takes away what is at `path`.
pub(crate) fn take(value: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    let mut place = value;
    for step in parents {
        place = place.get_mut(*step)?;
    }
    place.as_object_mut()?.remove(*last)
}

/// Whole seconds, as `metav1.Time` is written.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{put, put_default, take};

    #[test]
    fn paths_are_made_and_other_shapes_replaced() {
        let mut value = json!({"metadata": "not an object"});
        put(&mut value, &["metadata", "labels", "a"], "b");
        put_default(&mut value, &["metadata", "labels", "a"], "c");
        assert_eq!(value, json!({"metadata": {"labels": {"a": "b"}}}));
        assert_eq!(
            take(&mut value, &["metadata", "labels", "a"]),
            Some(json!("b"))
        );
        assert_eq!(take(&mut value, &["metadata", "nothing", "a"]), None);
    }
}
