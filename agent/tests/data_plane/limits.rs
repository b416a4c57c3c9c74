//! What one peer cannot do to the others.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiam_agent::data::{DataConfig, DriverChoice};
use kiam_agent::intercept::witness::Witness;

use crate::support::{
    Agent, BOTH, LIST, config, connect, eventually, get, granted, ip, read_answer,
};

fn limited(driver: DriverChoice, change: impl FnOnce(&mut DataConfig)) -> Agent {
    let mut config = config(driver);
    change(&mut config);
    Agent::with(config, vec![granted(1), granted(2)])
}

#[test]
fn connections_are_limited_for_each_peer() {
    for driver in BOTH {
        let agent = limited(driver, |config| config.limits.peer_connections_max = 3);
        let mut held: Vec<_> = (0..3).map(|_| connect(ip(1), agent.door())).collect();
        eventually("three are open", || {
            agent.metric("kiam_agent_connections_open") == Some(3.0)
        });
        let mut fourth = connect(ip(1), agent.door());
        assert_eq!(read_answer(&mut fourth, false), None);
        assert_eq!(get(ip(2), agent.door(), LIST).status, 200);
        held.pop();
        eventually("one may come again", || {
            let mut stream = connect(ip(1), agent.door());
            stream
                .write_all(format!("GET {LIST} HTTP/1.1\r\n\r\n").as_bytes())
                .is_ok_and(|()| read_answer(&mut stream, false).is_some())
        });
    }
}

#[test]
fn all_connections_are_limited() {
    for driver in BOTH {
        let agent = limited(driver, |config| config.limits.connections_max = 2);
        let _held: Vec<_> = (0..2).map(|_| connect(ip(1), agent.door())).collect();
        eventually("two are open", || {
            agent.metric("kiam_agent_connections_open") == Some(2.0)
        });
        assert_eq!(read_answer(&mut connect(ip(2), agent.door()), false), None);
        let limited = r#"kiam_agent_limited_total{limit="connections"}"#;
        assert_eq!(agent.metric(limited), Some(1.0));
    }
}

#[test]
fn requests_are_limited_for_each_peer() {
    for driver in BOTH {
        let agent = limited(driver, |config| {
            config.limits.peer_requests_per_s = 1;
            config.limits.peer_burst = 5;
        });
        let mut stream = connect(ip(1), agent.door());
        let requests = format!("GET {LIST} HTTP/1.1\r\n\r\n").repeat(7);
        stream.write_all(requests.as_bytes()).unwrap();
        let statuses: Vec<u16> = (0..7)
            .map(|_| read_answer(&mut stream, false).unwrap().status)
            .collect();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 503, 503]);
        assert_eq!(get(ip(2), agent.door(), LIST).status, 200);
    }
}

#[test]
fn a_token_is_given_whatever_the_rate() {
    for driver in BOTH {
        let agent = limited(driver, |config| {
            config.limits.peer_requests_per_s = 1;
            config.limits.peer_burst = 2;
        });
        let mut stream = connect(ip(1), agent.door());
        let list = format!("GET {LIST} HTTP/1.1\r\n\r\n");
        let put = |path: &str| {
            format!("PUT {path} HTTP/1.1\r\nx-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n")
        };
        let (plain, encoded) = (put("/latest/api/token"), put("//latest/api%2Ftoken"));
        let other = put("/latest/api/../api/token");
        // Tokens count for nothing before the burst is used up, and are given after it.
        let requests = [
            &plain, &plain, &plain, &list, &list, &list, &plain, &encoded, &other, &list,
        ];
        for request in requests {
            stream.write_all(request.as_bytes()).unwrap();
        }
        let statuses: Vec<u16> = requests
            .iter()
            .map(|_| read_answer(&mut stream, false).unwrap().status)
            .collect();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 503, 200, 200, 503, 503]);
    }
}

/// One connection of peer 1 that asks without pause, and reads what it is answered.
fn flood(door: SocketAddr, stop: &AtomicBool) {
    let mut stream = connect(ip(1), door);
    let mut answers = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            // Ends when the other half does.
            while answers.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
        });
        let requests = format!("GET {LIST} HTTP/1.1\r\n\r\n").repeat(200);
        while !stop.load(Ordering::Relaxed) {
            if stream.write_all(requests.as_bytes()).is_err() {
                break;
            }
        }
        drop(stream.shutdown(Shutdown::Both));
    });
}

