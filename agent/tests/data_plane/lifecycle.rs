//! Starting and ending.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use kiam_agent::clock::Now;
use kiam_agent::data::{self, DriverChoice, StartError};
use kiam_agent::snapshot::Publisher;
use kiam_agent::tally::Tallies;

use crate::support::{
    Agent, BOTH, LIST, config, connect, eventually, get, granted, ip, read_answer,
};

#[test]
fn the_driver_asked_for_runs_and_says_so() {
    for (choice, name) in [
        (DriverChoice::IoUring, "io_uring"),
        (DriverChoice::Epoll, "epoll"),
    ] {
        let agent = Agent::start(config(choice));
        assert_eq!(agent.plane.as_ref().unwrap().driver().name, name);
        let metric = format!(r#"kiam_agent_driver{{driver="{name}"}}"#);
        assert_eq!(agent.metric(&metric), Some(1.0));
    }
}

#[test]
fn an_address_in_use_is_known_at_once() {
    let agent = Agent::start(config(DriverChoice::Auto));
    let mut second = config(DriverChoice::Auto);
    second.listen = vec![agent.door()];
    let error = data::start(second, &Publisher::new(Now::read()), &Tallies::new(1)).unwrap_err();
    assert!(matches!(error, StartError::Bind { address, .. } if address == agent.door()));
}

#[test]
fn several_workers_serve_one_address() {
    for driver in BOTH {
        let mut config = config(driver);
        config.workers = NonZeroUsize::new(3).unwrap();
        config.pin_workers = true;
        let agent = Agent::with(config, vec![granted(1)]);
        for _ in 0..30 {
            assert_eq!(get(ip(1), agent.door(), LIST).status, 200);
        }
        assert_eq!(agent.metric("kiam_agent_connections_total"), Some(30.0));
    }
}

#[test]
fn both_families_are_served_and_mean_the_same_pod() {
    for driver in BOTH {
        let mut config = config(driver);
        config.listen = vec!["[::]:0".parse().unwrap()];
        let mut six = granted(2);
        six.ips = vec!["::1".parse().unwrap()];
        let agent = Agent::with(config, vec![granted(1), six]);
        let port = agent.door().port();
        let four = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        assert_eq!(get(ip(1), four, LIST).body, "role-1");
        let to = SocketAddr::new("::1".parse().unwrap(), port);
        assert_eq!(get("::1".parse().unwrap(), to, LIST).body, "role-2");
    }
}

#[test]
fn draining_finishes_what_is_under_way() {
    for driver in BOTH {
        let mut config = config(driver);
        config.limits.park_timeout = Duration::from_secs(6);
        let mut agent = Agent::start(config);
        let mut parked = connect(ip(1), agent.door());
        let mut idle = connect(ip(2), agent.door());
        parked
            .write_all(format!("GET {LIST} HTTP/1.1\r\n\r\n").as_bytes())
            .unwrap();
        eventually("parked", || {
            agent.metric("kiam_agent_parked_requests") == Some(1.0)
        });
        let (plane, door) = (agent.plane.take().unwrap(), ip(1));
        let address = plane.listening()[0];
        let ringer = plane.ringer();
        let draining = std::thread::spawn(move || plane.drain(Duration::from_secs(6)));
        assert_eq!(read_answer(&mut idle, false), None);
        eventually("nobody new is let in", || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.unwrap();
            socket.bind(&SocketAddr::new(door, 0).into()).unwrap();
            socket.connect(&address.into()).is_err()
        });
        let now = Now::read();
        agent
            .store
            .apply(
                kiam_wire::Update::Full(kiam_wire::Full {
                    revision: crate::support::revision(1),
                    pods: vec![granted(1)],
                    credentials: vec![crate::support::credentials(crate::support::id(1), 60)],
                    keys: None,
                }),
                now,
            )
            .unwrap();
        agent.publisher.publish(agent.store.snapshot(now));
        ringer.ring();
        let answer = read_answer(&mut parked, false).unwrap();
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("close"))
        );
        assert!(draining.join().unwrap(), "everything was answered");
    }
}

#[test]
fn draining_does_not_wait_for_ever() {
    for driver in BOTH {
        let mut config = config(driver);
        config.limits.park_timeout = Duration::from_mins(1);
        let mut agent = Agent::start(config);
        let mut parked = connect(ip(1), agent.door());
        parked
            .write_all(format!("GET {LIST} HTTP/1.1\r\n\r\n").as_bytes())
            .unwrap();
        eventually("parked", || {
            agent.metric("kiam_agent_parked_requests") == Some(1.0)
        });
        assert!(
            !agent
                .plane
                .take()
                .unwrap()
                .drain(Duration::from_millis(100))
        );
    }
}

#[test]
fn retired_snapshots_are_freed_by_the_publisher() {
    for driver in BOTH {
        let mut agent = Agent::with(config(driver), vec![granted(1)]);
        for _ in 0..50 {
            agent.delta(vec![granted(1)], vec![]);
            assert_eq!(get(ip(1), agent.door(), LIST).status, 200);
        }
        // An idle worker lets go on its tick.
        eventually("all but the present one are freed", || {
            agent.publisher.reap() == 0
        });
    }
}

#[test]
fn an_address_that_is_let_go_a_moment_later_is_taken() {
    for driver in BOTH {
        let before = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = before.local_addr().unwrap();
        let leaving = std::thread::spawn(move || {
            std::thread::park_timeout(Duration::from_millis(100));
            drop(before);
        });
        let mut config = config(driver);
        config.listen = vec![address];
        let agent = Agent::with(config, vec![granted(1)]);
        assert_eq!(agent.door(), address);
        leaving.join().unwrap();
    }
}

#[test]
fn a_worker_whose_socket_somebody_shut_down_ends() {
    for driver in BOTH {
        let agent = Agent::with(config(driver), vec![granted(1)]);
        let plane = agent.plane.as_ref().unwrap();
        let present = plane.present();
        assert_eq!(get(ip(1), agent.door(), LIST).status, 200);
        assert!(present.is_everyone());
        // As another process that has it as well.
        let elsewhere = plane.sockets().unwrap().remove(0);
        rustix::net::shutdown(&elsewhere, rustix::net::Shutdown::Both).unwrap();
        eventually("the agent can tell", || !present.is_everyone());
    }
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    for driver in BOTH {
        let mut agent = Agent::with(config(driver), vec![granted(1)]);
        let mut idle = connect(ip(1), agent.door());
        idle.write_all(format!("GET {LIST} HTTP/1.1\r\n\r\n").as_bytes())
            .unwrap();
        assert_eq!(read_answer(&mut idle, false).unwrap().status, 200);
        assert!(agent.plane.take().unwrap().drain(Duration::from_secs(5)));
        assert_eq!(read_answer(&mut idle, false), None);
    }
}
