//! The threat model of `docs/security.md`, where it takes the whole system to try it. What a single
//! room decides is tried in that room's own tests; the document says which.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[path = "security/grpc.rs"]
mod grpc;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use kiam_loadtest::rig::Program::{Agent, Server};
use kiam_loadtest::rig::{Options, Reply, Rig, exchange, within};
use kiam_sim::cluster::NewPod;

const LIST: &str = "/latest/meta-data/iam/security-credentials/";

fn rig(agent: &[&str], server: &[&str]) -> Rig {
    let program = env!("CARGO_BIN_EXE_kiam-loadtest");
    Rig::start(Options::new(program, agent, server)).unwrap()
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 97, 0, last).into()
}

fn ask(rig: &Rig, from: Option<IpAddr>, line: &str, headers: &str) -> Reply {
    let request = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    exchange(rig.agent(), from, request.as_bytes()).unwrap()
}

fn second_door(rig: &Rig, token: &str) -> Reply {
    let request = format!(
        "GET /v1/credentials HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\nconnection: close\r\n\r\n"
    );
    exchange(rig.container(), None, request.as_bytes()).unwrap()
}

/// Everything that may be written or shown: logs, metrics, what admin ports say, Events, command
/// lines.
fn everything_shown(rig: &Rig) -> Vec<(String, String)> {
    let mut shown = vec![
        ("the agent's log".to_owned(), rig.log(Agent)),
        ("the server's log".to_owned(), rig.log(Server)),
    ];
    let paths = [
        "/metrics",
        "/snapshot",
        "/config",
        "/livez",
        "/readyz",
        "/health?deep=1",
        "/why?pod=apps/reader-0",
        "/",
    ];
    for of in [Agent, Server] {
        for path in paths {
            let said = rig.admin_says(of, path).unwrap();
            shown.push((format!("{of:?} {path}"), said));
        }
        let words = std::fs::read(format!("/proc/{}/cmdline", rig.pid(of))).unwrap();
        shown.push((
            format!("{of:?}'s command line"),
            String::from_utf8_lossy(&words).into_owned(),
        ));
    }
    for event in rig.cluster().events() {
        shown.push(("an Event".into(), event.to_string()));
    }
    shown
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// What nobody may ever read in any of it.
fn secrets(rig: &Rig) -> (Vec<String>, Vec<String>) {
    let (mut secrets, mut key_ids) = (Vec::new(), Vec::new());
    for (pod, role) in rig.granted() {
        let put = "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n";
        secrets.push(ask(rig, Some(pod), "PUT /latest/api/token", put).body);
        let document = ask(rig, Some(pod), &format!("GET {LIST}{role}"), "").body;
        let document: serde_json::Value = serde_json::from_str(&document).unwrap();
        for name in ["SecretAccessKey", "Token"] {
            secrets.push(document[name].as_str().unwrap().to_owned());
        }
        key_ids.push(document["AccessKeyId"].as_str().unwrap().to_owned());
    }
    let token = rig.container_token("reader-0", Duration::from_hours(1));
    let token = token.unwrap();
    let document: serde_json::Value = serde_json::from_str(&second_door(rig, &token).body).unwrap();
    secrets.push(document["SecretAccessKey"].as_str().unwrap().to_owned());
    secrets.push(document["Token"].as_str().unwrap().to_owned());
    secrets.push(token);
    for file in ["agent-key.pem", "server-key.pem"] {
        let pem = std::fs::read_to_string(rig.dir().join(file)).unwrap();
        secrets.push(pem.lines().nth(1).unwrap().to_owned());
    }
    secrets.push("simulated-and-good-for-nothing".into());
    let key = std::fs::read_dir(rig.handover()).unwrap();
    let key = key.map(|entry| entry.unwrap().path());
    let key = key.filter(|path| path.to_string_lossy().contains("token"));
    for path in key {
        // The last 32 bytes but the seal's own sum, in the ways that bytes are printed.
        let bytes = std::fs::read(path).unwrap();
        for window in bytes.windows(16) {
            secrets.push(hex(window));
        }
    }
    secrets.retain(|secret| !secret.is_empty());
    (secrets, key_ids)
}

#[test]
fn secrets_are_shown_nowhere() {
    let rig = rig(&["--level=debug", "--audit-log"], &["--level=debug"]);
    let (secrets, key_ids) = secrets(&rig);
    assert!(secrets.len() > 30 && key_ids.len() > 10);
    // Things go wrong as well, and are told.
    drop(second_door(&rig, "not.a.token"));
    drop(ask(
        &rig,
        Some(ip(1)),
        &format!("GET {LIST}"),
        "x-aws-ec2-metadata-token: forged\r\n",
    ));
    rig.sts().throttle_share(1.0);
    rig.start_pod("throttled", "fresh", ip(2)).unwrap();
    drop(rig.get(ip(2), LIST).unwrap());
    rig.upgrade_agent().unwrap();
    rig.kill(Server).unwrap();
    rig.sts().throttle_share(0.0);
    rig.restart(Server).unwrap();
    rig.served(ip(2), "fresh").unwrap();
    for (place, text) in everything_shown(&rig) {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{place} shows a secret");
        }
        for key_id in &key_ids {
            for line in text.lines().filter(|line| line.contains(key_id.as_str())) {
                assert!(
                    place == "the agent's log" && line.contains("credentials served"),
                    "{place} names an access key: {line}"
                );
            }
        }
    }
    assert!(rig.log(Agent).contains(&key_ids[0]), "the audit log does");
}

