//! The simulated API server through the eyes of `curl`: one request, one status, one `Status` object.
#![expect(
    clippy::unwrap_used,
    reason = "a test that meets the unexpected stops where it stands"
)]

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use kiam_sim::cluster::{Cluster, ClusterOptions, Kind, NewPod};
use serde_json::{Value, json};

async fn ask(
    cluster: &Cluster,
    method: &str,
    path: &str,
    content_type: &str,
    body: &str,
) -> (StatusCode, Value) {
    let stream = tokio::net::TcpStream::connect(cluster.address())
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let driven = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .header("host", "sim")
        .header("content-type", content_type)
        .body(Full::new(bytes::Bytes::from(body.to_owned())))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    drop(sender);
    driven.await.unwrap().unwrap();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

const PODS: &str = "/api/v1/namespaces/default/pods";

/// Method, path and perhaps content type; body; code and reason.
const REFUSED: &[(&str, &str, &str)] = &[
    ("GET /api/v1/secrets", "", "404 NotFound"),
    ("GET /api/v1/namespaces/default/pods/b", "", "404 NotFound"),
    ("POST /api/v1/namespaces/none/pods", POD, "404 NotFound"),
    (
        "PUT /api/v1/namespaces/default/pods",
        "{}",
        "405 MethodNotAllowed",
    ),
    (
        "POST /api/v1/namespaces/default/pods/a",
        "{}",
        "405 MethodNotAllowed",
    ),
    (
        "POST /api/v1/namespaces/default/pods text/plain",
        "{}",
        "415 UnsupportedMediaType",
    ),
    (
        "PATCH /api/v1/namespaces/default/pods/a",
        "{}",
        "415 UnsupportedMediaType",
    ),
    (
        "POST /api/v1/namespaces/default/pods",
        "{",
        "400 BadRequest",
    ),
    (MERGE, "[]", "400 BadRequest"),
    (
        MERGE,
        r#"{"metadata":{"resourceVersion":"1"}}"#,
        "409 Conflict",
    ),
    (MERGE, r#"{"spec":{"nodeName":"n"}}"#, "422 Invalid"),
    ("GET /api/v1/pods?labelSelector=a+b", "", "400 BadRequest"),
    ("GET /api/v1/pods?fieldSelector=a%3Db", "", "400 BadRequest"),
    ("GET /api/v1/pods?limit=x", "", "400 BadRequest"),
    ("GET /api/v1/pods?resourceVersion=999999", "", "504 Timeout"),
    ("GET /api/v1/pods?continue=x", "", "400 BadRequest"),
];
const MERGE: &str = "PATCH /api/v1/namespaces/default/pods/a application/merge-patch+json";

#[tokio::test]
async fn refusals_carry_the_code_and_the_reason() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    cluster
        .handle()
        .create_pod(NewPod::new("default", "a"))
        .unwrap();
    for (request, body, expected) in REFUSED {
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let content_type = words.next().unwrap_or("application/json");
        let (status, answer) = ask(&cluster, method, path, content_type, body).await;
        let reason = answer
            .pointer("/reason")
            .and_then(Value::as_str)
            .unwrap_or_default();
        assert_eq!(
            format!("{} {reason}", status.as_u16()),
            *expected,
            "{request}: {answer}"
        );
        assert_eq!(answer.pointer("/kind").unwrap(), "Status", "{request}");
    }
    // By one byte, so that all of it is read before the answer comes.
    let huge = "x".repeat((3 << 20) + 1);
    let (status, _) = ask(&cluster, "POST", PODS, "application/json", &huge).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

const POD: &str =
    r#"{"metadata":{"generateName":"p-"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#;

#[tokio::test]
async fn a_client_can_play_the_kubelet() {
    let cluster = Cluster::start(ClusterOptions::default()).await.unwrap();
    // What `curl -d` sends without a content type of its own.
    let form = "application/x-www-form-urlencoded";
    let (status, pod) = ask(&cluster, "POST", PODS, form, POD).await;
    assert_eq!(status, StatusCode::CREATED);
    let name = pod
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap();
    assert!(name.starts_with("p-") && name.len() == 7, "{name}");
    let path = format!("{PODS}/{name}");
    let binding = json!({"target": {"kind": "Node", "name": "n"}}).to_string();
    let (status, _) = ask(&cluster, "POST", &format!("{path}/binding"), form, &binding).await;
    assert_eq!(status, StatusCode::CREATED);
    let running = json!({"status": {"phase": "Running", "podIP": "127.0.0.9"}}).to_string();
    let merge = "application/merge-patch+json";
    let (status, _) = ask(
        &cluster,
        "PATCH",
        &format!("{path}/status"),
        merge,
        &running,
    )
    .await;
    assert_eq!(status, StatusCode::OK);
    let pod = cluster.handle().get(Kind::Pod, "default", name).unwrap();
    assert_eq!(pod.pointer("/spec/nodeName").unwrap(), "n");
    assert_eq!(pod.pointer("/status/podIP").unwrap(), "127.0.0.9");
    let (status, _) = ask(
        &cluster,
        "DELETE",
        &format!("{path}?gracePeriodSeconds=0"),
        "",
        "",
    )
    .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(cluster.handle().count(Kind::Pod), 0);
}

#[tokio::test]
async fn the_same_seed_gives_the_same_objects() {
    let made = async |seed| {
        let options = ClusterOptions {
            seed,
            ..ClusterOptions::default()
        };
        let cluster = Cluster::start(options).await.unwrap();
        cluster
            .handle()
            .create_pod(NewPod::new("default", "a"))
            .unwrap();
        let pod = cluster.handle().get(Kind::Pod, "default", "a").unwrap();
        pod.pointer("/metadata/uid").unwrap().clone()
    };
    assert_eq!(made(1).await, made(1).await);
    assert_ne!(made(1).await, made(2).await);
}
