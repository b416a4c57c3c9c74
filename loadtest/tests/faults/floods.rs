//! One pod floods or stalls connections: only that pod is slowed down.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiam_loadtest::rig::Program::Agent;
use kiam_loadtest::rig::{Rig, pass, within};
use socket2::{Domain, Socket, Type};

use crate::{ENOUGH, LIST, MOMENT, ip, nobody_noticed, rig_with};

fn connect(rig: &Rig, from: IpAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&rig.agent().into(), Duration::from_secs(10))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(socket.into())
}

/// Requests as fast as they go, over one connection after another.
fn flood(rig: &Rig, from: IpAddr, over: &AtomicBool) {
    let request = format!("GET {LIST} HTTP/1.1\r\nhost: x\r\n\r\n").repeat(50);
    let mut answers = vec![0; 64 * 1024];
    while !over.load(Ordering::Relaxed) {
        let Ok(mut stream) = connect(rig, from) else {
            continue;
        };
        drop(stream.write_all(request.as_bytes()));
        drop(stream.read(&mut answers));
    }
}

#[test]
fn one_pod_floods() {
    let rig = rig_with(&["--requests-per-second-per-peer=50"], &[]);
    rig.start_pod("noisy", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
    let over = AtomicBool::new(false);
    let witness = rig.witness();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| flood(&rig, ip(1), &over));
        }
        let limited = within("it is limited", || {
            let limited = rig.metric(Agent, "kiam_agent_limited_total").unwrap();
            (limited >= 100.0).then_some(())
        });
        let asked = limited.and_then(|()| witness.sees(ENOUGH));
        let heals = || {
            over.store(true, Ordering::Relaxed);
            // It is forgiven once it has calmed down.
            rig.served(ip(1), "reader")
        };
        let healed = witness.heals(heals);
        asked.and(healed).unwrap();
    });
    nobody_noticed("one-pod-floods", MOMENT, witness);
}

#[test]
fn one_pod_holds_every_connection_it_gets() {
    let rig = rig_with(&["--connections-per-peer-max=64"], &[]);
    rig.start_pod("greedy", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
    // Half say nothing, half say a little now and then.
    let mut held: Vec<TcpStream> = (0..200).filter_map(|_| connect(&rig, ip(1)).ok()).collect();
    let witness = rig.witness();
    for byte in "GET /latest/meta".bytes() {
        for stream in held.iter_mut().step_by(2) {
            // Those beyond the limit have been closed.
            drop(stream.write_all(&[byte]));
        }
        pass(Duration::from_millis(100));
    }
    witness.sees(ENOUGH).unwrap();
    let open = rig.metric(Agent, "kiam_agent_connections_open").unwrap();
    assert!(open <= 64.0 + 16.0, "{open} connections");
    let heals = || {
        drop(held);
        rig.served(ip(1), "reader")
    };
    witness.heals(heals).unwrap();
    nobody_noticed("one-pod-stalls", MOMENT, witness);
}
