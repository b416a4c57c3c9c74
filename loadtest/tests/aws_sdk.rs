//! The AWS SDK for Rust as a pod: its default chain, unchanged, through both doors of the whole system.
//!
//! The SDK takes what it needs from the environment, which belongs to a process; so this program
//! starts itself again as each pod. It has no address to ask from either, so a relay on loopback
//! lends it the pod's.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may end here, and says what it saw"
)]

#[path = "support/up.rs"]
mod up;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::thread;

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::ProvideCredentials as _;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use self::up::Up;

fn main() {
    if std::env::args().nth(1).as_deref() == Some("pod") {
        return pod();
    }
    let up = Up::start();
    granted_pods_get_their_own(&up);
    pods_without_a_role_get_nothing(&up);
    the_second_door_serves_who_has_a_token(&up);
    println!("the AWS SDK for Rust is served through both doors");
}

fn granted_pods_get_their_own(up: &Up) {
    let mut seen = Vec::new();
    for ip in up.pods("granted").into_iter().take(3) {
        let got = up.ask_as(ip);
        assert!(got.status.success(), "{got:?}");
        let text = String::from_utf8(got.stdout).unwrap();
        let document = document(&text);
        assert_eq!(document.get("provider").unwrap(), "IMDSv2");
        let minutes = document.get("minutes").unwrap().as_u64().unwrap();
        assert!(minutes >= 30, "{minutes} minutes left");
        assert!(document.get("session_token").unwrap().as_bool().unwrap());
        seen.push(document.get("access_key_id").unwrap().to_string());
    }
    assert!(seen.len() > 1);
    assert_eq!(
        seen.iter().collect::<std::collections::BTreeSet<_>>().len(),
        seen.len(),
        "pods of different roles have different keys"
    );
}

fn pods_without_a_role_get_nothing(up: &Up) {
    for state in ["no-role", "refused"] {
        let ip = *up.pods(state).first().unwrap();
        let got = up.ask_as(ip);
        assert!(!got.status.success(), "{state}: {got:?}");
        assert!(!String::from_utf8_lossy(&got.stdout).contains("access_key_id"));
    }
}

fn the_second_door_serves_who_has_a_token(up: &Up) {
    let url = up.text("container_url");
    let file = up.text("container_token_file");
    let pod = |file: &str| {
        child(&[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ])
    };
    let got = pod(file);
    assert!(got.status.success(), "{got:?}");
    let document = document(&String::from_utf8(got.stdout).unwrap());
    assert_eq!(document.get("provider").unwrap(), "EcsContainer");
    assert!(document.get("minutes").unwrap().as_u64().unwrap() >= 30);
    assert!(document.get("session_token").unwrap().as_bool().unwrap());

    let dir = tempfile::tempdir().unwrap();
    let forged = dir.path().join("forged-token");
    let token = std::fs::read_to_string(file).unwrap();
    let (signed, _signature) = token.trim().rsplit_once('.').unwrap();
    std::fs::write(&forged, format!("{signed}.AAAA")).unwrap();
    let got = pod(forged.to_str().unwrap());
    assert!(!got.status.success(), "{got:?}");
}

fn document(text: &str) -> Value {
    serde_json::from_str(text.trim()).unwrap()
}

// === the pod ===

/// What a program in a pod does: nothing but ask the SDK.
fn pod() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let credentials = runtime.block_on(async {
        let chain = aws_config::defaults(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(Region::from_static("us-east-1"));
        let config = Box::pin(chain.load()).await;
        let provider = config.credentials_provider().unwrap();
        provider.provide_credentials().await
    });
    let credentials = credentials.unwrap();
    let left = credentials.expiry().unwrap().elapsed().unwrap_err();
    // Its name is in what the SDK prints of credentials, which are the rest of it without secrets.
    let printed = format!("{credentials:?}");
    let (_, provider) = printed.split_once("provider_name: \"").unwrap();
    let provider = provider.split('"').next();
    println!(
        "{}",
        serde_json::json!({
            "access_key_id": credentials.access_key_id(),
            "session_token": credentials.session_token().is_some(),
            "minutes": left.duration().as_secs() / 60,
            "provider": provider,
        })
    );
}

/// Starts this program again as a pod with nothing but this environment.
fn child(environment: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .arg("pod")
        .env_clear()
        .env("HOME", "/nowhere")
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

/// Passes connections on to `to`, from the address `from`. Runs until the program ends.
fn relay(from: IpAddr, to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((near, _)) = listener.accept() {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
            socket.connect(&to.into()).unwrap();
            let far = TcpStream::from(socket);
            let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || pass(near, far));
            thread::spawn(move || pass(far_too, near_too));
        }
    });
    address
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    // Either side may go away at any time.
    let _bytes: io::Result<u64> = io::copy(&mut from, &mut to);
    let _closed: io::Result<()> = to.shutdown(Shutdown::Write);
}

// === the system ===

impl Up {
    /// The pods of the node in this state that have an address of their own, one for each role.
    fn pods(&self, state: &str) -> Vec<IpAddr> {
        let mut roles = std::collections::BTreeSet::new();
        let pods = self.what.get("pods").unwrap().as_array().unwrap();
        pods.iter()
            .filter(|pod| {
                pod.get("state").unwrap() == state && pod.get("host_network").unwrap() == false
            })
            .filter(|pod| roles.insert(pod.get("role").unwrap().to_string()))
            .map(|pod| pod.get("ip").unwrap().as_str().unwrap().parse().unwrap())
            .collect()
    }

    /// What the SDK finds in a pod with this address.
    fn ask_as(&self, ip: IpAddr) -> Output {
        let url = self.text("agent_url");
        let agent = url.strip_prefix("http://").unwrap().parse().unwrap();
        let relay = relay(ip, agent);
        child(&[(
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            &format!("http://{relay}"),
        )])
    }
}
