//! What is fetched from the real metadata service, and what never is.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kiam_agent::data::{DataConfig, DriverChoice, Passthrough};
use regex::Regex;

use crate::support::{Agent, BOTH, PATIENCE, ask, config, connect, get, granted, ip, read_answer};

/// A metadata service that tells what it was asked and answers from a script.
fn service(script: Vec<&'static str>) -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, questions) = channel();
    std::thread::spawn(move || {
        for answer in script {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            let mut chunk = [0; 1024];
            while !received.ends_with(b"\r\n\r\n") {
                match stream.read(&mut chunk) {
                    Ok(0) | Err(_) => break,
                    Ok(bytes) => received.extend_from_slice(&chunk[..bytes]),
                }
            }
            let _gone = asked.send(String::from_utf8(received).unwrap());
            let _gone = stream.write_all(answer.as_bytes());
        }
    });
    (address, questions)
}

fn through(driver: DriverChoice, endpoint: SocketAddr, allow: &str) -> DataConfig {
    let mut config = config(driver);
    config.passthrough = Some(Passthrough {
        allow: Regex::new(allow).unwrap(),
        endpoint,
        timeout: Duration::from_millis(700),
        body_bytes_max: 100_000,
    });
    config
}

const TOKEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nTOKEN";

#[test]
fn a_rebuilt_request_goes_out_and_the_answer_comes_back() {
    for driver in BOTH {
        let (endpoint, questions) = service(vec![
            TOKEN,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\
             Set-Cookie: a\r\nConnection: keep-alive\r\nETag: \"x\"\r\n\r\neu-west-1",
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        ]);
        let agent = Agent::with(
            through(driver, endpoint, "^/latest/meta-data/placement"),
            vec![],
        );
        let mut stream = connect(ip(1), agent.door());
        let request = "GET /latest/meta-data/placement/region?x=y HTTP/1.1\r\nCookie: c\r\n\
                       Content-Length: 3\r\n\r\nabc";
        stream.write_all(request.as_bytes()).unwrap();
        let answer = read_answer(&mut stream, false).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "eu-west-1"));
        assert_eq!(answer.header("etag"), Some("\"x\""));
        assert_eq!(
            (answer.header("set-cookie"), answer.header("connection")),
            (None, None)
        );
        let session = questions.recv_timeout(PATIENCE).unwrap();
        assert!(
            session.starts_with("PUT /latest/api/token HTTP/1.1\r\n"),
            "{session}"
        );
        let asked = questions.recv_timeout(PATIENCE).unwrap();
        assert!(asked.starts_with("GET /latest/meta-data/placement/region HTTP/1.1\r\n"));
        assert!(asked.contains("X-aws-ec2-metadata-token: TOKEN\r\n"));
        assert!(!asked.to_ascii_lowercase().contains("cookie") && !asked.contains("abc"));
        // The connection goes on, and so does the session.
        stream
            .write_all(b"HEAD /latest/meta-data/placement/x HTTP/1.1\r\n\r\n")
            .unwrap();
        assert_eq!(read_answer(&mut stream, true).unwrap().status, 403);
        assert!(
            questions
                .recv_timeout(PATIENCE)
                .unwrap()
                .starts_with("GET /latest/meta-data/placement/x ")
        );
    }
}

#[test]
fn a_refused_session_is_renewed_once() {
    for driver in BOTH {
        let (endpoint, _questions) = service(vec![
            TOKEN,
            "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
            TOKEN,
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        ]);
        let agent = Agent::with(through(driver, endpoint, "."), vec![]);
        assert_eq!(
            get(ip(1), agent.door(), "/latest/meta-data/instance-id").body,
            "ok"
        );
    }
}

#[test]
fn a_service_that_misbehaves_is_502_or_504() {
    for driver in BOTH {
        for (answer, expected) in [
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                502,
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 100001\r\n\r\n", 502),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                502,
            ),
            ("nonsense\r\n\r\n", 502),
            ("", 502),
        ] {
            let (endpoint, _questions) = service(vec![TOKEN, answer]);
            let agent = Agent::with(through(driver, endpoint, "."), vec![]);
            let status = get(ip(1), agent.door(), "/latest/meta-data/instance-id").status;
            assert_eq!(status, expected, "for {answer:?}");
        }
        // Nobody accepts there, so that the connection is made and nothing comes.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = through(driver, silent.local_addr().unwrap(), ".");
        let agent = Agent::with(config, vec![]);
        assert_eq!(get(ip(1), agent.door(), "/latest/meta-data/x").status, 504);
    }
}

/// kiam's S4, S5 and S7, through the door: nothing of this reaches the service.
#[test]
fn no_way_round_leads_to_the_node() {
    for driver in BOTH {
        let (endpoint, questions) = service(vec![TOKEN; 3]);
        let agent = Agent::with(through(driver, endpoint, "^/.*"), vec![granted(1)]);
        let role = "security-credentials/node";
        for (path, expected) in [
            (format!("/latest/meta-data/iam/{role}%0a"), 400),
            (
                "/latest/meta-data/iam/security-credentials;x/node".to_owned(),
                404,
            ),
            (format!("/a/b/meta-data/iam/{role}"), 404),
            (format!("/latest/meta-data/x/../iam/{role}"), 404),
            (format!("/latest/meta-data/IAM/{role}"), 404),
            (
                format!("/latest/meta-data/identity-credentials/ec2/{role}"),
                404,
            ),
            ("/latest/user-data".to_owned(), 404),
            ("/latest/meta-data/%69am/info/x".to_owned(), 404),
            (format!("/latest/meta-data/iam/{role}"), 404),
        ] {
            assert_eq!(get(ip(1), agent.door(), &path).status, expected, "{path}");
        }
        // S5: a PUT with a body and headers of the client's choice.
        let smuggled = "GET /latest/meta-data/iam/security-credentials/node HTTP/1.1\r\n\r\n";
        let put = format!(
            "PUT /latest/meta-data/x/api/token HTTP/1.1\r\nContent-Length: {}\r\n\r\n{smuggled}",
            smuggled.len()
        );
        assert_eq!(ask(ip(1), agent.door(), &put).status, 404);
        let own = put.replace("meta-data/x/", "");
        assert_eq!(ask(ip(1), agent.door(), &own).status, 400);
        assert!(questions.recv_timeout(Duration::from_millis(200)).is_err());
        let blocked = agent.metric("kiam_metadata_proxy_requests_blocked_total");
        assert!(blocked.is_some_and(|count| count >= 7.0), "{blocked:?}");
    }
}
