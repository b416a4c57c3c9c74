//! The four ways to change part of an object: JSON patch, merge patch, strategic merge patch and
//! server-side apply.
//!
//! Apply is a strategic merge here: one writer per field is assumed, no field owners are recorded.

use serde_json::Value;

use super::status::ApiError;

mod strategic;

/// How a patch body is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' merge patch that knows which lists are keyed.
    Strategic,
    /// Server-side apply, which also creates.
    Apply,
}

const KNOWN: &str = "application/json-patch+json, application/merge-patch+json, \
                     application/strategic-merge-patch+json, application/apply-patch+yaml";

impl Style {
    /// By the request's content type.
    pub(crate) fn of(content_type: &str) -> Result<Self, ApiError> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            _ => Err(ApiError::unsupported_media(KNOWN)),
        }
    }
}

/// Changes `target` as `patch` says.
pub(crate) fn apply(style: Style, target: &mut Value, patch: &[u8]) -> Result<(), ApiError> {
    let unreadable = |error| ApiError::bad_request(format!("error decoding patch: {error}"));
    if style == Style::Json {
        let patch: json_patch::Patch = serde_json::from_slice(patch).map_err(unreadable)?;
        return json_patch::patch(target, &patch)
            .map_err(|error| ApiError::bad_request(format!("the patch does not apply: {error}")));
    }
    let patch: Value = serde_json::from_slice(patch).map_err(unreadable)?;
    if !patch.is_object() {
        return Err(ApiError::bad_request("error decoding patch: not an object"));
    }
    match style {
        Style::Strategic | Style::Apply => strategic::merge(target, &patch),
        Style::Merge | Style::Json => json_patch::merge(target, &patch),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Style, apply};

    #[track_caller]
    fn check(style: Style, mut target: Value, patch: &Value, expected: &Value) {
        apply(style, &mut target, patch.to_string().as_bytes()).unwrap();
        assert_eq!(target, *expected, "{style:?} {patch}");
    }

    #[test]
    fn merge_removes_with_null_and_replaces_lists() {
        check(
            Style::Merge,
            json!({"a": {"b": 1, "c": 2}, "l": [1, 2]}),
            &json!({"a": {"b": null}, "l": [3]}),
            &json!({"a": {"c": 2}, "l": [3]}),
        );
    }

    #[test]
    fn json_patch_is_all_or_nothing() {
        check(
            Style::Json,
            json!({"metadata": {"annotations": {"a/b": "1"}}}),
            &json!([
                {"op": "test", "path": "/metadata/annotations/a~1b", "value": "1"},
                {"op": "replace", "path": "/metadata/annotations/a~1b", "value": "2"},
                {"op": "add", "path": "/metadata/labels", "value": {}},
            ]),
            &json!({"metadata": {"annotations": {"a/b": "2"}, "labels": {}}}),
        );
        let mut target = json!({"a": 1});
        let patch = json!([
            {"op": "add", "path": "/b", "value": 2},
            {"op": "test", "path": "/a", "value": 3},
        ]);
        assert_eq!(
            apply(Style::Json, &mut target, patch.to_string().as_bytes())
                .unwrap_err()
                .code(),
            400
        );
        assert_eq!(target, json!({"a": 1}));
    }

    #[test]
    fn content_types() {
        assert_eq!(
            Style::of("application/merge-patch+json; charset=utf-8"),
            Ok(Style::Merge)
        );
        assert_eq!(Style::of("application/json").unwrap_err().code(), 415);
    }

    #[test]
    fn what_is_no_patch_is_refused() {
        for (style, patch) in [
            (Style::Merge, "[]"),
            (Style::Json, "{}"),
            (Style::Strategic, "{"),
            (Style::Apply, "a: b"),
        ] {
            let error = apply(style, &mut json!({}), patch.as_bytes()).unwrap_err();
            assert_eq!(error.code(), 400, "{style:?} {patch}");
        }
    }
}
