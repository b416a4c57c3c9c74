//! Label and field selectors: which objects a client wants to hear of.
//!
//! An object is looked at in its stored bytes, and only if the selector asks for more than its name:
//! an index over 150,000 pods would cost more memory than the few selecting clients are worth.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::kind::Kind;
use super::status::ApiError;
use super::store::Object;

/// All of its terms must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Term>,
    fields: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Present,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Test {
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::Present => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(wanted) => value.is_some_and(|value| wanted.iter().any(|one| one == value)),
            Self::NotIn(unwanted) => {
                value.is_none_or(|value| unwanted.iter().all(|one| one != value))
            }
        }
    }
}

impl Selector {
    /// Parses the two query parameters.
    pub(crate) fn parse(kind: Kind, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let labels = split(labels).map(label_term).collect::<Result<_, _>>()?;
        let fields = split(fields)
            .map(|term| field_term(kind, term))
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the object is one of those selected.
    pub(crate) fn matches(&self, object: &Object) -> bool {
        let by_key = |term: &Term| match term.key.as_str() {
            "metadata.name" => Some(term.test.holds(Some(&object.name))),
            "metadata.namespace" => Some(term.test.holds(Some(&object.namespace))),
            _ => None,
        };
        if self.fields.iter().any(|term| by_key(term) == Some(false)) {
            return false;
        }
        if self.labels.is_empty() && self.fields.iter().all(|term| by_key(term).is_some()) {
            return true;
        }
        let seen: Seen = serde_json::from_slice(&object.body()).unwrap_or_default();
        self.labels.iter().all(|term| {
            term.test
                .holds(seen.metadata.labels.get(&term.key).map(String::as_str))
        }) && self.fields.iter().all(|term| {
            by_key(term).unwrap_or_else(|| term.test.holds(Some(seen.field(&term.key))))
        })
    }
}

/// What selectors may ask of an object.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Seen {
    metadata: SeenMetadata,
    spec: SeenSpec,
    status: SeenStatus,
    involved_object: BTreeMap<String, String>,
    reason: Option<String>,
    r#type: Option<String>,
    reporting_component: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SeenMetadata {
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SeenSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    restart_policy: Option<String>,
    scheduler_name: Option<String>,
    host_network: bool,
    unschedulable: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SeenStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
}

const fn word(truth: bool) -> &'static str {
    if truth { "true" } else { "false" }
}

impl Seen {
    /// The value of a field; a field that is not set counts as empty, as in the real API server.
    fn field(&self, key: &str) -> &str {
        let value = match key {
            "spec.nodeName" => &self.spec.node_name,
            "spec.serviceAccountName" => &self.spec.service_account_name,
            "spec.restartPolicy" => &self.spec.restart_policy,
            "spec.schedulerName" => &self.spec.scheduler_name,
            "spec.hostNetwork" => return word(self.spec.host_network),
            "spec.unschedulable" => return word(self.spec.unschedulable),
            "status.phase" => &self.status.phase,
            "status.podIP" => &self.status.pod_ip,
            "reason" => &self.reason,
            "type" => &self.r#type,
            "reportingComponent" => &self.reporting_component,
            _ => {
                let key = key.strip_prefix("involvedObject.").unwrap_or_default();
                return self.involved_object.get(key).map_or("", String::as_str);
            }
        };
        value.as_deref().unwrap_or_default()
    }
}

/// The fields by which a kind can be selected, besides its name and namespace.
const fn selectable(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Pod => &[
            "spec.nodeName",
            "spec.serviceAccountName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
        ],
        Kind::Namespace => &["status.phase"],
        Kind::ServiceAccount => &[],
        Kind::Node => &["spec.unschedulable"],
        Kind::Event => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "type",
            "reportingComponent",
        ],
    }
}

/// Splits at the commas that are not inside parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_u32;
    text.split(move |letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
}