#[test]
fn what_is_handed_over_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let rig = rig(&[], &[]);
    rig.upgrade_agent().unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(rig.handover()), 0o700);
    let mut files = 0;
    for entry in std::fs::read_dir(rig.handover()).unwrap() {
        let path = entry.unwrap().path();
        // The directory keeps others from the socket.
        if path.metadata().unwrap().is_file() {
            assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
            files += 1;
        }
    }
    assert!(files >= 2);
}

/// Neither program leaves a core, can be traced by its user's other processes, or can gain privileges.
#[test]
fn both_programs_are_poor_places_to_look() {
    let rig = rig(&[], &[]);
    for of in [Agent, Server] {
        let proc =
            |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", rig.pid(of))).unwrap();
        let status = proc("status");
        assert!(status.contains("NoNewPrivs:\t1"), "{of:?}: {status}");
        let limits = proc("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core"));
        let core: Vec<_> = core.unwrap().split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "{of:?}");
    }
}

/// What a kubelet, or whoever has its certificate, may create: a mirror pod of its own node, in any
/// namespace and with any annotation. It gets nothing of what that namespace permits.
#[test]
fn a_node_has_no_roles_of_pods_that_it_made_up() {
    let rig = rig(&[], &[]);
    let rule = [("iam.amazonaws.com/permitted", ".*")];
    rig.cluster().create_namespace("payments", &rule).unwrap();
    let pod = |name: &str| {
        let pod = NewPod::new("payments", name).node(rig.node());
        pod.annotation("iam.amazonaws.com/role", "payments-admin")
    };
    let mirror = pod("made-up").annotation("kubernetes.io/config.mirror", "6e0cbd");
    rig.add_pod(mirror, ip(1)).unwrap();
    let reply = within("it is told", || {
        let reply = rig.get(ip(1), LIST).unwrap();
        (reply.status != 503).then_some(reply)
    })
    .unwrap();
    assert_eq!(reply.status, 403, "{reply:?}");
    let why = rig.admin_says(Server, "/why?pod=payments/made-up").unwrap();
    assert!(why.contains("static pods get no role"), "{why}");
    within("there is an Event", || {
        let events = rig.cluster().events();
        let mut events = events.iter().map(ToString::to_string);
        events
            .any(|event| event.contains("made-up") && event.contains("static pods get no role"))
            .then_some(())
    })
    .unwrap();
    // The namespace does permit it.
    rig.add_pod(pod("real"), ip(2)).unwrap();
    rig.served(ip(2), "payments-admin").unwrap();
}

