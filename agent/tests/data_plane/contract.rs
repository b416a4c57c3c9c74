//! The metadata service's contract, as SDKs rely on it.

use std::io::Write as _;

use kiam_wire::{PodState, Refusal, Refused};

use crate::support::{
    Agent, BOTH, LIST, ask, config, connect, get, granted, ip, pod, read_answer, token,
};

#[test]
fn every_situation_has_its_answer() {
    for driver in BOTH {
        let refused = Refused::new(Refusal::NamespaceForbids, "not here");
        let agent = Agent::with(
            config(driver),
            vec![
                granted(1),
                pod(2, PodState::NoRole),
                pod(3, PodState::Refused(refused)),
            ],
        );
        let door = agent.door();
        for path in [
            LIST,
            "/latest/meta-data/iam/security-credentials",
            "/1.0/meta-data/iam/security-credentials-extended/",
            "/latest/meta-data/iam/security-credentials-extended",
        ] {
            let list = get(ip(1), door, path);
            assert_eq!((list.status, list.body.as_str()), (200, "role-1"));
            assert_eq!(list.header("content-type"), Some("text/plain"));
            assert!(list.header("date").is_some());
            let none = get(ip(2), door, path);
            assert_eq!((none.status, none.body.as_str()), (404, ""));
            let refused = get(ip(3), door, path);
            assert_eq!((refused.status, refused.body.as_str()), (403, ""));
            assert_eq!(refused.header("x-kiam-reason"), Some("not here"));
        }
        for role in [
            "role-1",
            "/role-1",
            "team/role-1",
            "arn:aws:iam::123456789012:role/team/role-1",
            "arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fteam%2Frole-1",
        ] {
            let answer = get(ip(1), door, &format!("{LIST}{role}"));
            assert_eq!(answer.status, 200, "for {role}");
            let json: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(json["Code"], "Success");
            assert_eq!(json["SecretAccessKey"], "secret-1");
            assert!(json.get("AccountId").is_none());
        }
        assert_eq!(get(ip(1), door, &format!("{LIST}role-2")).status, 404);
        let extended = "/latest/meta-data/iam/security-credentials-extended/role-1";
        assert!(
            get(ip(1), door, extended)
                .body
                .contains(r#""AccountId":"123456789012""#)
        );
        let info = get(ip(1), door, "/latest/meta-data/iam/info");
        assert!(info.body.contains("instance-profile/team/role-1"));
        assert_eq!(
            get(ip(1), door, "/latest/meta-data/placement/region").status,
            404
        );
        assert_eq!(
            get(ip(1), door, "/latest/meta-data/instance-id").status,
            404
        );
        assert_eq!(get(ip(9), door, "/ping").body, "pong");
        assert_eq!(get(ip(9), door, "/health").status, 200);
        assert_eq!(get(ip(9), door, "/health?deep=1").status, 503);
    }
}

#[test]
fn tokens_are_for_one_pod_and_asked_for_by_put() {
    for driver in BOTH {
        let agent = Agent::with(config(driver), vec![granted(1), granted(2)]);
        let door = agent.door();
        let put = |headers: &str| {
            ask(
                ip(1),
                door,
                &format!("PUT /latest/api/token HTTP/1.1\r\n{headers}\r\n"),
            )
        };
        let ttl = "X-AWS-EC2-Metadata-Token-TTL-Seconds";
        let answer = put(&format!("{ttl}: 21600\r\n"));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header(ttl), Some("21600"));
        assert_eq!(answer.header("content-type"), Some("text/plain"));
        assert_eq!(put("").status, 400);
        assert_eq!(put(&format!("{ttl}: 0\r\n")).status, 400);
        assert_eq!(put(&format!("{ttl}: 21601\r\n")).status, 400);
        assert_eq!(put(&format!("{ttl}: x\r\n")).status, 400);
        assert_eq!(
            put(&format!("{ttl}: 1\r\nX-Forwarded-For: a\r\n")).status,
            403
        );
        assert_eq!(get(ip(1), door, "/latest/api/token").status, 405);
        // Also for a pod that nobody knows.
        assert!(!token(ip(9), door, "60").is_empty());

        let with = |from, token: &str| {
            let request =
                format!("GET {LIST} HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
            ask(from, door, &request).status
        };
        let mine = token(ip(1), door, "60");
        assert_eq!(with(ip(1), &mine), 200);
        assert_eq!(with(ip(2), &mine), 401);
        assert_eq!(with(ip(1), &mine[1..]), 401);
        assert_eq!(with(ip(1), "x"), 401);
        assert_eq!(with(ip(1), ""), 401);
        let short = token(ip(1), door, "1");
        crate::support::eventually("the token expires", || with(ip(1), &short) == 401);
    }
}

#[test]
fn v1_can_be_refused_for_all_or_by_a_namespace() {
    for driver in BOTH {
        let mut strict = granted(2);
        strict.imds_v2_required = true;
        let agent = Agent::with(config(driver), vec![granted(1), strict.clone()]);
        assert_eq!(get(ip(1), agent.door(), LIST).status, 200);
        assert_eq!(get(ip(2), agent.door(), LIST).status, 401);
        let mut config = config(driver);
        config.imds_v2_only = true;
        let agent = Agent::with(config, vec![granted(1)]);
        // At once for unknown pods too: the token comes first.
        assert_eq!(get(ip(9), agent.door(), LIST).status, 401);
        assert_eq!(get(ip(1), agent.door(), LIST).status, 401);
        let token = token(ip(1), agent.door(), "60");
        let request = format!("GET {LIST} HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
        assert_eq!(ask(ip(1), agent.door(), &request).status, 200);
    }
}

#[test]
fn connections_are_kept_closed_and_pipelined_as_asked() {
    for driver in BOTH {
        let agent = Agent::with(config(driver), vec![granted(1)]);
        let mut stream = connect(ip(1), agent.door());
        let one = format!("GET {LIST} HTTP/1.1\r\n\r\n");
        let head = format!("HEAD {LIST}role-1 HTTP/1.1\r\n\r\n");
        let last = format!("GET {LIST}role-1 HTTP/1.1\r\nConnection: close\r\n\r\n");
        // Two and a half, then the rest.
        let all = format!("{one}{one}{head}{last}");
        let (first, second) = all.split_at(one.len() * 2 + 10);
        stream.write_all(first.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut stream, false).unwrap().body, "role-1");
        assert_eq!(read_answer(&mut stream, false).unwrap().body, "role-1");
        stream.write_all(second.as_bytes()).unwrap();
        let headed = read_answer(&mut stream, true).unwrap();
        let got = read_answer(&mut stream, false).unwrap();
        assert_eq!(
            headed.header("content-length"),
            got.header("content-length")
        );
        assert_eq!(got.header("connection"), Some("close"));
        assert_eq!(read_answer(&mut stream, false), None);

        let mut stream = connect(ip(1), agent.door());
        stream
            .write_all(one.replace("1.1", "1.0").as_bytes())
            .unwrap();
        assert_eq!(read_answer(&mut stream, false).unwrap().status, 200);
        assert_eq!(read_answer(&mut stream, false), None);
    }
}

#[test]
fn a_hundred_pipelined_requests_get_a_hundred_answers() {
    for driver in BOTH {
        let agent = Agent::with(config(driver), vec![granted(1)]);
        let mut stream = connect(ip(1), agent.door());
        let mut writer = stream.try_clone().unwrap();
        let request = format!("GET {LIST}role-1 HTTP/1.1\r\n\r\n").repeat(100);
        let sending = std::thread::spawn(move || writer.write_all(request.as_bytes()));
        for _ in 0..100 {
            assert_eq!(read_answer(&mut stream, false).unwrap().status, 200);
        }
        sending.join().unwrap().unwrap();
    }
}

#[test]
fn region_look_ups_are_answered_when_flags_say_what() {
    for driver in BOTH {
        let mut config = config(driver);
        config.region = Some("eu-west-1".into());
        config.availability_zone = Some("eu-west-1a".into());
        let agent = Agent::with(config, vec![]);
        let place = |path: &str| get(ip(9), agent.door(), &format!("/latest/{path}")).body;
        assert_eq!(place("meta-data/placement/region"), "eu-west-1");
        assert_eq!(place("meta-data/placement/availability-zone"), "eu-west-1a");
        assert_eq!(
            place("meta-data/placement/availability-zone/"),
            "eu-west-1a"
        );
        assert_eq!(
            place("dynamic/instance-identity/document"),
            r#"{"availabilityZone":"eu-west-1a","region":"eu-west-1"}"#
        );
    }
}

#[test]
fn a_token_may_be_told_not_to_travel() {
    for driver in BOTH {
        let mut config = config(driver);
        config.token_hop_limit = std::num::NonZeroU8::new(1);
        let agent = Agent::with(config, vec![granted(1)]);
        // Loopback is no hop, so that all we see is that it goes on working afterwards.
        let mut stream = connect(ip(1), agent.door());
        for _ in 0..3 {
            let put = "PUT /latest/api/token HTTP/1.1\r\n\
                       X-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
            stream.write_all(put.as_bytes()).unwrap();
            assert_eq!(read_answer(&mut stream, false).unwrap().status, 200);
            stream
                .write_all(format!("GET {LIST} HTTP/1.1\r\n\r\n").as_bytes())
                .unwrap();
            assert_eq!(read_answer(&mut stream, false).unwrap().status, 200);
        }
    }
}

#[test]
fn the_query_may_say_who_asks_only_when_allowed() {
    for driver in BOTH {
        let agent = Agent::with(config(driver), vec![granted(1), pod(2, PodState::NoRole)]);
        assert_eq!(
            get(ip(2), agent.door(), &format!("{LIST}?ip={}", ip(1))).status,
            404
        );
        let mut config = config(driver);
        config.allow_ip_query = true;
        let agent = Agent::with(config, vec![granted(1), pod(2, PodState::NoRole)]);
        assert_eq!(
            get(ip(2), agent.door(), &format!("{LIST}?ip={}", ip(1))).status,
            200
        );
    }
}