/// `key=value`, `key==value` or `key!=value`.
fn equality(term: &str) -> Option<(&str, Test)> {
    if let Some((key, value)) = term.split_once("!=") {
        return Some((key.trim(), Test::NotIn(vec![value.trim().to_owned()])));
    }
    let (key, value) = term.split_once("==").or_else(|| term.split_once('='))?;
    Some((key.trim(), Test::In(vec![value.trim().to_owned()])))
}

/// `key in (a, b)` or `key notin (a, b)`.
fn set(term: &str) -> Option<(&str, Test)> {
    let (head, values) = term.strip_suffix(')')?.split_once('(')?;
    let values = values
        .split(',')
        .map(|value| value.trim().to_owned())
        .collect();
    let mut words = head.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(key), Some("in"), None) => Some((key, Test::In(values))),
        (Some(key), Some("notin"), None) => Some((key, Test::NotIn(values))),
        _ => None,
    }
}

fn label_term(term: &str) -> Result<Term, ApiError> {
    let (key, test) = set(term)
        .or_else(|| equality(term))
        .or_else(|| term.strip_prefix('!').map(|key| (key.trim(), Test::Absent)))
        .unwrap_or((term, Test::Present));
    if key.is_empty() || key.contains(|letter: char| " ()!<>".contains(letter)) {
        return Err(ApiError::bad_request(format!(
            "unable to parse label selector term {term:?}"
        )));
    }
    Ok(Term {
        key: key.to_owned(),
        test,
    })
}

fn field_term(kind: Kind, term: &str) -> Result<Term, ApiError> {
    let (key, test) = equality(term)
        .ok_or_else(|| ApiError::bad_request(format!("invalid field selector term {term:?}")))?;
    // events.k8s.io calls the same field by another name.
    let key = key.replace("regarding.", "involvedObject.");
    let known = matches!(key.as_str(), "metadata.name" | "metadata.namespace")
        || selectable(kind).contains(&key.as_str());
    if !known {
        return Err(ApiError::bad_request(format!(
            "field label not supported: {key}"
        )));
    }
    Ok(Term { key, test })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::{Kind, Selector};
    use crate::cluster::store::Store;

    #[track_caller]
    fn check(labels: &str, fields: &str, expected: bool) {
        let mut store = Store::new(1, 1);
        let pod = json!({
            "metadata": {"namespace": "ns", "name": "a", "labels": {"app": "web", "tier": "front"}},
            "spec": {"nodeName": "node-1"},
            "status": {"phase": "Running", "podIP": "10.0.0.1"},
        });
        let object = store.insert(Kind::Pod, pod, Timestamp::UNIX_EPOCH).unwrap();
        let selector = Selector::parse(Kind::Pod, labels, fields).unwrap();
        assert_eq!(selector.matches(&object), expected, "{labels:?} {fields:?}");
    }

    #[track_caller]
    fn refused(labels: &str, fields: &str) {
        let error = Selector::parse(Kind::Pod, labels, fields).unwrap_err();
        assert_eq!(error.code(), 400, "{labels:?} {fields:?}");
    }

    #[test]
    fn labels() {
        check("", "", true);
        check("app=web", "", true);
        check("app==web,tier!=back", "", true);
        check("app!=web", "", false);
        check("app", "", true);
        check("!app", "", false);
        check("!missing,missing!=x", "", true);
        check("app in (db, web),tier notin (back)", "", true);
        check("app in (db)", "", false);
        check("missing in (x)", "", false);
    }

    #[test]
    fn fields() {
        check("", "metadata.name=a", true);
        check("", "metadata.name=b", false);
        check("", "metadata.namespace!=ns", false);
        check("", "spec.nodeName=node-1,status.phase!=Failed", true);
        check("", "spec.nodeName=", false);
        check("", "status.podIP=10.0.0.1", true);
        check("app=web", "status.phase=Pending", false);
    }

    #[test]
    fn nonsense_is_refused() {
        refused("a in", "");
        refused("a b", "");
        refused("", "spec.color=red");
        refused("", "metadata.name");
    }
}
