//! Input that nobody sends by accident: each kind gets its answer or a close, never a wrong
//! credential, never a hang.

use std::io::Write as _;
use std::net::TcpStream;

use kiam_agent::data::DriverChoice;

use crate::support::{Agent, BOTH, LIST, config, connect, get, granted, ip, read_answer, token};

/// Sends `bytes` from pod 1 and gives what came back: statuses in order, then `.` when the
/// connection ended and `+` when it is still good for a request.
fn outcome(agent: &Agent, bytes: &[u8]) -> String {
    let mut stream = connect(ip(1), agent.door());
    // The other side may have closed while we still send.
    let _sent = stream.write_all(bytes);
    collect(&mut stream)
}

fn collect(stream: &mut TcpStream) -> String {
    let mut outcome = String::new();
    // Something that is only answered where requests are still read, and closes.
    let last = "GET /ping HTTP/1.1\r\nConnection: close\r\n\r\n";
    let _sent = stream.write_all(last.as_bytes());
    while let Some(answer) = read_answer(stream, false) {
        assert!(!answer.body.contains("secret-2"), "another pod's secret");
        if answer.body == "pong" {
            outcome.push('+');
            return outcome;
        }
        outcome += &answer.status.to_string();
        outcome.push(' ');
    }
    outcome.push('.');
    outcome
}

