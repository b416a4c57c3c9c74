//! One HTTP request, from its head to its answer: faults, authentication, routing.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::admission::Part;
use super::discovery;
use super::patch::Style;
use super::read;
use super::route::{Document, Form, Query, Route, Subresource};
use super::state::State;
use super::status::ApiError;
use super::table::Include;
use super::tokens::{self, API_AUDIENCE};
use super::view::View;
use super::watch;
use super::write::{self, DeleteOptions, Target};
use crate::faults::Fate;
use crate::listen::{Answer, Body, endure, whole};
use crate::shared::lock;

/// The largest request body, as with etcd's limit on what it keeps.
const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Answers one request.
pub(crate) async fn handle(state: Arc<State>, request: Request<Incoming>) -> Answer {
    match endure(&state.faults).await {
        Fate::Answered => {}
        Fate::Unauthorized => return refusal(&ApiError::unauthorized()),
        Fate::Failed(status) => return refusal(&ApiError::fault(status)),
    }
    match answer(&state, request).await {
        Ok(answer) => answer,
        Err(error) => refusal(&error),
    }
}

fn refusal(error: &ApiError) -> Answer {
    let status = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = json_answer(status, error.to_json().to_string());
    if status == StatusCode::TOO_MANY_REQUESTS {
        answer
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

fn json_answer(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    respond(status, whole(body))
}

fn respond(status: StatusCode, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn header<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// Whether the request may be answered, if a token is asked for at all.
fn authenticate(state: &State, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(wanted) = &state.options.bearer_token else {
        return Ok(());
    };
    let given = header(headers, &AUTHORIZATION);
    let token = given
        .strip_prefix("Bearer ")
        .ok_or_else(ApiError::unauthorized)?;
    if token == wanted {
        return Ok(());
    }
    let (issuer, now) = (&state.options.issuer, state.clock.now());
    let audiences = [API_AUDIENCE.to_owned()];
    let store = lock(&state.store);
    tokens::judge(&store, &lock(&state.keys), issuer, token, &audiences, now)
        .map(drop)
        .map_err(|_why| ApiError::unauthorized())
}

async fn answer(state: &Arc<State>, request: Request<Incoming>) -> Result<Answer, ApiError> {
    authenticate(state, request.headers())?;
    let (head, body) = request.into_parts();
    let route = Route::parse(head.uri.path())?;
    let query = Query::parse(head.uri.query().unwrap_or_default());
    count(state, &route, &head.method, &query);
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body
        .map_err(|_too_large_or_gone| ApiError::too_large())?
        .to_bytes();
    let sent = Sent {
        method: head.method,
        headers: head.headers,
        query,
        body,
    };
    match route {
        Route::Document(document) => sent.document(state, document),
        Route::TokenReview => sent.review(state),
        Route::Collection {
            kind,
            group,
            namespace,
        } => {
            let view = sent.view(kind, group);
            sent.collection(state, view, namespace)
        }
        Route::Object {
            kind,
            group,
            namespace,
            name,
            part,
        } => {
            let target = Target {
                kind,
                group,
                namespace: &namespace,
                name: &name,
            };
            sent.object(state, target, part)
        }
    }
}

fn count(state: &State, route: &Route, method: &Method, query: &Query) {
    let (resource, one) = match route {
        Route::Document(_) => return,
        Route::TokenReview => ("tokenreviews", false),
        Route::Collection { kind, .. } => (kind.plural(), false),
        Route::Object { kind, part, .. } => match (kind.plural(), part) {
            ("pods", Subresource::Status) => ("pods/status", true),
            ("pods", Subresource::Binding) => ("pods/binding", true),
            ("nodes", Subresource::Status) => ("nodes/status", true),
            ("namespaces", Subresource::Status) => ("namespaces/status", true),
            ("serviceaccounts", Subresource::Token) => ("serviceaccounts/token", true),
            (plural, _) => (plural, true),
        },
    };
    let verb = match (method.as_str(), one) {
        ("GET", true) => "get",
        ("GET", false) if query.flag("watch") => "watch",
        ("GET", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => "other",
    };
    state.counters.count(verb, resource);
}

/// A request that has been received in full.
struct Sent {
    method: Method,
    headers: HeaderMap,
    query: Query,
    body: Bytes,
}

impl Sent {
    fn view(&self, kind: super::Kind, group: super::kind::Group) -> View {
        View {
            kind,
            group,
            form: Form::of(header(&self.headers, &ACCEPT)),
            include: Include::of(self.query.text("includeObject")),
        }
    }

    fn content_type(&self) -> &str {
        header(&self.headers, &CONTENT_TYPE)
    }

    fn object_sent(&self) -> write::Sent<'_> {
        write::Sent {
            content_type: self.content_type(),
            body: &self.body,
        }
    }

    fn document(&self, state: &State, document: Document) -> Result<Answer, ApiError> {
        if !matches!(self.method, Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed());
        }
        let keys = lock(&state.keys).to_json();
        let value = discovery::document(document, &state.options.issuer, &keys);
        if let (Document::Healthy, Value::String(text)) = (document, &value) {
            let mut answer = json_answer(StatusCode::OK, text.clone());
            answer
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            return Ok(answer);
        }
        Ok(json_answer(StatusCode::OK, value.to_string()))
    }

    fn review(&self, state: &State) -> Result<Answer, ApiError> {
        if self.method != Method::POST {
            return Err(ApiError::method_not_allowed());
        }
        let review = self.object_sent().value()?;
        let store = lock(&state.store);
        let keys = lock(&state.keys);
        let issuer = &state.options.issuer;
        let answer = tokens::review(&store, &keys, issuer, &review, state.clock.now())?;
        Ok(json_answer(StatusCode::CREATED, answer.to_string()))
    }

    fn collection(
        &self,
        state: &Arc<State>,
        view: View,
        namespace: Option<String>,
    ) -> Result<Answer, ApiError> {
        match self.method.as_str() {
            "GET" if self.query.flag("watch") => Ok(respond(
                StatusCode::OK,
                watch::start(state, view, namespace, &self.query)?,
            )),
            "GET" => {
                let store = lock(&state.store);
                let mut unfinished = lock(&state.unfinished);
                let page = read::page(
                    &store,
                    &mut unfinished,
                    view,
                    namespace.as_deref(),
                    &self.query,
                )?;
                drop((store, unfinished));
                Ok(respond(
                    StatusCode::OK,
                    page.into_body(view, state.clock.now()),
                ))
            }
            "POST" => {
                if view.kind.namespaced() && namespace.is_none() {
                    return Err(ApiError::method_not_allowed());
                }
                let namespace = namespace.unwrap_or_default();
                let target = Target {
                    kind: view.kind,
                    group: view.group,
                    namespace: &namespace,
                    name: "",
                };
                let object = write::create(state, target, self.object_sent(), &self.query)?;
                Ok(respond(
                    StatusCode::CREATED,
                    read::object(view, &object, state.clock.now()),
                ))
            }
            "DELETE" => {
                let options = DeleteOptions::parse(&self.body, &self.query)?;
                let namespace = namespace.as_deref();
                let count =
                    write::delete_collection(state, view.kind, namespace, &self.query, &options)?;
                tracing::debug!(count, kind = view.kind.plural(), "deleted a collection");
                let done = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                });
                Ok(json_answer(StatusCode::OK, done.to_string()))
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    fn object(
        &self,
        state: &Arc<State>,
        target: Target<'_>,
        subresource: Subresource,
    ) -> Result<Answer, ApiError> {
        let view = self.view(target.kind, target.group);
        let part = match subresource {
            Subresource::Itself => Part::Main,
            Subresource::Status => Part::Status,
            Subresource::Binding | Subresource::Token => {
                if self.method != Method::POST {
                    return Err(ApiError::method_not_allowed());
                }
                let made = write::post_to(state, target, subresource, self.object_sent())?;
                return Ok(json_answer(StatusCode::CREATED, made.to_string()));
            }
        };
        let mut status = StatusCode::OK;
        let object = match self.method.as_str() {
            "GET" => lock(&state.store).get(target.kind, target.namespace, target.name)?,
            "PUT" => write::update(state, target, part, self.object_sent())?,
            "PATCH" => {
                let style = Style::of(self.content_type())?;
                let patch = (style, &*self.body);
                let (object, created) = write::patch(state, target, part, patch, &self.query)?;
                if created {
                    status = StatusCode::CREATED;
                }
                object
            }
            "DELETE" if part == Part::Main => {
                let options = DeleteOptions::parse(&self.body, &self.query)?;
                write::delete(state, target, &options)?
            }
            _ => return Err(ApiError::method_not_allowed()),
        };
        Ok(respond(
            status,
            read::object(view, &object, state.clock.now()),
        ))
    }
}
