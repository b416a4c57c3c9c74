//! Kubernetes' protobuf, as far as `kubectl create namespace|serviceaccount|token` speaks it: these
//! commands send nothing else. Answers are JSON, which the same clients read.
//!
//! The messages name only the fields that those commands fill; the numbers are those of the API's
//! own definitions. Any other kind is refused with 415.

use std::collections::BTreeMap;

use prost::Message;
use serde_json::{Value, json};

use super::status::ApiError;

/// The media type.
pub(crate) const MEDIA: &str = "application/vnd.kubernetes.protobuf";
/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";

#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(message, optional, tag = "1")]
    about: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct ObjectMeta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    generate_name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(btree_map = "string, string", tag = "11")]
    labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    annotations: BTreeMap<String, String>,
}

/// A Namespace or a ServiceAccount: both begin with their metadata, and nothing else is sent.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
}

#[derive(Clone, PartialEq, Message)]
struct TokenRequest {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<TokenRequestSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct TokenRequestSpec {
    #[prost(string, repeated, tag = "1")]
    audiences: Vec<String>,
    #[prost(message, optional, tag = "3")]
    bound_object: Option<BoundObject>,
    #[prost(int64, optional, tag = "4")]
    expiration_seconds: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct BoundObject {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    api_version: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    uid: String,
}

impl ObjectMeta {
    fn into_value(self) -> Value {
        let mut value = json!({"labels": self.labels, "annotations": self.annotations});
        for (field, text) in [
            ("name", self.name),
            ("generateName", self.generate_name),
            ("namespace", self.namespace),
        ] {
            if !text.is_empty() {
                super::json::put(&mut value, &[field], text);
            }
        }
        value
    }
}

/// The object in a protobuf body, as JSON.
pub(crate) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let unreadable = |error: prost::DecodeError| {
        ApiError::bad_request(format!(
            "the object provided is no Kubernetes protobuf: {error}"
        ))
    };
    let message = body.strip_prefix(MAGIC).ok_or_else(|| {
        ApiError::bad_request("the object provided does not begin as Kubernetes protobuf does")
    })?;
    let envelope = Envelope::decode(message).map_err(unreadable)?;
    let TypeMeta { api_version, kind } = envelope.about.unwrap_or_default();
    let raw = envelope.raw.as_slice();
    let (metadata, spec) = match kind.as_str() {
        "Namespace" | "ServiceAccount" => (Named::decode(raw).map_err(unreadable)?.metadata, None),
        "TokenRequest" => {
            let request = TokenRequest::decode(raw).map_err(unreadable)?;
            (request.metadata, request.spec)
        }
        _ => return Err(ApiError::unsupported_media("application/json")),
    };
    let mut value = json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": metadata.unwrap_or_default().into_value(),
    });
    if let Some(spec) = spec {
        let bound = spec.bound_object.map(|object| {
            json!({
                "kind": object.kind, "apiVersion": object.api_version,
                "name": object.name, "uid": object.uid,
            })
        });
        let spec = json!({
            "audiences": spec.audiences,
            "expirationSeconds": spec.expiration_seconds,
            "boundObjectRef": bound,
        });
        super::json::put(&mut value, &["spec"], spec);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::{Envelope, MAGIC, Named, ObjectMeta, TypeMeta, parse};

    fn body(kind: &str, raw: Vec<u8>) -> Vec<u8> {
        let about = TypeMeta {
            api_version: "v1".to_owned(),
            kind: kind.to_owned(),
        };
        let envelope = Envelope {
            about: Some(about),
            raw,
        };
        [MAGIC, &envelope.encode_to_vec()].concat()
    }

    #[test]
    fn a_namespace_becomes_json() {
        let metadata = ObjectMeta {
            name: "ns".to_owned(),
            ..ObjectMeta::default()
        };
        let raw = Named {
            metadata: Some(metadata),
        }
        .encode_to_vec();
        let value = parse(&body("Namespace", raw.clone())).unwrap();
        assert_eq!(value["kind"], "Namespace");
        assert_eq!(value["metadata"]["name"], "ns");
        assert_eq!(parse(&body("Deployment", raw)).unwrap_err().code(), 415);
    }

    #[test]
    fn what_is_no_protobuf_is_refused() {
        for body in [&b"{}"[..], b"k8s\0\xff", b""] {
            assert_eq!(parse(body).unwrap_err().code(), 400, "{body:?}");
        }
    }
}
