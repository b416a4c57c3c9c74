//! The admin port: metrics, health, readiness, `why`. Plain HTTP, no secrets.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::app::Question;
use crate::drain::Draining;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::why::Why;

/// What the admin port shows.
#[derive(Debug, Clone)]
pub struct Admin {
    /// All of them.
    pub metrics: Arc<Metrics>,
    /// What is missing.
    pub readiness: Readiness,
    /// To the owner.
    pub questions: mpsc::Sender<Question>,
    /// Not ready any more once it begins.
    pub draining: Draining,
    /// The configuration, as `--print-config` prints it.
    pub config: Arc<str>,
}

impl Admin {
    /// Why no agent should be sent here, as a line of text.
    fn missing(&self) -> Option<String> {
        if self.draining.has_started() {
            return Some("stopping\n".to_owned());
        }
        let missing = self.readiness.missing();
        (!missing.is_empty()).then(|| format!("not ready: {}\n", missing.join(", ")))
    }
}

/// Serves until the drain begins.
pub async fn serve(listener: TcpListener, admin: Admin) -> std::io::Result<()> {
    let mut draining = admin.draining.clone();
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/ping", get(async || "pong"))
        .route("/readyz", get(ready))
        .route("/health", get(ready))
        .route("/why", get(why))
        .route("/config", get(config))
        .with_state(admin);
    axum::serve(listener, app)
        .with_graceful_shutdown(async move { draining.started().await })
        .await
}

async fn metrics(State(admin): State<Admin>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let ready = admin.missing().is_none();
    admin.metrics.ready.set(i64::from(ready));
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn ready(State(admin): State<Admin>) -> Response {
    match admin.missing() {
        None => "ok\n".into_response(),
        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing).into_response(),
    }
}

async fn config(State(admin): State<Admin>) -> Response {
    (
        [(header::CONTENT_TYPE, "application/json")],
        admin.config.to_string(),
    )
        .into_response()
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    pod: String,
    #[serde(default)]
    format: String,
}

async fn why(
    State(admin): State<Admin>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let Some((namespace, name)) = asked.pod.split_once('/') else {
        let text = "say which pod: /why?pod=namespace/name\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let (reply, answer) = oneshot::channel();
    let question = Question::Why {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        reply,
    };
    let stopping = || (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    if admin.questions.send(question).await.is_err() {
        return stopping();
    }
    let Ok(facts) = answer.await else {
        return stopping();
    };
    let why = Why::of(&facts);
    let accepts_json = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/json"));
    if asked.format == "json" || accepts_json {
        axum::Json(why).into_response()
    } else {
        why.text().into_response()
    }
}
