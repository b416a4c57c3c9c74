//! Servers to measure from outside: the data plane alone, and the barest one there is.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use kiam_agent::clock::Now;
use kiam_agent::data::{self, DriverChoice, Limits};
use kiam_agent::snapshot::Publisher;
use kiam_agent::snapshot::store::Doors;
use kiam_agent::tally::Tallies;
use rustix::event::epoll;

use crate::answers::Bench;
use crate::{node, store};

/// The data plane with a node of 250 pods, no control plane, until killed.
pub(crate) fn agent(driver: &str, port: u16) {
    let driver = match driver {
        "epoll" => DriverChoice::Epoll,
        "io_uring" => DriverChoice::IoUring,
        other => panic!("no driver {other}"),
    };
    let mut config = node::config(driver);
    config.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
    config.container_listen = vec![];
    config.limits = Limits {
        peer_requests_per_s: 100_000_000,
        peer_burst: 100_000_000,
        peer_connections_max: 4096,
        ..Limits::default()
    };
    let now = Now::read();
    let (mut publisher, tallies) = (Publisher::new(now), Tallies::new(1));
    publisher.publish(store(250, Doors::Metadata, now).snapshot(now));
    let plane = data::start(config, &publisher, &tallies).unwrap();
    println!("{:?}", plane.driver());
    loop {
        std::thread::park();
    }
}

/// epoll, a constant answer of the same size, no parsing, no limits.
pub(crate) fn null(port: u16) {
    let mut bench = Bench::new();
    let request = bench.request("credentials");
    let answer = bench.answer(&request).to_vec();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let watch = |source: &dyn std::os::fd::AsFd, key| {
        epoll::add(
            &poll,
            source.as_fd(),
            epoll::EventData::new_u64(key),
            epoll::EventFlags::IN,
        )
        .unwrap();
    };
    watch(&listener, u64::MAX);
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut events = Vec::with_capacity(256);
    let mut buffer = [0; 4096];
    loop {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        for event in &events {
            let key = event.data.u64();
            if key == u64::MAX {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nodelay(true).unwrap();
                    let place = free.pop().unwrap_or_else(|| {
                        connections.push(None);
                        connections.len() - 1
                    });
                    watch(&stream, u64::try_from(place).unwrap());
                    if let Some(slot) = connections.get_mut(place) {
                        *slot = Some(stream);
                    }
                }
                continue;
            }
            let place = usize::try_from(key).unwrap();
            let Some(slot) = connections.get_mut(place) else {
                continue;
            };
            let Some(stream) = slot.as_mut() else {
                continue;
            };
            let alive = stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0)
                && stream.write(&answer).is_ok();
            if !alive {
                *slot = None;
                free.push(place);
            }
        }
    }
}
