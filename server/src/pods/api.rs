//! Single requests to the API server: reviewing a token, writing an event, untainting a node, reading
//! the cluster's token keys.
//!
//! Each is bounded in time and made once: whether and when to try again is the caller's to decide.
//! A client whose credentials were refused is thrown away, so that the next request reads new ones.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;

use super::connection::Connection;

/// The longest any single request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

const EXTRA_NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const EXTRA_POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a request came to nothing, split by what follows from it.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Someone else changed it first, or it does not look as expected.
    #[error("the object has changed meanwhile")]
    Conflict,
    /// It exists already.
    #[error("the object exists already")]
    Exists,
    /// There is no such thing.
    #[error("not found")]
    NotFound,
    /// The server may not do this; RBAC must be changed.
    #[error("forbidden: {0}; check the server's ClusterRole")]
    Forbidden(String),
    /// The request is wrong; asking again will not help.
    #[error("refused: {0}")]
    Refused(String),
    /// It may work later.
    #[error("the Kubernetes API did not answer: {0}")]
    Unavailable(String),
}

/// What a review said about a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reviewed {
    /// For example `system:serviceaccount:kiam:kiam-agent`.
    pub username: String,
    /// Those of the audiences asked about for which the token is good.
    pub audiences: Vec<String>,
    /// The node the token's pod is bound to, where the API server says so.
    pub node_name: Option<String>,
    /// The pod the token is bound to.
    pub pod_uid: Option<String>,
}

/// A node's taint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// What it does.
    #[serde(default)]
    pub effect: String,
    /// The rest, to be handed back as it came.
    #[serde(flatten)]
    pub rest: BTreeMap<String, serde_json::Value>,
}

/// A Kubernetes event about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventNote {
    /// The event's own name: the same note gets the same one from every replica.
    pub event_name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// `KiamRoleForbidden` or `KiamCredentialError`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When it was first noted, RFC 3339.
    pub first_at: String,
    /// When it was last noted, RFC 3339.
    pub last_at: String,
    /// How often.
    pub count: u32,
}

/// The component that events name as their source, as kiam's did.
const COMPONENT: &str = "kiam.server";

/// Makes single requests.
#[derive(Clone)]
pub struct KubeApi {
    connection: Connection,
    client: Arc<Mutex<Option<Client>>>,
}

impl fmt::Debug for KubeApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeApi")
            .field("connection", &self.connection)
            .finish_non_exhaustive()
    }
}