fn kinds(door_token_of_two: &str, expired: &str) -> Vec<(&'static str, String, &'static str)> {
    let get = |headers: &str| format!("GET {LIST} HTTP/1.1\r\n{headers}\r\n");
    let at = |target: &str| format!("GET {target} HTTP/1.1\r\n\r\n");
    let put = |headers: &str, body: &str| {
        format!(
            "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\
             {headers}\r\n{body}"
        )
    };
    vec![
        (
            "oversized head",
            get(&format!("A: {}\r\n", "a".repeat(9000))),
            "431 .",
        ),
        (
            "oversized target",
            at(&format!("/{}", "a".repeat(9000))),
            "431 .",
        ),
        ("many headers", get(&"A: b\r\n".repeat(60)), "431 ."),
        (
            "bare line feeds",
            format!("GET {LIST} HTTP/1.1\n\n"),
            "400 .",
        ),
        ("one bare line feed", get("A: b\n"), "400 ."),
        (
            "a bare line feed as the end",
            format!("GET {LIST} HTTP/1.1\r\nA: b\r\n\n"),
            "400 .",
        ),
        ("bare carriage return", get("A: b\rC: d\r\n"), "400 ."),
        ("NUL in a header", get("A: b\0c\r\n"), "400 ."),
        ("NUL in the target", at("/latest\0/"), "400 ."),
        ("folded header", get("A: b\r\n c\r\n"), "400 ."),
        (
            "folded first header",
            format!("GET {LIST} HTTP/1.1\r\n A: b\r\n\r\n"),
            "400 .",
        ),
        (
            "folded length",
            put("Content-Length:\r\n 5\r\n", "abcde"),
            "400 .",
        ),
        ("space before the colon", get("A : b\r\n"), "400 ."),
        (
            "space before the length's colon",
            put("Content-Length : 5\r\n", "abcde"),
            "400 .",
        ),
        ("a header without a name", get(": b\r\n"), "400 ."),
        ("a line that is no header", get("nothing\r\n"), "400 ."),
        (
            "a delete character in a header",
            get("A: b\x7fc\r\n"),
            "400 .",
        ),
        (
            "a space in the target",
            at("/latest/meta-data/iam/security-credentials/ x"),
            "505 .",
        ),
        (
            "a tab for a space",
            format!("GET\t{LIST} HTTP/1.1\r\n\r\n"),
            "400 .",
        ),
        (
            "two spaces",
            format!("GET  {LIST} HTTP/1.1\r\n\r\n"),
            "400 .",
        ),
        (
            "duplicate length",
            put("Content-Length: 1\r\nContent-Length: 1\r\n", "a"),
            "400 .",
        ),
        (
            "different lengths",
            put("Content-Length: 1\r\nContent-Length: 2\r\n", "aa"),
            "400 .",
        ),
        (
            "list of lengths",
            put("Content-Length: 1, 1\r\n", "a"),
            "400 .",
        ),
        ("signed length", put("Content-Length: +1\r\n", "a"), "400 ."),
        (
            "negative length",
            put("Content-Length: -1\r\n", ""),
            "400 .",
        ),
        (
            "hexadecimal length",
            put("Content-Length: 0x1\r\n", "a"),
            "400 .",
        ),
        (
            "length in tatters",
            put("Content-Length: 1 1\r\n", "a"),
            "400 .",
        ),
        ("empty length", put("Content-Length:\r\n", ""), "400 ."),
        (
            "lengths of another case",
            put("Content-Length: 1\r\ncontent-length: 2\r\n", "aa"),
            "400 .",
        ),
        (
            "duplicate token",
            get("X-aws-ec2-metadata-token: a\r\nX-aws-ec2-metadata-token: b\r\n"),
            "400 .",
        ),
        (
            "a TTL twice",
            put("x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n", ""),
            "400 .",
        ),
        (
            "length and chunks",
            put(
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                "0\r\n\r\n",
            ),
            "400 .",
        ),
        (
            "chunks and length",
            put(
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                "0\r\n\r\n",
            ),
            "400 .",
        ),
        (
            "chunks",
            put("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            "501 .",
        ),
        (
            "disguised chunks",
            put("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
            "501 .",
        ),
        (
            "chunks twice",
            put(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                "0\r\n\r\n",
            ),
            "400 .",
        ),
        (
            "chunks that hide a request",
            put(
                "Transfer-Encoding: chunked\r\n",
                &format!("0\r\n\r\n{}", at(LIST)),
            ),
            "501 .",
        ),
        (
            "chunks in a GET",
            get("Transfer-Encoding: chunked\r\n"),
            "501 .",
        ),
        (
            "length and chunks that hide a request",
            put(
                "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
                &format!("1\r\nZ\r\n0\r\n\r\n{}", at(LIST)),
            ),
            "400 .",
        ),
        (
            "a body over the limit",
            put("Content-Length: 8193\r\n", &"a".repeat(8193)),
            "413 .",
        ),
        (
            "a request after the last one",
            format!(
                "GET {LIST} HTTP/1.1\r\nConnection: close\r\n\r\n{}",
                at(LIST)
            ),
            "200 .",
        ),
        (
            "a request after one of HTTP/1.0",
            format!(
                "GET {LIST} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n{}",
                at(LIST)
            ),
            "200 .",
        ),
        (
            "a GET with a request as its body",
            get(&format!("Content-Length: {}\r\n", at(LIST).len())) + &at(LIST),
            "200 +",
        ),
        (
            "huge length",
            put("Content-Length: 99999999999999999999\r\n", ""),
            "413 .",
        ),
        (
            "a request as a body",
            put(
                &format!("Content-Length: {}\r\n", at(LIST).len()),
                &at(LIST),
            ),
            "200 +",
        ),
        (
            "a body that is waited for",
            put("Content-Length: 3\r\nExpect: 100-continue\r\n", "abc"),
            "200 +",
        ),
        ("another expectation", get("Expect: tea\r\n"), "417 ."),
        (
            "an expectation twice",
            put(
                "Content-Length: 3\r\nExpect: 100-continue\r\nExpect: 100-continue\r\n",
                "abc",
            ),
            "400 .",
        ),
        (
            "absolute form",
            at(&format!("http://169.254.169.254{LIST}")),
            "400 .",
        ),
        (
            "absolute form of another host",
            at(&format!("http://example.com{LIST}")),
            "400 .",
        ),
        (
            "authority form",
            "CONNECT a:80 HTTP/1.1\r\n\r\n".into(),
            "400 .",
        ),
        (
            "asterisk form",
            "OPTIONS * HTTP/1.1\r\n\r\n".into(),
            "400 .",
        ),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), "505 ."),
        ("HTTP/0.9", format!("GET {LIST}\r\n\r\n"), "400 ."),
        ("TLS", "\x16\x03\x01\x02\x00\x01\x00\x01".into(), "400 ."),
        (
            "dotted path",
            at("/latest/meta-data/x/../iam/security-credentials/"),
            "404 +",
        ),
        (
            "encoded dots",
            at("/latest/meta-data/x/%2e%2e/iam/security-credentials/"),
            "404 +",
        ),
        (
            "encoded path",
            at("/latest/meta-data/iam%2Fsecurity-credentials%2f"),
            "200 +",
        ),
        (
            "doubled slashes",
            at("//latest//meta-data/iam/security-credentials//"),
            "200 +",
        ),
        (
            "twice encoded path",
            at("/latest/meta-data/iam%252Fsecurity-credentials/"),
            "404 +",
        ),
        (
            "encoded dots after the role list",
            at(&format!("{LIST}%2e%2e/%2e%2e/iam/info")),
            "404 +",
        ),
        (
            "a backslash",
            at("/latest/meta-data/iam\\security-credentials/"),
            "404 +",
        ),
        ("encoded NUL", at(&format!("{LIST}%00")), "400 +"),
        ("encoded line end", at(&format!("{LIST}%0d%0a")), "400 +"),
        ("half an encoding", at(&format!("{LIST}%4")), "400 +"),
        ("non-ASCII", at(&format!("{LIST}\u{e9}")), "400 +"),
        (
            "semicolon",
            at("/latest/meta-data/iam/security-credentials;x/role-1"),
            "404 +",
        ),
        (
            "extra segment",
            at("/a/b/meta-data/iam/security-credentials/role-1"),
            "404 +",
        ),
        (
            "another pod's token",
            get(&format!(
                "X-aws-ec2-metadata-token: {door_token_of_two}\r\n"
            )),
            "401 +",
        ),
        (
            "an expired token",
            get(&format!("X-aws-ec2-metadata-token: {expired}\r\n")),
            "401 +",
        ),
        (
            "half a token",
            get(&format!(
                "X-aws-ec2-metadata-token: {}\r\n",
                &door_token_of_two[..20]
            )),
            "401 +",
        ),
        (
            "a token with a space behind it",
            get(&format!("X-aws-ec2-metadata-token: {expired} x\r\n")),
            "401 +",
        ),
        (
            "an empty token",
            get("X-aws-ec2-metadata-token:\r\n"),
            "401 +",
        ),
        (
            "a token that is no text",
            get("X-aws-ec2-metadata-token: \u{e9}\u{e9}\r\n"),
            "401 +",
        ),
        (
            "a token twice as long",
            get(&format!(
                "X-aws-ec2-metadata-token: {door_token_of_two}{door_token_of_two}\r\n"
            )),
            "401 +",
        ),
        ("another pod's role", at(&format!("{LIST}role-2")), "404 +"),
        (
            "a forged peer",
            get("X-Forwarded-For: 127.0.1.2\r\n"),
            "403 +",
        ),
        ("an empty forged peer", get("X-Forwarded-For:\r\n"), "403 +"),
        (
            "a forged host",
            get("Host: example.com\r\nHost: 127.0.1.2\r\n"),
            "200 +",
        ),
        (
            "a forged query",
            at(&format!("{LIST}?ip=127.0.1.2")),
            "200 +",
        ),
        (
            "a method of another case",
            format!("get {LIST} HTTP/1.1\r\n\r\n"),
            "405 +",
        ),
        ("POST", format!("POST {LIST} HTTP/1.1\r\n\r\n"), "405 +"),
        (
            "DELETE",
            format!("DELETE {LIST}role-1 HTTP/1.1\r\n\r\n"),
            "405 +",
        ),
    ]
}

