//! What the API server does to an object before it keeps it: checks, defaults, and the fields that
//! only the server or only the status subresource may change. Pure.

use serde_json::{Value, json};

use super::json::{list, object, put, put_default, take, text};
use super::kind::Kind;
use super::status::{ApiError, Cause};

/// Names as DNS subdomains: up to 253 characters.
const NAME_MAX: usize = 253;
/// Namespaces are DNS labels.
const LABEL_MAX: usize = 63;

/// Which part of an object a request may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status.
    Main,
    /// The status alone.
    Status,
}

/// Checks and completes an object that a client wants created.
///
/// `suffix` is appended to `metadata.generateName` when there is no name.
pub(crate) fn admit_new(
    kind: Kind,
    namespace: &str,
    value: &mut Value,
    suffix: &str,
) -> Result<(), ApiError> {
    admit_identity(kind, namespace, value)?;
    if text(value, "/metadata/name").is_empty() {
        let base = text(value, "/metadata/generateName");
        if base.is_empty() {
            let cause = Cause {
                message: "Required value: name or generateName is required".to_owned(),
                ..Cause::required("metadata.name")
            };
            return Err(ApiError::invalid(kind, "", &[cause]));
        }
        let name = format!("{base}{suffix}");
        put(value, &["metadata", "name"], name);
    }
    let mut causes = name_causes(kind, text(value, "/metadata/name"));
    if kind == Kind::Pod {
        causes.extend(container_causes(value));
    }
    if !causes.is_empty() {
        return Err(ApiError::invalid(
            kind,
            text(value, "/metadata/name"),
            &causes,
        ));
    }
    for field in [
        "uid",
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    ] {
        take(value, &["metadata", field]);
    }
    complete(kind, value);
    Ok(())
}

/// Kind, version and namespace must be those of the path.
fn admit_identity(kind: Kind, namespace: &str, value: &mut Value) -> Result<(), ApiError> {
    if !value.is_object() {
        return Err(ApiError::bad_request(
            "the object provided is not a JSON object",
        ));
    }
    for (field, wanted) in [("kind", kind.name()), ("apiVersion", "v1")] {
        match value.get(field).and_then(Value::as_str) {
            Some(given) if given != wanted => {
                let message = format!(
                    "the {field} in the data ({given}) does not match the expected {field} ({wanted})"
                );
                return Err(ApiError::bad_request(message));
            }
            _ => put(value, &[field], wanted),
        }
    }
    for map in ["labels", "annotations"] {
        let place = value.pointer(&format!("/metadata/{map}"));
        if place
            .and_then(Value::as_object)
            .is_some_and(|map| !map.values().all(Value::is_string))
        {
            let message = format!("json: cannot unmarshal: metadata.{map} must hold strings only");
            return Err(ApiError::bad_request(message));
        }
    }
    if kind.namespaced() {
        let given = text(value, "/metadata/namespace");
        if !given.is_empty() && given != namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        put(value, &["metadata", "namespace"], namespace);
    } else {
        take(value, &["metadata", "namespace"]);
    }
    Ok(())
}

fn name_causes(kind: Kind, name: &str) -> Vec<Cause> {
    let (max, dots) = match kind {
        Kind::Namespace => (LABEL_MAX, false),
        Kind::Pod | Kind::ServiceAccount | Kind::Node | Kind::Event => (NAME_MAX, true),
    };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let ends = [bytes.first(), bytes.last()]
        .into_iter()
        .flatten()
        .all(|byte| plain(*byte));
    let middle = bytes
        .iter()
        .all(|byte| plain(*byte) || *byte == b'-' || (dots && *byte == b'.'));
    if ends && middle && bytes.len() <= max {
        return Vec::new();
    }
    let why = "a lowercase RFC 1123 name must consist of lower case alphanumeric characters, '-' or \
               '.', and must start and end with an alphanumeric character";
    vec![Cause::invalid("metadata.name", name, why)]
}

fn container_causes(pod: &Value) -> Vec<Cause> {
    let containers = list(pod, "/spec/containers");
    if containers.is_empty() {
        return vec![Cause::required("spec.containers")];
    }
    let missing = |field: &str| {
        containers
            .iter()
            .any(|one| text(one, &format!("/{field}")).is_empty())
    };
    let mut causes = Vec::new();
    if missing("name") {
        causes.push(Cause::required("spec.containers[*].name"));
    }
    if missing("image") {
        causes.push(Cause::required("spec.containers[*].image"));
    }
    causes
}

/// What the API server fills in.
fn complete(kind: Kind, value: &mut Value) {
    match kind {
        Kind::Pod => {
            let account = match text(value, "/spec/serviceAccountName") {
                "" => "default".to_owned(),
                given => given.to_owned(),
            };
            put(value, &["spec", "serviceAccountName"], account.clone());
            put(value, &["spec", "serviceAccount"], account);
            put_default(value, &["spec", "restartPolicy"], "Always");
            put_default(value, &["spec", "dnsPolicy"], "ClusterFirst");
            put_default(value, &["spec", "schedulerName"], "default-scheduler");
            put_default(value, &["spec", "terminationGracePeriodSeconds"], 30);
            put_default(value, &["spec", "enableServiceLinks"], true);
            put_default(value, &["spec", "securityContext"], json!({}));
            put(
                value,
                &["status"],
                json!({"phase": "Pending", "qosClass": "BestEffort"}),
            );
        }
        Kind::Namespace => {
            let name = text(value, "/metadata/name").to_owned();
            put(
                value,
                &["metadata", "labels", "kubernetes.io/metadata.name"],
                name,
            );
            put(value, &["spec", "finalizers"], json!(["kubernetes"]));
            put(value, &["status"], json!({"phase": "Active"}));
        }
        Kind::Node => {
            put_default(value, &["spec"], json!({}));
            put_default(value, &["status"], json!({}));
        }
        Kind::ServiceAccount | Kind::Event => {}
    }
}

