//! Malformed anything: a clear error that names the field, and the rest keeps working.

use std::io::Write as _;
use std::net::TcpStream;

use kiam_loadtest::rig::Program::{Agent, Server};
use kiam_loadtest::rig::{Given, Rig, exchange, within};
use kiam_sim::cluster::NewPod;

use crate::{LIST, MOMENT, ip, nobody_noticed, rig};

/// Annotations that nobody should write, and what `why` must name.
const ANNOTATIONS: [(&str, &str, &str); 8] = [
    ("iam.amazonaws.com/role", "not a role\u{7}", "role"),
    ("iam.amazonaws.com/role", "arn:aws:s3:::bucket", "role"),
    ("iam.amazonaws.com/role", "arn:aws:iam::12:role/x", "role"),
    (
        "iam.amazonaws.com/session-duration",
        "soon",
        "session-duration",
    ),
    (
        "iam.amazonaws.com/session-duration",
        "-15m",
        "session-duration",
    ),
    (
        "iam.amazonaws.com/session-policy-arns",
        "x,,y",
        "session-policy-arns",
    ),
    ("iam.amazonaws.com/external-id", "\u{1}", "external-id"),
    ("iam.amazonaws.com/session-tag.aws:x", "y", "session-tag"),
];

fn a_good_pod_is_served(rig: &Rig) -> anyhow::Result<Given> {
    rig.start_pod("good", "writer", ip(1))?;
    rig.served(ip(1), "writer")
}

#[test]
fn malformed_annotations() {
    let rig = rig();
    let witness = rig.witness();
    for (number, (key, value, _named)) in ANNOTATIONS.iter().enumerate() {
        let pod = NewPod::new(rig.namespace(), format!("bad-{number}")).node(rig.node());
        let pod = pod
            .annotation("iam.amazonaws.com/role", "reader")
            .annotation(*key, *value);
        rig.add_pod(pod, ip(10 + u8::try_from(number).unwrap()))
            .unwrap();
    }
    for (number, (key, value, named)) in ANNOTATIONS.iter().enumerate() {
        let from = ip(10 + u8::try_from(number).unwrap());
        let reply = within("it is refused", || {
            let reply = rig.get(from, LIST).unwrap();
            (reply.status != 503).then_some(reply)
        })
        .unwrap();
        assert_eq!(reply.status, 403, "{key}={value:?}");
        let why = rig
            .admin_says(
                Server,
                &format!("/why?pod={}/bad-{number}", rig.namespace()),
            )
            .unwrap();
        assert!(why.contains(named), "{key}={value:?}: {why}");
    }
    witness.heals(|| a_good_pod_is_served(&rig)).unwrap();
    nobody_noticed("malformed-annotations", MOMENT, witness);
}

#[test]
fn a_malformed_namespace_rule() {
    let rig = rig();
    let witness = rig.witness();
    for (number, rule) in ["(", "a{1001}{1001}", "\\", "(?<x>", "[z-a]"]
        .iter()
        .enumerate()
    {
        let namespace = format!("broken-{number}");
        rig.cluster()
            .create_namespace(&namespace, &[("iam.amazonaws.com/permitted", rule)])
            .unwrap();
        let pod = NewPod::new(&*namespace, "pod").node(rig.node());
        let pod = pod.annotation("iam.amazonaws.com/role", "reader");
        let from = ip(10 + u8::try_from(number).unwrap());
        rig.add_pod(pod, from).unwrap();
        within("it is refused", || {
            (rig.get(from, LIST).unwrap().status == 403).then_some(())
        })
        .unwrap();
        let why = rig
            .admin_says(Server, &format!("/why?pod={namespace}/pod"))
            .unwrap();
        assert!(why.contains("iam.amazonaws.com/permitted"), "{rule}: {why}");
    }
    witness.heals(|| a_good_pod_is_served(&rig)).unwrap();
    nobody_noticed("malformed-namespace-rule", MOMENT, witness);
}

fn send(rig: &Rig, bytes: &[u8]) {
    let ports = [
        rig.agent(),
        rig.container(),
        rig.admin(Agent),
        rig.admin(Server),
        rig.server(),
    ];
    for port in ports {
        let mut stream = TcpStream::connect(port).unwrap();
        // Some hang up before it is all sent.
        drop(stream.write_all(bytes));
    }
}

#[test]
fn malformed_bytes_on_every_port() {
    let rig = rig();
    let (agent, server) = (rig.pid(Agent), rig.pid(Server));
    let witness = rig.witness();
    let mut dice = fastrand::Rng::with_seed(1);
    for length in [0, 1, 16, 512, 70_000] {
        for _ in 0..5 {
            let bytes: Vec<u8> = (0..length).map(|_| dice.u8(..)).collect();
            send(&rig, &bytes);
        }
    }
    for text in [
        "GET / HTTP/9.9\r\n\r\n",
        "GET /\u{0} HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        send(&rig, text.as_bytes());
    }
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    send(&rig, long.as_bytes());
    // A client that says what it wants badly is told so.
    let reply = exchange(rig.agent(), None, b"nonsense\r\n\r\n").unwrap();
    assert_eq!(reply.status, 400);
    witness.heals(|| a_good_pod_is_served(&rig)).unwrap();
    nobody_noticed("malformed-bytes", MOMENT, witness);
    assert_eq!((rig.pid(Agent), rig.pid(Server)), (agent, server));
    for log in [rig.log(Agent), rig.log(Server)] {
        assert!(!log.contains("panicked"), "{log}");
    }
}