#[test]
fn every_kind_has_its_answer() {
    for driver in BOTH {
        let agent = Agent::with(config(driver), vec![granted(1), granted(2)]);
        let of_two = token(ip(2), agent.door(), "60");
        let expired = token(ip(1), agent.door(), "1");
        let still_good = || {
            let request =
                format!("GET {LIST} HTTP/1.1\r\nX-aws-ec2-metadata-token: {expired}\r\n\r\n");
            crate::support::ask(ip(1), agent.door(), &request).status == 200
        };
        crate::support::eventually("the token expires", || !still_good());
        let kinds = kinds(&of_two, &expired);
        assert!(kinds.len() >= 24);
        let wrong: Vec<_> = kinds
            .into_iter()
            .map(|(kind, bytes, expected)| (kind, outcome(&agent, bytes.as_bytes()), expected))
            .filter(|(_, got, expected)| got != expected)
            .collect();
        assert!(wrong.is_empty(), "{wrong:?} with {driver:?}");
        assert_eq!(agent.metric("kiam_agent_panics_total"), Some(0.0));
    }
}

/// Input that ends too early, and then the client has closed its half: no answer, and no connection
/// left behind.
#[test]
fn what_is_cut_off_is_not_answered() {
    for driver in BOTH {
        let mut config = config(driver);
        config.limits.peer_burst = 100_000;
        let agent = Agent::with(config, vec![granted(1)]);
        let whole = "PUT /latest/api/token HTTP/1.1\r\n\
                     X-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Length: 3\r\n\r\nabc";
        for end in 0..whole.len() {
            let mut stream = connect(ip(1), agent.door());
            stream.write_all(&whole.as_bytes()[..end]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(read_answer(&mut stream, false), None, "at {end}");
        }
        crate::support::eventually("all are closed", || {
            agent.metric("kiam_agent_connections_open") == Some(0.0)
        });
    }
}

/// What hides in a refused request is not found by what is read after it, wherever the pieces end.
#[test]
fn a_smuggled_request_is_never_answered() {
    let hidden = format!("GET {LIST}role-1 HTTP/1.1\r\n\r\n");
    let head = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    let pairs = [
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 0\r\n",
        "Content-Length: 0, 5\r\n",
        "Content-Length: 0\n",
        "Content-Length : 0\r\n",
    ];
    for driver in BOTH {
        let mut config = config(driver);
        config.limits.peer_burst = 100_000;
        let agent = Agent::with(config, vec![granted(1)]);
        for pair in pairs {
            let request = format!("{head}{pair}\r\n0\r\n\r\n{hidden}");
            for split in [request.len(), request.len() - hidden.len(), head.len()] {
                let mut stream = connect(ip(1), agent.door());
                let (first, second) = request.split_at(split);
                stream.write_all(first.as_bytes()).unwrap();
                std::thread::yield_now();
                // It may have been closed by now.
                let _sent = stream.write_all(second.as_bytes());
                let mut statuses = Vec::new();
                while let Some(answer) = read_answer(&mut stream, false) {
                    statuses.push(answer.status);
                }
                assert!(
                    matches!(statuses.as_slice(), [] | [400 | 501]),
                    "{pair:?} at {split}: {statuses:?} with {driver:?}"
                );
            }
        }
    }
}

#[test]
fn a_request_may_arrive_in_any_two_pieces() {
    for driver in BOTH {
        let mut config = config(driver);
        config.limits.peer_burst = 100_000;
        let agent = Agent::with(config, vec![granted(1)]);
        let token = token(ip(1), agent.door(), "60");
        let whole = format!(
            "GET {LIST}role-1 HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token: {token}\r\n\
             Content-Length: 3\r\n\r\nabc"
        );
        let mut stream = connect(ip(1), agent.door());
        for split in 1..whole.len() {
            let (first, second) = whole.split_at(split);
            stream.write_all(first.as_bytes()).unwrap();
            // So that the pieces do arrive apart, most of the time.
            std::thread::yield_now();
            stream.write_all(second.as_bytes()).unwrap();
            assert_eq!(
                read_answer(&mut stream, false).unwrap().status,
                200,
                "at {split}"
            );
        }
    }
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    for driver in BOTH {
        let agent = Agent::with(config(driver), vec![granted(1)]);
        let mut stream = connect(ip(1), agent.door());
        for byte in format!("GET {LIST} HTTP/1.1\r\nHost: x\r\n\r\n").bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        assert_eq!(read_answer(&mut stream, false).unwrap().body, "role-1");
    }
}

#[test]
fn expecting_clients_are_told_to_go_on() {
    for driver in BOTH {
        let agent = Agent::with(config(driver), vec![granted(1)]);
        let mut stream = connect(ip(1), agent.door());
        let head = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\
                    Content-Length: 3\r\nExpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut stream, false).unwrap().status, 100);
        stream.write_all(b"abc").unwrap();
        assert_eq!(read_answer(&mut stream, false).unwrap().status, 200);
    }
}

#[test]
fn a_hundred_clients_that_vanish_leave_nothing_behind() {
    for driver in BOTH {
        let agent = Agent::with(config(driver), vec![granted(1)]);
        for _ in 0..100 {
            let mut stream = connect(ip(1), agent.door());
            stream
                .write_all(format!("GET {LIST} HTTP").as_bytes())
                .unwrap();
        }
        crate::support::eventually("all are closed", || {
            agent.metric("kiam_agent_connections_open") == Some(0.0)
        });
        assert_eq!(get(ip(1), agent.door(), LIST).status, 200);
    }
}

#[test]
fn auto_chooses_a_driver_that_runs() {
    let agent = Agent::with(config(DriverChoice::Auto), vec![granted(1)]);
    assert_eq!(get(ip(1), agent.door(), LIST).status, 200);
}
