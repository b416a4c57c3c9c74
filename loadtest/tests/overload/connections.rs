//! Connections by the thousand: those that are too many are closed, and the agent goes on.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiam_loadtest::rig::Program::Agent;
use kiam_loadtest::rig::{Options, Rig, within};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

/// What the agent takes in all, in these tests.
const CONNECTIONS_MAX: u64 = 1_024;
/// Its listeners, its stream, its admin port, its runtime.
const OTHER_FILES: f64 = 100.0;
const THREADS: u64 = 4;
/// Dialogues of other pods meanwhile.
const ENOUGH: u64 = 100;

fn flood_size() -> u64 {
    let asked = std::env::vars().find(|(name, _value)| name == "KIAM_FLOOD_CONNECTIONS");
    asked.map_or(6_000, |(_name, value)| value.parse().unwrap())
}

fn rig() -> Rig {
    // The test holds as many as the agent does, and those that have not been closed yet.
    let limit = getrlimit(Resource::Nofile);
    let current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    let flag = format!("--connections-max={CONNECTIONS_MAX}");
    Rig::start(Options {
        program: Some(env!("CARGO_BIN_EXE_kiam-loadtest").into()),
        agent: vec![
            flag.into(),
            "--connections-per-peer-max=64".into(),
            "--parked-max=512".into(),
        ],
        ..Options::default()
    })
    .unwrap()
}

fn connect(to: SocketAddr, from: IpAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    socket.set_reuse_address(true).ok()?;
    socket.bind(&SocketAddr::new(from, 0).into()).ok()?;
    let connected = socket.connect_timeout(&to.into(), Duration::from_secs(10));
    connected.ok().map(|()| socket.into())
}

/// Whether the other side has closed it.
fn is_closed(mut stream: &TcpStream) -> bool {
    drop(stream.set_nonblocking(true));
    match stream.read(&mut [0; 16]) {
        Ok(0) => true,
        Ok(_bytes) => false,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// Opens `size` connections from `peers` addresses, and keeps those that are not closed at once.
fn flood(rig: &Rig, size: u64, peers: u32) -> (Vec<TcpStream>, u64) {
    let refused = AtomicU64::new(0);
    let held = std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|thread| {
            let refused = &refused;
            scope.spawn(move || {
                let mut held: Vec<TcpStream> = Vec::new();
                for number in (thread..size).step_by(usize::try_from(THREADS).unwrap()) {
                    let peer = u32::try_from(number % u64::from(peers)).unwrap();
                    let first = u32::from(Ipv4Addr::new(127, 200, 0, 1));
                    match connect(rig.agent(), Ipv4Addr::from(first + peer).into()) {
                        Some(stream) => held.push(stream),
                        None => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    }
                    if held.len() >= 600 {
                        let before = held.len();
                        held.retain(|stream| !is_closed(stream));
                        let closed = u64::try_from(before - held.len()).unwrap();
                        refused.fetch_add(closed, Ordering::Relaxed);
                    }
                }
                held
            })
        });
        let threads: Vec<_> = threads.collect();
        let held = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        held.collect()
    });
    (held, refused.into_inner())
}

/// A dozen pods open whatever they can: everybody else is served.
#[test]
fn a_dozen_pods_open_thousands_of_connections() {
    let rig = rig();
    let pid = rig.pid(Agent);
    let witness = rig.witness();
    let (held, refused) = flood(&rig, flood_size(), 12);
    witness.sees(ENOUGH).unwrap();
    let open = rig.metric(Agent, "kiam_agent_connections_open").unwrap();
    let seen = witness.end();
    eprintln!(
        "{} connections of 12 pods: {refused} refused, {open} open; {} of {} dialogues of others failed",
        flood_size(),
        seen.failed(),
        seen.asked
    );
    assert_eq!(seen.failed(), 0, "{:?}", seen.failures);
    assert!(open <= 12.0 * 64.0 + 32.0, "{open} open");
    assert_eq!(rig.pid(Agent), pid);
    drop(held);
}

/// Thousands of addresses open connections: the agent closes what is too much, keeps within its
/// descriptors, and serves again as soon as there is room.
#[test]
fn everybody_opens_connections() {
    let rig = rig();
    let (pod, role) = rig.granted().remove(0);
    let pid = rig.pid(Agent);
    let (held, refused) = flood(&rig, flood_size(), 5_000);
    let open = rig.metric(Agent, "kiam_agent_connections_open").unwrap();
    let files = rig.metric(Agent, "process_open_fds").unwrap();
    let most = f64::from(u32::try_from(CONNECTIONS_MAX).unwrap());
    assert!(open <= most, "{open} open");
    assert!(files <= most + OTHER_FILES, "{files} files");
    within("those that are too many are closed", || {
        let open = held.iter().filter(|stream| !is_closed(stream)).count();
        (u64::try_from(open).unwrap() <= CONNECTIONS_MAX).then_some(())
    })
    .unwrap();
    eprintln!(
        "{} connections of 5000 addresses: {refused} refused at once, {open} open, {files} files",
        flood_size()
    );
    drop(held);
    rig.served(pod, &role).unwrap();
    let witness = rig.witness();
    witness.sees(ENOUGH).unwrap();
    assert_eq!(witness.end().failed(), 0);
    assert_eq!(rig.pid(Agent), pid);
    let log = rig.log(Agent);
    assert!(!log.contains("panicked"), "{log}");
}
