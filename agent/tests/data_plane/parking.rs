//! Requests that wait for their pod.

use std::io::Write as _;
use std::time::Duration;

use kiam_agent::clock::monotonic;
use kiam_agent::data::Plane;
use kiam_wire::PodState;

use crate::support::{
    Agent, BOTH, LIST, config, connect, credentials, eventually, get, granted, id, ip, pod,
    read_answer,
};

fn request() -> String {
    format!("GET {LIST} HTTP/1.1\r\n\r\n")
}

#[test]
fn a_parked_request_is_answered_when_its_pod_is_published() {
    for driver in BOTH {
        let mut config = config(driver);
        config.limits.park_timeout = Duration::from_secs(6);
        let mut agent = Agent::start(config);
        let mut streams: Vec<_> = (1..=3).map(|n| connect(ip(n), agent.door())).collect();
        for stream in &mut streams {
            stream.write_all(request().as_bytes()).unwrap();
        }
        eventually("three requests are parked", || {
            agent.metric("kiam_agent_parked_requests") == Some(3.0)
        });
        // The control side hears who waits.
        let waiting = agent.plane.as_ref().unwrap().waiting().unwrap();
        let mut reported = std::collections::BTreeSet::new();
        eventually("three peers are reported", || {
            let mut message = [0; Plane::WAITING_BYTES + 1];
            if let Ok(bytes) = waiting.recv(&mut message) {
                assert_eq!(bytes, Plane::WAITING_BYTES);
                let octets = <[u8; 16]>::try_from(&message[..16]).unwrap();
                reported.insert(std::net::IpAddr::from(octets).to_canonical());
            }
            reported.len() == 3
        });
        assert!(reported.contains(&ip(2)));

        agent.full(
            vec![
                granted(1),
                pod(2, PodState::NoRole),
                pod(3, PodState::Pending(id(3))),
            ],
            None,
        );
        assert_eq!(read_answer(&mut streams[0], false).unwrap().body, "role-1");
        assert_eq!(read_answer(&mut streams[1], false).unwrap().status, 404);
        assert_eq!(agent.metric("kiam_agent_parked_requests"), Some(1.0));
        agent.delta(vec![granted(3)], vec![credentials(id(3), 3600)]);
        assert_eq!(read_answer(&mut streams[2], false).unwrap().body, "role-3");
        eventually("nobody is parked", || {
            agent.metric("kiam_agent_parked_requests") == Some(0.0)
        });
        // And the connection goes on.
        streams[0].write_all(request().as_bytes()).unwrap();
        assert_eq!(read_answer(&mut streams[0], false).unwrap().status, 200);
    }
}

#[test]
fn waiting_ends_in_503() {
    for driver in BOTH {
        let agent = Agent::with(config(driver), vec![pod(1, PodState::Pending(id(1)))]);
        let began = monotonic();
        for peer in [ip(1), ip(9)] {
            let answer = get(peer, agent.door(), LIST);
            assert_eq!((answer.status, answer.body.as_str()), (503, ""));
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        assert!(began.elapsed() >= Duration::from_millis(1800));
        assert_eq!(agent.metric("kiam_agent_parked_timed_out_total"), Some(2.0));
    }
}

#[test]
fn expired_credentials_are_never_served() {
    for driver in BOTH {
        let mut agent = Agent::start(config(driver));
        agent.full(vec![], None);
        agent.delta(vec![granted(1)], vec![credentials(id(1), 2)]);
        assert_eq!(get(ip(1), agent.door(), LIST).status, 200);
        eventually("they expire", || {
            get(ip(1), agent.door(), LIST).status == 503
        });
        agent.delta(vec![], vec![credentials(id(1), 3600)]);
        assert_eq!(get(ip(1), agent.door(), LIST).status, 200);
    }
}

#[test]
fn a_client_that_hangs_up_is_no_longer_waited_for() {
    for driver in BOTH {
        let mut config = config(driver);
        config.limits.park_timeout = Duration::from_secs(6);
        let agent = Agent::start(config);
        let mut stream = connect(ip(1), agent.door());
        stream.write_all(request().as_bytes()).unwrap();
        eventually("parked", || {
            agent.metric("kiam_agent_parked_requests") == Some(1.0)
        });
        drop(stream);
        eventually("noticed", || {
            agent.metric("kiam_agent_parked_requests") == Some(0.0)
        });
        assert_eq!(agent.metric("kiam_agent_parked_abandoned_total"), Some(1.0));
        eventually("closed", || {
            agent.metric("kiam_agent_connections_open") == Some(0.0)
        });
    }
}

#[test]
fn what_arrives_while_parked_is_not_lost() {
    for driver in BOTH {
        let mut config = config(driver);
        config.limits.park_timeout = Duration::from_secs(6);
        let mut agent = Agent::start(config);
        let mut stream = connect(ip(1), agent.door());
        let more = format!("GET {LIST}role-1 HTTP/1.1\r\n\r\n");
        stream.write_all(request().as_bytes()).unwrap();
        eventually("parked", || {
            agent.metric("kiam_agent_parked_requests") == Some(1.0)
        });
        let (half, rest) = more.split_at(20);
        stream
            .write_all(format!("{more}{half}").as_bytes())
            .unwrap();
        agent.full(vec![granted(1)], None);
        assert_eq!(read_answer(&mut stream, false).unwrap().body, "role-1");
        assert!(
            read_answer(&mut stream, false)
                .unwrap()
                .body
                .contains("secret-1")
        );
        stream.write_all(rest.as_bytes()).unwrap();
        assert!(
            read_answer(&mut stream, false)
                .unwrap()
                .body
                .contains("secret-1")
        );
    }
}

#[test]
fn an_address_behind_a_fence_waits_for_its_next_pod() {
    for driver in BOTH {
        let mut config = config(driver);
        config.limits.park_timeout = Duration::from_secs(6);
        let mut agent = Agent::with(config, vec![granted(1)]);
        assert!(agent.store.fence(ip(1), kiam_agent::clock::Now::read()));
        agent.publish();
        let mut stream = connect(ip(1), agent.door());
        stream.write_all(request().as_bytes()).unwrap();
        eventually("parked", || {
            agent.metric("kiam_agent_parked_requests") == Some(1.0)
        });
        // The server still names the old pod: nothing changes.
        agent.delta(vec![granted(1)], vec![]);
        let mut next = granted(2);
        next.ips = vec![ip(1)];
        agent.delta(vec![next], vec![credentials(id(2), 3600)]);
        assert_eq!(read_answer(&mut stream, false).unwrap().body, "role-2");
    }
}