/// Line ends and escape sequences wherever others choose the text: in the log each stays in its line.
#[test]
fn nobody_writes_lines_of_their_own_into_the_log() {
    for json in [false, true] {
        let flags: &[&str] = if json {
            &["--level=debug", "--json-log"]
        } else {
            &["--level=debug"]
        };
        let rig = rig(flags, flags);
        let forged =
            "\r\n2026-01-01T00:00:00Z  INFO forged: \u{1b}[31mroot logged in\u{7f}\u{85}\u{2028}";
        let annotations = [
            "iam.amazonaws.com/role",
            "iam.amazonaws.com/session-name",
            "iam.amazonaws.com/external-id",
            "iam.amazonaws.com/session-duration",
            "iam.amazonaws.com/session-policy-arns",
            "iam.amazonaws.com/session-tag.x",
        ];
        for (number, key) in annotations.iter().enumerate() {
            let pod = NewPod::new(rig.namespace(), format!("forger-{number}")).node(rig.node());
            let pod = pod.annotation("iam.amazonaws.com/role", "reader");
            let from = ip(10 + u8::try_from(number).unwrap());
            rig.add_pod(pod.annotation(*key, forged), from).unwrap();
            within("it is refused or served", || {
                (rig.get(from, LIST).unwrap().status != 503).then_some(())
            })
            .unwrap();
        }
        rig.cluster()
            .create_namespace("forger", &[("iam.amazonaws.com/permitted", forged)])
            .unwrap();
        let pod = NewPod::new("forger", "pod").node(rig.node());
        let pod = pod.annotation("iam.amazonaws.com/role", "reader");
        rig.add_pod(pod, ip(30)).unwrap();
        within("it is refused", || {
            (rig.get(ip(30), LIST).unwrap().status == 403).then_some(())
        })
        .unwrap();
        for path in [
            "%0d%0a2026-01-01T00:00:00Z%20INFO%20forged",
            "%1b[31m",
            "\u{1b}[31mforged:",
        ] {
            for header in ["x", "user-agent", "x-aws-ec2-metadata-token", "host"] {
                let header = format!("{header}: \u{1b}[31mforged:\r\n");
                let request =
                    format!("GET {LIST}{path} HTTP/1.1\r\n{header}connection: close\r\n\r\n");
                drop(exchange(rig.agent(), Some(ip(1)), request.as_bytes()));
            }
            drop(kiam_loadtest::rig::get(
                rig.admin(Server),
                None,
                &format!("/why?pod={path}/x"),
            ));
        }
        drop(second_door(&rig, "\u{1b}[31mforged:"));
        for (name, log) in [("agent", rig.log(Agent)), ("server", rig.log(Server))] {
            assert!(!log.contains('\u{1b}'), "{name}: a raw escape in {log:?}");
            for line in log.lines() {
                let is_own = !line.contains("forged") || own(line, json);
                assert!(is_own, "{name}: a forged line {line:?}");
            }
        }
    }
}

/// A line that the program itself began.
fn own(line: &str, json: bool) -> bool {
    if json {
        return serde_json::from_str::<serde_json::Value>(line).is_ok();
    }
    // The forged ones are dated in January.
    !line.starts_with("2026-01-01")
}

