//! From a pod's annotation to credentials, through the real server and the real agent as processes
//! of their own, spoken to only over HTTP: the face that everyone else sees.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may end here"
)]

#[path = "support/up.rs"]
mod up;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use self::up::Up;

const LIST: &str = "/latest/meta-data/iam/security-credentials/";

impl Up {
    fn agent(&self) -> SocketAddr {
        address(self.text("agent_url"))
    }

    /// The first pod of the node in this state.
    fn pod(&self, state: &str) -> IpAddr {
        let pods = self.what["pods"].as_array().unwrap();
        let pod = pods
            .iter()
            .find(|pod| pod["state"] == state && pod["host_network"] == false);
        pod.unwrap()["ip"].as_str().unwrap().parse().unwrap()
    }

    fn kill(&self, role: &str) {
        let pid = self.what["pids"][role].to_string();
        assert!(
            Command::new("kill")
                .args(["-9", &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Asks the Kubernetes API.
    fn api(&self, method: &str, path: &str, body: &Value) -> Answer {
        let kind = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: api\r\ncontent-type: {kind}\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        exchange(address(self.text("kube_api")), None, &head)
    }

    /// Creates a pod bound to the agent's node, without an address.
    fn bind(&self, namespace: &str, name: &str, role: &str) {
        let pod = json!({
            "metadata": {"name": name, "annotations": {"iam.amazonaws.com/role": role}},
            "spec": {"nodeName": self.text("node"), "containers": [{"name": "a", "image": "a"}]},
        });
        let created = self.api(
            "POST",
            &format!("/api/v1/namespaces/{namespace}/pods"),
            &pod,
        );
        assert_eq!(created.status, 201, "{}", created.body);
    }

    /// Gives it its address, as a kubelet does.
    fn run(&self, namespace: &str, name: &str, ip: IpAddr) {
        let status = json!({"status": {
            "phase": "Running", "podIP": ip.to_string(), "podIPs": [{"ip": ip.to_string()}],
        }});
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
        let patched = self.api("PATCH", &path, &status);
        assert_eq!(patched.status, 200, "{}", patched.body);
    }

    fn get(&self, from: IpAddr, path: &str, headers: &str) -> Answer {
        let head =
            format!("GET {path} HTTP/1.1\r\nhost: imds\r\n{headers}connection: close\r\n\r\n");
        exchange(self.agent(), Some(from), &head)
    }

    /// Token, list, credentials: what boto3 does.
    fn boto(&self, from: IpAddr) -> (String, Value) {
        let put = "PUT /latest/api/token HTTP/1.1\r\nhost: imds\r\nconnection: close\r\n\
                   x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
        let token = exchange(self.agent(), Some(from), put);
        assert_eq!(token.status, 200);
        let header = format!("x-aws-ec2-metadata-token: {}\r\n", token.body);
        let role = self.get(from, LIST, &header);
        assert_eq!(role.status, 200, "the list said {:?}", role.head);
        let document = self.get(from, &format!("{LIST}{}", role.body), &header);
        assert_eq!(document.status, 200);
        (role.body, serde_json::from_str(&document.body).unwrap())
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn exchange(to: SocketAddr, from: Option<IpAddr>, head: &str) -> Answer {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    }
    socket.connect(&to.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

fn address(url: &str) -> SocketAddr {
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// What `found` finds, waiting for it at most this long.
fn within<T>(patience: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let mut waited = Duration::ZERO;
    let nap = Duration::from_millis(20);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(waited < patience, "not within {patience:?}");
        #[expect(clippy::disallowed_methods, reason = "another process is waited for")]
        std::thread::sleep(nap);
        waited += nap;
    }
}

fn check_credentials(document: &Value) {
    assert_eq!(document["Code"], "Success");
    assert_eq!(document["Type"], "AWS-HMAC");
    for name in [
        "AccessKeyId",
        "SecretAccessKey",
        "Token",
        "Expiration",
        "LastUpdated",
    ] {
        assert!(
            document[name]
                .as_str()
                .is_some_and(|value| !value.is_empty()),
            "no {name}"
        );
    }
    let expiration = document["Expiration"].as_str().unwrap();
    assert_eq!(
        expiration.len(),
        "2026-01-01T00:00:00Z".len(),
        "{expiration}"
    );
}

#[test]
fn an_annotation_becomes_credentials() {
    let up = Up::start();
    let ip: IpAddr = "127.77.0.1".parse().unwrap();
    up.bind("apps", "fresh", "team-a");
    up.run("apps", "fresh", ip);
    let (role, document) = up.boto(ip);
    assert_eq!(role, "team-a");
    check_credentials(&document);

    // The other ways to ask give the same: without a token, and with a slash less.
    let list = up.get(ip, LIST.trim_end_matches('/'), "");
    assert_eq!((list.status, list.body.as_str()), (200, "team-a"));
    let again = up.get(ip, &format!("{LIST}team-a"), "");
    let again: Value = serde_json::from_str(&again.body).unwrap();
    assert_eq!(again["AccessKeyId"], document["AccessKeyId"]);
    // Another pod's role is not there for this one.
    assert_eq!(up.get(ip, &format!("{LIST}reader"), "").status, 404);
}

#[test]
fn who_may_have_nothing_gets_nothing_at_once() {
    let up = Up::start();
    let refused = up.get(up.pod("refused"), LIST, "");
    assert_eq!((refused.status, refused.body.as_str()), (403, ""));
    assert!(
        refused.head.to_lowercase().contains("x-kiam-reason:"),
        "{}",
        refused.head
    );
    let no_role = up.get(up.pod("no-role"), LIST, "");
    assert_eq!((no_role.status, no_role.body.as_str()), (404, ""));
}

#[test]
fn a_peer_not_known_yet_is_answered_when_it_is() {
    let up = Up::start();
    let ip: IpAddr = "127.77.0.2".parse().unwrap();
    up.bind("apps", "early", "team-b");
    let answered = std::thread::scope(|scope| {
        let asked = scope.spawn(|| up.get(ip, LIST, ""));
        // It asks before its address is anywhere in the API.
        up.run("apps", "early", ip);
        asked.join().unwrap()
    });
    assert_eq!((answered.status, answered.body.as_str()), (200, "team-b"));
    // One that never becomes a pod is told to come back, not left hanging.
    let stranger = up.get("127.77.0.3".parse().unwrap(), LIST, "");
    assert_eq!((stranger.status, stranger.body.as_str()), (503, ""));
    assert!(
        stranger.head.to_lowercase().contains("retry-after: 1"),
        "{}",
        stranger.head
    );
}

#[test]
fn without_a_server_running_pods_notice_nothing() {
    let up = Up::start();
    let ip = up.pod("granted");
    let (_, before) = up.boto(ip);
    up.kill("server");
    for _ in 0..5 {
        let (_, after) = up.boto(ip);
        assert_eq!(after["AccessKeyId"], before["AccessKeyId"]);
    }
}

#[test]
fn an_annotation_taken_away_takes_the_credentials_away() {
    let up = Up::start();
    let ip: IpAddr = "127.77.0.4".parse().unwrap();
    up.bind("apps", "edited", "team-c");
    up.run("apps", "edited", ip);
    up.boto(ip);
    let edit = json!({"metadata": {"annotations": {"iam.amazonaws.com/role": null}}});
    let edited = up.api("PATCH", "/api/v1/namespaces/apps/pods/edited", &edit);
    assert_eq!(edited.status, 200, "{}", edited.body);
    within(Duration::from_secs(10), || {
        (up.get(ip, LIST, "").status == 404).then_some(())
    });
}
