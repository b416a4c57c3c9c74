//! The admin port: metrics, health, readiness, `why`. Plain HTTP, no secrets.
//!
//! The port may be open to the whole cluster, and the kubelet ends a server whose port does not
//! answer: connections are few, shared by address as those of agents are, and cut off when they
//! dawdle.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use kiam_wire::process::seldom::Seldom;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::app::Question;
use crate::clock::{Clock, Moment};
use crate::drain::Draining;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::tls::{Sources, Unfinished};
use crate::why::Why;

/// Connections at a time: probes, a scraper or two, people.
const CONNECTIONS_MAX: usize = 48;
/// Of those, from one address. When all are taken, who has several makes room for who has none.
const CONNECTIONS_EACH_MAX: usize = 8;
/// For a request's head, and for the next request of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For a whole connection. Scrapers that keep one open come back.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(2);
/// For a request under way when that is over, or the server stops.
const LAST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// After an accept that failed: at the limit of open files, trying at once fails at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For an answer to `why`: there is nobody to give one before the base ARN is known.
const WHY_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// The time.
    pub clock: Clock,
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
pub async fn serve(listener: TcpListener, admin: Admin) -> io::Result<()> {
    let mut draining = admin.draining.clone();
    let clock = admin.clock;
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/ping", get(async || "pong"))
        .route("/readyz", get(ready))
        .route("/health", get(ready))
        .route("/why", get(why))
        .route("/config", get(config))
        .with_state(admin);
    let each = draining.clone();
    tokio::select! {
        () = draining.started() => Ok(()),
        () = accept(listener, app, each, clock) => Ok(()),
    }
}

async fn accept(listener: TcpListener, app: Router, draining: Draining, clock: Clock) {
    let sources = Sources::new(CONNECTIONS_MAX, CONNECTIONS_EACH_MAX);
    let mut failed = Seldom::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(times) = failed.happened(clock.now().monotonic, Moment::after) {
                    warn!(%error, times, "cannot accept an admin connection");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Without a place it is closed at once.
        if let Some(place) = sources.place_for(peer.ip()).await {
            tokio::spawn(connection(stream, app.clone(), place, draining.clone()));
        }
    }
}

async fn connection(stream: TcpStream, app: Router, mut place: Unfinished, mut draining: Draining) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(64)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut connection = std::pin::pin!(connection);
    let is_over = async {
        tokio::select! {
            () = sleep(CONNECTION_TIMEOUT) => {}
            () = draining.started() => {}
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = place.evicted() => return,
        () = is_over => {
            connection.as_mut().graceful_shutdown();
            let last = timeout(LAST_REQUEST_TIMEOUT, connection.as_mut()).await;
            last.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an admin connection broke");
    }
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
    let unavailable = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    let answered = async {
        admin.questions.send(question).await.ok()?;
        answer.await.ok()
    };
    let facts = match timeout(WHY_TIMEOUT, answered).await {
        Ok(Some(facts)) => facts,
        Ok(None) => return unavailable("stopping\n"),
        Err(_elapsed) => return unavailable("nobody can tell yet; see /readyz\n"),
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
