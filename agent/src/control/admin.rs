//! What operators and kubelets ask: metrics, liveness, readiness, and what the node is served.
//!
//! Everything here is read-only and holds no secret, because whoever reaches the port may ask.

pub mod listener;
mod view;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use serde::Deserialize;
use tracing::error;

use self::view::SnapshotView;
use super::served::SharedServed;
use crate::clock::Now;
use crate::readiness::Readiness;

/// The format of Prometheus' successor.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// What the admin port tells about.
#[derive(Debug, Clone)]
pub struct Admin {
    /// The node.
    pub node_name: Arc<str>,
    /// The driver that the workers use.
    pub driver: &'static str,
    /// What is missing.
    pub readiness: Readiness,
    /// Counts.
    pub registry: Arc<Registry>,
    /// What the node is served.
    pub served: SharedServed,
}

#[derive(Debug, Deserialize)]
struct Health {
    /// kiam asked its server when this was there and not empty.
    #[serde(default)]
    deep: String,
}

/// The routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || text(StatusCode::OK, "ok\n")))
        .route("/readyz", get(readyz))
        .route("/ping", get(async || text(StatusCode::OK, "pong")))
        .route("/health", get(health))
        .route("/snapshot", get(snapshot))
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let mut body = String::new();
    match encode(&mut body, &admin.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], body).into_response(),
        Err(error) => {
            error!(%error, "metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// One line for each thing that is missing, or `ok`.
async fn readyz(State(admin): State<Admin>) -> Response {
    let missing = admin.readiness.missing();
    if missing.is_empty() {
        return text(StatusCode::OK, "ok\n");
    }
    let lines: String = missing
        .iter()
        .flat_map(|reason| [reason.text(), "\n"])
        .collect();
    text(StatusCode::SERVICE_UNAVAILABLE, lines)
}

/// kiam's health check. Shallow, it says that the agent runs; deep, that it is ready, which no
/// longer depends on a server being reachable at this moment.
async fn health(state: State<Admin>, Query(Health { deep }): Query<Health>) -> Response {
    if deep.is_empty() {
        return text(StatusCode::OK, "ok\n");
    }
    readyz(state).await
}

async fn snapshot(State(admin): State<Admin>) -> Response {
    let view = SnapshotView::of(&admin, Now::read());
    Json(view).into_response()
}

fn text(status: StatusCode, body: impl Into<String>) -> Response {
    (status, [(header::CONTENT_TYPE, TEXT)], body.into()).into_response()
}