/// Checks a new version of an object against the one kept, and keeps what the request may not change.
pub(crate) fn admit_update(
    kind: Kind,
    part: Part,
    before: &Value,
    value: &mut Value,
) -> Result<(), ApiError> {
    let name = text(before, "/metadata/name");
    admit_identity(kind, text(before, "/metadata/namespace"), value)?;
    match text(value, "/metadata/name") {
        "" => put(value, &["metadata", "name"], name),
        given if given != name => {
            let message = format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            );
            return Err(ApiError::bad_request(message));
        }
        _ => {}
    }
    let given = text(value, "/metadata/resourceVersion");
    if !given.is_empty() && given != text(before, "/metadata/resourceVersion") {
        return Err(ApiError::stale(kind, name));
    }
    let given = text(value, "/metadata/uid");
    if !given.is_empty() && given != text(before, "/metadata/uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {given}, UID in object meta: {}",
            text(before, "/metadata/uid")
        );
        return Err(ApiError::conflict(kind, name, &why));
    }
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generateName",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        keep(before, value, &["metadata", field]);
    }
    take(value, &["metadata", "managedFields"]);
    match part {
        Part::Status => {
            keep(before, value, &["spec"]);
            keep(before, value, &["metadata", "ownerReferences"]);
        }
        Part::Main => {
            if kind.has_status() {
                keep(before, value, &["status"]);
            }
            if kind == Kind::Pod {
                admit_pod_spec(name, before, value)?;
            }
        }
    }
    Ok(())
}

/// Puts the kept version's field in the place of the client's.
fn keep(before: &Value, value: &mut Value, path: &[&str]) {
    match before.pointer(&format!("/{}", path.join("/"))) {
        Some(kept) => put(value, path, kept.clone()),
        None => drop(take(value, path)),
    }
}

/// A pod's spec is fixed but for a few fields.
fn admit_pod_spec(name: &str, before: &Value, value: &Value) -> Result<(), ApiError> {
    let fixed = |pod: &Value| {
        let mut spec = pod.get("spec").cloned().unwrap_or_default();
        for field in [
            "activeDeadlineSeconds",
            "tolerations",
            "terminationGracePeriodSeconds",
        ] {
            object(&mut spec).remove(field);
        }
        for containers in ["containers", "initContainers"] {
            for container in spec
                .get_mut(containers)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                object(container).remove("image");
            }
        }
        spec
    };
    if fixed(before) == fixed(value) {
        return Ok(());
    }
    let why = "pod updates may not change fields other than `spec.containers[*].image`,\
               `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only \
               additions to existing tolerations),`spec.terminationGracePeriodSeconds`";
    Err(ApiError::invalid(
        Kind::Pod,
        name,
        &[Cause::forbidden("spec", why)],
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Kind, Part, admit_new, admit_update};

    #[track_caller]
    fn refused(kind: Kind, mut value: Value, code: u16, words: &str) {
        let error = admit_new(kind, "ns", &mut value, "xyz").unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_json().to_string().contains(words), "{error}");
    }

    #[test]
    fn a_pod_is_completed() {
        let mut pod = json!({
            "metadata": {"generateName": "a-", "uid": "mine"},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running"},
        });
        admit_new(Kind::Pod, "ns", &mut pod, "xyz").unwrap();
        assert_eq!(
            pod["metadata"],
            json!({"generateName": "a-", "name": "a-xyz", "namespace": "ns"})
        );
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(pod["spec"]["serviceAccountName"], "default");
    }

    #[test]
    fn nonsense_is_refused_with_the_field() {
        refused(Kind::Pod, json!([]), 400, "not a JSON object");
        refused(
            Kind::Pod,
            json!({"metadata": {"name": "a"}}),
            422,
            "spec.containers",
        );
        refused(Kind::Pod, json!({"kind": "Node"}), 400, "kind");
        refused(
            Kind::Pod,
            json!({"metadata": {"namespace": "other"}}),
            400,
            "namespace",
        );
        refused(
            Kind::Pod,
            json!({"metadata": {"annotations": {"a": 1}}}),
            400,
            "metadata.annotations",
        );
        refused(
            Kind::Namespace,
            json!({"metadata": {"name": "A.b"}}),
            422,
            "metadata.name",
        );
        refused(
            Kind::Namespace,
            json!({"metadata": {}}),
            422,
            "generateName",
        );
    }

    #[test]
    fn updates_keep_what_is_not_theirs() {
        let before = json!({
            "metadata": {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": "5"},
            "spec": {"containers": [{"name": "c", "image": "1"}]},
            "status": {"phase": "Running"},
        });
        let mut value = json!({
            "metadata": {"name": "a", "annotations": {"k": "v"}},
            "spec": {"containers": [{"name": "c", "image": "2"}]},
        });
        admit_update(Kind::Pod, Part::Main, &before, &mut value).unwrap();
        assert_eq!(value["status"]["phase"], "Running");
        assert_eq!(value["metadata"]["uid"], "u");
        let mut stale = value.clone();
        stale["metadata"]["resourceVersion"] = json!("4");
        assert_eq!(
            admit_update(Kind::Pod, Part::Main, &before, &mut stale)
                .unwrap_err()
                .code(),
            409
        );
        value["spec"]["nodeName"] = json!("elsewhere");
        assert_eq!(
            admit_update(Kind::Pod, Part::Main, &before, &mut value)
                .unwrap_err()
                .code(),
            422
        );
        admit_update(Kind::Pod, Part::Status, &before, &mut value).unwrap();
        assert_eq!(value["spec"].get("nodeName"), None);
    }
}