/// A token is its pod's alone, and a stolen one is worth nothing anywhere else.
#[test]
fn tokens_are_worthless_in_other_hands() {
    let rig = rig(&[], &[]);
    let pods = rig.granted();
    let (mine, role) = &pods[0];
    let (other, _) = pods.iter().find(|(_ip, one)| one != role).unwrap();
    let put = "x-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    let token = ask(&rig, Some(*mine), "PUT /latest/api/token", put).body;
    let header = format!("x-aws-ec2-metadata-token: {token}\r\n");
    let list = format!("GET {LIST}");
    assert_eq!(ask(&rig, Some(*mine), &list, &header).status, 200);
    assert_eq!(ask(&rig, Some(*other), &list, &header).status, 401);
    // Nor by saying that it comes from there.
    let forwarded = format!("{header}x-forwarded-for: {mine}\r\n");
    assert_ne!(ask(&rig, Some(*other), &list, &forwarded).status, 200);
    assert_ne!(
        ask(
            &rig,
            Some(*other),
            &format!("GET {LIST}?ip={mine}"),
            &header
        )
        .status,
        200
    );

    // At the second door: another audience, a pod that is gone, a pod that never was here.
    let life = Duration::from_hours(1);
    let namespace = rig.namespace();
    let cluster = rig.cluster();
    let issue = |pod: Option<&str>, audience: &str, life| {
        cluster
            .issue_token(namespace, "default", pod, audience, life)
            .unwrap()
    };
    let audience = "pods.eks.amazonaws.com";
    let good = issue(Some("reader-0"), audience, life);
    assert_eq!(second_door(&rig, &good).status, 200);
    for (what, token) in [
        (
            "the API server's",
            issue(Some("reader-0"), "https://kubernetes.default.svc", life),
        ),
        (
            "the kiam server's",
            issue(Some("reader-0"), "kiam-server", life),
        ),
        ("of no pod", issue(None, audience, life)),
        ("cut short", good.split_at(good.len() - 8).0.to_owned()),
        (
            "signed with nothing",
            good.split_at(good.rfind('.').unwrap() + 1).0.to_owned(),
        ),
    ] {
        assert_eq!(second_door(&rig, &token).status, 401, "a token {what}");
    }
    rig.delete_pod("reader-0").unwrap();
    within("a dead pod's token is worth nothing", || {
        (second_door(&rig, &good).status != 200).then_some(())
    })
    .unwrap();
}

/// The public key is public: whoever signs with it as if it were a shared secret is nobody.
#[test]
fn a_public_key_is_no_shared_secret() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use ring::hmac::{HMAC_SHA256, Key, sign};
    let rig = rig(&[], &[]);
    let good = rig.container_token("reader-0", Duration::from_hours(1));
    let good = good.unwrap();
    assert_eq!(second_door(&rig, &good).status, 200);
    let body = good.split('.').nth(1).unwrap();
    let jwks = rig.cluster().jwks();
    let mut tried = 0;
    for jwk in jwks["keys"].as_array().unwrap() {
        let mut secrets = vec![jwk.to_string().into_bytes(), Vec::new()];
        for name in ["n", "x", "y", "kid"] {
            let Some(text) = jwk[name].as_str() else {
                continue;
            };
            secrets.push(text.as_bytes().to_vec());
            secrets.extend(URL_SAFE_NO_PAD.decode(text));
        }
        for secret in secrets {
            for algorithm in ["HS256", "hs256", "none", "ES256", "RS256"] {
                let head = serde_json::json!({"alg": algorithm, "typ": "JWT", "kid": jwk["kid"]});
                let head = URL_SAFE_NO_PAD.encode(head.to_string());
                let message = format!("{head}.{body}");
                let tag = sign(&Key::new(HMAC_SHA256, &secret), message.as_bytes());
                let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag));
                assert_eq!(second_door(&rig, &token).status, 401, "{algorithm}");
                tried += 1;
            }
        }
    }
    assert!(tried >= 20);
}

/// They tell; they take no orders.
#[test]
fn admin_ports_change_nothing() {
    let rig = rig(&[], &[]);
    for of in [Agent, Server] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            for path in [
                "/metrics",
                "/snapshot",
                "/livez",
                "/readyz",
                "/why?pod=a/b",
                "/quit",
            ] {
                let request = format!(
                    "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                );
                let reply = exchange(rig.admin(of), None, request.as_bytes()).unwrap();
                assert!(
                    matches!(reply.status, 404 | 405),
                    "{of:?} {method} {path}: {}",
                    reply.status
                );
            }
        }
    }
}
