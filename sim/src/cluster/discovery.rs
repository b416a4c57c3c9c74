//! What there is to be found: the discovery documents, the version, and just enough of an `OpenAPI` for
//! `kubectl` to leave the checking of fields to the server.

use serde_json::{Value, json};

use super::kind::{Group, Kind};
use super::route::Document;
use super::tokens::API_AUDIENCE;

/// The version this API server claims; clients choose features by it.
const MINOR: &str = "33";

/// A document that depends on nothing but the issuer of tokens.
pub(crate) fn document(document: Document, issuer: &str, keys: &Value) -> Value {
    match document {
        Document::Version => json!({
            "major": "1", "minor": MINOR, "gitVersion": format!("v1.{MINOR}.0-sim"),
            "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
        }),
        Document::Healthy => Value::String("ok".to_owned()),
        Document::Api => json!({
            "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
        }),
        Document::Apis => json!({
            "kind": "APIGroupList", "apiVersion": "v1",
            "groups": [group("events.k8s.io"), group("authentication.k8s.io")],
        }),
        Document::EventsGroup => described("APIGroup", group("events.k8s.io")),
        Document::AuthenticationGroup => described("APIGroup", group("authentication.k8s.io")),
        Document::CoreResources => resources("v1", &core_resources()),
        Document::EventsResources => resources(
            "events.k8s.io/v1",
            &[resource(Kind::Event, "", Kind::Event.name())],
        ),
        Document::AuthenticationResources => resources(
            "authentication.k8s.io/v1",
            &[json!({
                "name": "tokenreviews", "singularName": "tokenreview", "namespaced": false,
                "kind": "TokenReview", "verbs": ["create"],
            })],
        ),
        Document::OpenApiV2 => json!({
            "swagger": "2.0", "info": {"title": "Kubernetes", "version": "sim"},
            "paths": {}, "definitions": {},
        }),
        Document::OpenApiV3 => json!({"paths": {
            "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=sim"},
            "apis/events.k8s.io/v1": {"serverRelativeURL": "/openapi/v3/apis/events.k8s.io/v1?hash=sim"},
        }}),
        Document::OpenApiV3Core => open_api(Group::Core, &Kind::ALL),
        Document::OpenApiV3Events => open_api(Group::Events, &[Kind::Event]),
        Document::OpenIdConfiguration => json!({
            "issuer": issuer,
            "jwks_uri": format!("{API_AUDIENCE}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }),
        Document::Keys => keys.clone(),
    }
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version.clone()], "preferredVersion": version})
}

fn described(kind: &str, mut value: Value) -> Value {
    super::json::put(&mut value, &["kind"], kind);
    super::json::put(&mut value, &["apiVersion"], "v1");
    value
}

fn resources(group_version: &str, resources: &[Value]) -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": group_version, "resources": resources,
    })
}

fn core_resources() -> Vec<Value> {
    let mut all = Vec::new();
    for kind in Kind::ALL {
        all.push(resource(kind, "", kind.name()));
        if kind.has_status() {
            all.push(resource(kind, "/status", kind.name()));
        }
    }
    all.push(resource(Kind::Pod, "/binding", "Binding"));
    let mut token = resource(Kind::ServiceAccount, "/token", "TokenRequest");
    super::json::put(&mut token, &["group"], "authentication.k8s.io");
    super::json::put(&mut token, &["version"], "v1");
    all.push(token);
    all
}

fn resource(kind: Kind, suffix: &str, shown: &str) -> Value {
    let verbs = match suffix {
        "" => json!([
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch"
        ]),
        "/status" => json!(["get", "patch", "update"]),
        _ => json!(["create"]),
    };
    let mut value = json!({
        "name": format!("{}{suffix}", kind.plural()),
        "singularName": if suffix.is_empty() { kind.singular() } else { "" },
        "namespaced": kind.namespaced(),
        "kind": shown,
        "verbs": verbs,
    });
    if suffix.is_empty() {
        super::json::put(&mut value, &["shortNames"], json!([kind.short_name()]));
    }
    if kind == Kind::Pod && suffix.is_empty() {
        super::json::put(&mut value, &["categories"], json!(["all"]));
    }
    value
}

/// `kubectl` looks here for `fieldValidation`, and if it is there it lets the server check fields.
fn open_api(group: Group, kinds: &[Kind]) -> Value {
    let mut paths = json!({});
    for kind in kinds {
        let base = match group {
            Group::Core => "/api/v1".to_owned(),
            Group::Events => format!("/apis/{}", group.api_version()),
        };
        let namespace = if kind.namespaced() {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let path = format!("{base}{namespace}/{}/{{name}}", kind.plural());
        let operation = json!({
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": {
                "group": group.name(), "version": "v1", "kind": kind.name(),
            },
            "parameters": [{
                "name": "fieldValidation", "in": "query",
                "schema": {"type": "string", "uniqueItems": true},
            }],
            "responses": {"200": {"description": "OK"}},
        });
        super::json::put(&mut paths, &[&path], json!({"patch": operation}));
    }
    json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "sim"},
        "paths": paths, "components": {"schemas": {}},
    })
}