#[test]
fn a_flood_keeps_nobody_from_their_turn() {
    const OTHERS: usize = 30;
    for driver in BOTH {
        // A rate that limits nothing: turns alone must do.
        let agent = limited(driver, |config| {
            config.limits.peer_requests_per_s = 1_000_000_000;
            config.limits.peer_burst = 1_000_000_000;
        });
        let flooded = || {
            let answers = r#"kiam_metadata_success_total{handler="roleName"}"#;
            agent.metric(answers).unwrap()
        };
        let (door, stop) = (agent.door(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| flood(door, &stop));
            }
            eventually("the flood comes", || flooded() > 10_000.0);
            // Each has to be accepted, received and answered, within the patience of a test.
            for _ in 0..OTHERS {
                let before = flooded();
                assert_eq!(get(ip(2), agent.door(), LIST).status, 200, "{driver:?}");
                eventually("the flood goes on", || flooded() > before + 1.0);
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn beyond_its_rate_a_peer_waits_for_its_answers() {
    for driver in BOTH {
        let agent = limited(driver, |config| {
            config.limits.peer_requests_per_s = 1;
            config.limits.peer_burst = 5;
        });
        let mut stream = connect(ip(1), agent.door());
        let requests = format!("GET {LIST} HTTP/1.1\r\n\r\n").repeat(500);
        stream.write_all(requests.as_bytes()).unwrap();
        let refused = || {
            let limited = r#"kiam_agent_limited_total{limit="peer_requests"}"#;
            agent.metric(limited).unwrap()
        };
        eventually("some are refused", || refused() >= 16.0);
        for _ in 0..3 {
            assert_eq!(get(ip(2), agent.door(), LIST).status, 200);
        }
        // The others are, a few each second, when the rate allows one more.
        assert!(refused() < 400.0, "{} with {driver:?}", refused());
        eventually("it is not forgotten", || refused() > 40.0);
    }
}

#[test]
fn parked_requests_are_limited_for_each_peer_and_in_all() {
    for driver in BOTH {
        let agent = limited(driver, |config| {
            config.limits.peer_parked_max = 2;
            config.limits.parked_max = 3;
            config.limits.park_timeout = Duration::from_secs(6);
        });
        let request = format!("GET {LIST} HTTP/1.1\r\n\r\n");
        let park = |peer: u8| {
            let mut stream = connect(ip(peer), agent.door());
            stream.write_all(request.as_bytes()).unwrap();
            stream
        };
        let _held = [park(8), park(8)];
        eventually("two are parked", || {
            agent.metric("kiam_agent_parked_requests") == Some(2.0)
        });
        assert_eq!(read_answer(&mut park(8), false).unwrap().status, 503);
        let _third = park(9);
        eventually("three are parked", || {
            agent.metric("kiam_agent_parked_requests") == Some(3.0)
        });
        assert_eq!(read_answer(&mut park(10), false).unwrap().status, 503);
        assert_eq!(get(ip(1), agent.door(), LIST).status, 200);
    }
}

#[test]
fn slow_senders_idlers_and_never_readers_are_closed() {
    for driver in BOTH {
        let agent = limited(driver, |config| {
            config.limits.read_timeout = Duration::from_millis(300);
            config.limits.idle_timeout = Duration::from_millis(300);
            config.limits.write_timeout = Duration::from_millis(300);
        });
        let mut idle = connect(ip(1), agent.door());
        let mut slow = connect(ip(1), agent.door());
        slow.write_all(b"GET /").unwrap();
        let mut byte = [0];
        assert_eq!(idle.read(&mut byte).unwrap_or(0), 0);
        assert_eq!(slow.read(&mut byte).unwrap_or(0), 0);
        let count =
            |limit: &str| agent.metric(&format!(r#"kiam_agent_limited_total{{limit="{limit}"}}"#));
        eventually("it is counted", || count("read_timeout") == Some(1.0));

        // Asks for more than all buffers between us hold, and reads nothing of it.
        let mut never = connect(ip(1), agent.door());
        never
            .set_write_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let requests = format!("GET {LIST}role-1 HTTP/1.1\r\n\r\n").repeat(100);
        eventually("the never-reader is closed", || {
            let _full = never.write_all(requests.as_bytes());
            count("write_timeout") == Some(1.0)
        });
        assert_eq!(get(ip(2), agent.door(), LIST).status, 200);
    }
}

#[test]
fn beyond_its_rate_a_peer_has_no_longer_for_a_request() {
    for driver in BOTH {
        let agent = limited(driver, |config| {
            config.limits.peer_requests_per_s = 1;
            config.limits.peer_burst = 1;
            config.limits.read_timeout = Duration::from_millis(500);
        });
        let mut stream = connect(ip(1), agent.door());
        let requests = format!("GET {LIST} HTTP/1.1\r\n\r\n").repeat(30);
        stream.write_all(requests.as_bytes()).unwrap();
        let limit = |limit: &str| {
            let metric = format!(r#"kiam_agent_limited_total{{limit="{limit}"}}"#);
            agent.metric(&metric).unwrap()
        };
        eventually("it is beyond its rate", || limit("peer_requests") >= 16.0);
        // A byte every now and then, from the same pod, for ever.
        let mut slow = connect(ip(1), agent.door());
        slow.write_all(b"GET /").unwrap();
        eventually("it is closed all the same", || {
            std::thread::park_timeout(Duration::from_millis(50));
            let _closed = slow.write_all(b"a");
            limit("read_timeout") >= 1.0
        });
    }
}

#[test]
fn the_agents_own_connection_is_known_when_it_is_turned_away() {
    for driver in BOTH {
        let witness = Arc::new(Witness::default());
        let agent = limited(driver, |config| {
            config.limits.peer_connections_max = 1;
            config.witness = Some(Arc::clone(&witness));
        });
        let _pod_of_the_node = connect(ip(1), agent.door());
        eventually("one is open", || {
            agent.metric("kiam_agent_connections_open") == Some(1.0)
        });
        assert_eq!(read_answer(&mut connect(ip(1), agent.door()), false), None);
        assert!(!witness.was_turned_away(), "somebody else");
        let telltale = std::net::TcpListener::bind((ip(1), 0)).unwrap();
        let port = telltale.local_addr().unwrap().port();
        drop(telltale);
        witness.expect(port);
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.bind(&SocketAddr::new(ip(1), port).into()).unwrap();
        socket.connect(&agent.door().into()).unwrap();
        assert_eq!(read_answer(&mut socket.into(), false), None);
        assert!(witness.was_turned_away());
    }
}