impl KubeApi {
    /// Requests to the API server of `connection`.
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            client: Arc::new(Mutex::new(None)),
        }
    }

    /// Asks whose token this is and whether it is good for `audience`. `None`: it is nobody's.
    pub async fn token_review(
        &self,
        token: &str,
        audience: &str,
    ) -> Result<Option<Reviewed>, ApiError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![audience.to_owned()]),
            },
            ..TokenReview::default()
        };
        let client = self.client().await?;
        let api = Api::<TokenReview>::all(client);
        let params = PostParams::default();
        let answer = self.bounded(Box::pin(api.create(&params, &review))).await?;
        let Some(status) = answer
            .status
            .filter(|status| status.authenticated == Some(true))
        else {
            return Ok(None);
        };
        let user = status.user.unwrap_or_default();
        let extra = user.extra.unwrap_or_default();
        let first = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
        Ok(Some(Reviewed {
            username: user.username.unwrap_or_default(),
            audiences: status.audiences.unwrap_or_default(),
            node_name: first(EXTRA_NODE_NAME),
            pod_uid: first(EXTRA_POD_UID),
        }))
    }

    /// The taints of a node.
    pub async fn taints(&self, node: &str) -> Result<Vec<Taint>, ApiError> {
        #[derive(Deserialize)]
        struct Node {
            #[serde(default)]
            spec: Spec,
        }
        #[derive(Deserialize, Default)]
        struct Spec {
            #[serde(default)]
            taints: Option<Vec<Taint>>,
        }
        let text = self.text(&format!("/api/v1/nodes/{node}")).await?;
        let node: Node = serde_json::from_str(&text)
            .map_err(|error| ApiError::Refused(format!("the node cannot be read: {error}")))?;
        Ok(node.spec.taints.unwrap_or_default())
    }

    /// Removes the taint at `index` from a node, provided that it is still the one given.
    pub async fn remove_taint(
        &self,
        node: &str,
        index: usize,
        taint: &Taint,
    ) -> Result<(), ApiError> {
        let path = format!("/spec/taints/{index}");
        let patch = json!([
            {"op": "test", "path": path, "value": taint},
            {"op": "remove", "path": path},
        ]);
        let target = format!("/api/v1/nodes/{node}");
        match self
            .patch(&target, "application/json-patch+json", &patch)
            .await
        {
            // A failed test is a 422: someone else has changed the list.
            Err(ApiError::Refused(_)) => Err(ApiError::Conflict),
            other => other,
        }
    }

    /// Writes a new event.
    pub async fn create_event(&self, note: &EventNote) -> Result<(), ApiError> {
        let event = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": note.event_name, "namespace": note.namespace},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": note.namespace,
                "name": note.pod_name, "uid": note.pod_uid,
            },
            "type": "Warning",
            "reason": note.reason,
            "message": note.message,
            "source": {"component": COMPONENT},
            "firstTimestamp": note.first_at,
            "lastTimestamp": note.last_at,
            "count": note.count,
        });
        let path = format!("/api/v1/namespaces/{}/events", note.namespace);
        let request = http::Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(event.to_string().into_bytes());
        self.send(request).await.map(drop)
    }

    /// Says that a noted event happened again.
    pub async fn repeat_event(&self, note: &EventNote) -> Result<(), ApiError> {
        let patch = json!({"count": note.count, "lastTimestamp": note.last_at});
        let path = format!(
            "/api/v1/namespaces/{}/events/{}",
            note.namespace, note.event_name
        );
        self.patch(&path, "application/merge-patch+json", &patch)
            .await
    }

    /// What the API server answers to a GET of `path`.
    pub async fn text(&self, path: &str) -> Result<String, ApiError> {
        self.send(http::Request::get(path).body(Vec::new())).await
    }

    async fn patch(
        &self,
        path: &str,
        style: &str,
        patch: &serde_json::Value,
    ) -> Result<(), ApiError> {
        let request = http::Request::patch(path)
            .header(http::header::CONTENT_TYPE, style)
            .body(patch.to_string().into_bytes());
        self.send(request).await.map(drop)
    }

    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, http::Error>,
    ) -> Result<String, ApiError> {
        let request = request.map_err(|error| ApiError::Refused(error.to_string()))?;
        let client = self.client().await?;
        self.bounded(client.request_text(request)).await
    }

    async fn client(&self) -> Result<Client, ApiError> {
        let mut kept = self.client.lock().await;
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let client = self.connection.client().await;
        let client = client.map_err(|error| ApiError::Unavailable(error.to_string()))?;
        *kept = Some(client.clone());
        Ok(client)
    }

    async fn bounded<T>(
        &self,
        answer: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ApiError> {
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, answer).await;
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(elapsed) => return Err(ApiError::Unavailable(elapsed.to_string())),
        };
        let kube::Error::Api(status) = &error else {
            // The transport: the client's own credentials or authority may be out of date.
            *self.client.lock().await = None;
            return Err(ApiError::Unavailable(error.to_string()));
        };
        let message = status.message.clone();
        Err(match status.code {
            401 => {
                *self.client.lock().await = None;
                ApiError::Unavailable(message)
            }
            403 => ApiError::Forbidden(message),
            404 => ApiError::NotFound,
            409 if status.reason == "AlreadyExists" => ApiError::Exists,
            409 => ApiError::Conflict,
            429 | 500..=599 => ApiError::Unavailable(message),
            _ => ApiError::Refused(message),
        })
    }
}
