//! Connections by the thousand: those that are too many are closed, and the agent goes on.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use kiam_loadtest::rig::Program::Agent;
use kiam_loadtest::rig::{Failure, Options, Rig, within};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

/// What the agent takes in all, in these tests.
const CONNECTIONS_MAX: u64 = 1_024;
/// Its listeners, its stream, its admin port, its runtime.
const OTHER_FILES: f64 = 100.0;
/// Eight times what a connection may cost: allocators keep what they had at the busiest moment.
const MEMORY_MIB: f64 = 32.0;
const THREADS: u64 = 4;
/// Of each thread, open or not looked at yet.
const HELD_MAX: usize = 600;
/// Dialogues of other pods meanwhile.
const ENOUGH: u64 = 100;
/// What a pod can see when every place is taken.
const NO_PLACE: [Failure; 2] = [Failure::Closed, Failure::Refused];

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

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    /// The other side said that it closes it.
    Closed,
    Reset,
}

fn fate(mut stream: &TcpStream) -> Fate {
    drop(stream.set_nonblocking(true));
    match stream.read(&mut [0; 16]) {
        Ok(0) => Fate::Closed,
        Ok(_bytes) => Fate::Open,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Fate::Open,
        Err(_reset) => Fate::Reset,
    }
}

/// Connections that were offered, and what became of them.
#[derive(Debug, Default)]
struct Flood {
    held: Vec<TcpStream>,
    closed: u64,
    reset: u64,
    /// Never opened at all.
    failed: u64,
}

impl Flood {
    /// Lets go of those that are not open any more, so that a client can offer more connections than
    /// it may have open.
    fn sort(&mut self) {
        let (mut closed, mut reset) = (0, 0);
        self.held.retain(|stream| {
            let fate = fate(stream);
            closed += u64::from(fate == Fate::Closed);
            reset += u64::from(fate == Fate::Reset);
            fate == Fate::Open
        });
        self.closed += closed;
        self.reset += reset;
    }

    fn join(mut self, other: Self) -> Self {
        self.held.extend(other.held);
        self.closed += other.closed;
        self.reset += other.reset;
        self.failed += other.failed;
        self
    }
}

/// Opens `size` connections from `peers` addresses, and keeps those that are not closed at once.
fn flood(rig: &Rig, size: u64, peers: u32) -> Flood {
    let offer = |thread: u64| {
        let mut flood = Flood::default();
        for number in (thread..size).step_by(usize::try_from(THREADS).unwrap()) {
            let peer = u32::try_from(number % u64::from(peers)).unwrap();
            let first = u32::from(Ipv4Addr::new(127, 200, 0, 1));
            match connect(rig.agent(), Ipv4Addr::from(first + peer).into()) {
                Some(stream) => flood.held.push(stream),
                None => flood.failed += 1,
            }
            if flood.held.len() >= HELD_MAX {
                flood.sort();
            }
        }
        flood
    };
    std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|thread| scope.spawn(move || offer(thread)));
        let threads: Vec<_> = threads.collect();
        let floods = threads.into_iter().map(|thread| thread.join().unwrap());
        floods.reduce(Flood::join).unwrap()
    })
}

/// What the agent has open, and how much memory it uses in MiB.
fn uses(rig: &Rig) -> (f64, f64, f64) {
    let metric = |name| rig.metric(Agent, name).unwrap();
    let memory = metric("process_resident_memory_bytes") / 1024.0 / 1024.0;
    let open = metric("kiam_agent_connections_open");
    (open, metric("process_open_fds"), memory)
}

fn say(what: &str, flood: &Flood, (open, files, memory): (f64, f64, f64), before: f64) {
    eprintln!(
        "{} connections of {what}: {} closed, {} reset, {} not opened; the agent has {open} open, {files} \
         files, {memory:.1} MiB, {before:.1} MiB before",
        flood_size(),
        flood.closed,
        flood.reset,
        flood.failed
    );
}

/// A dozen pods open whatever they can: everybody else is served.
#[test]
fn a_dozen_pods_open_thousands_of_connections() {
    let rig = rig();
    let pid = rig.pid(Agent);
    let (.., before) = uses(&rig);
    let witness = rig.witness();
    let mut flood = flood(&rig, flood_size(), 12);
    witness.sees(ENOUGH).unwrap();
    let uses = uses(&rig);
    flood.sort();
    say("12 pods", &flood, uses, before);
    let (open, ..) = uses;
    assert!(open <= 12.0 * 64.0 + 32.0, "{open} open");
    assert_eq!(rig.pid(Agent), pid);
    let heals = || {
        drop(flood);
        let (pod, role) = rig.granted().remove(0);
        rig.served(pod, &role)
    };
    witness.heals(heals).unwrap();
    let seen = witness.end();
    eprintln!("{}", seen.line("a-dozen-pods-open-connections"));
    assert_eq!(seen.failed(), 0, "{:?}", seen.failures);
}

/// Thousands of addresses open connections: the agent closes what is too much, keeps within its
/// descriptors, and serves again as soon as there is room.
#[test]
fn everybody_opens_connections() {
    let rig = rig();
    let (pod, role) = rig.granted().remove(0);
    let pid = rig.pid(Agent);
    let (.., before) = uses(&rig);
    let witness = rig.witness();
    let mut flood = flood(&rig, flood_size(), 5_000);
    let uses = uses(&rig);
    let (open, files, memory) = uses;
    let most = f64::from(u32::try_from(CONNECTIONS_MAX).unwrap());
    assert!(open <= most, "{open} open");
    assert!(files <= most + OTHER_FILES, "{files} files");
    assert!(
        memory <= before + MEMORY_MIB,
        "{memory} MiB, {before} before"
    );
    within("those that are too many are closed", || {
        flood.sort();
        (u64::try_from(flood.held.len()).unwrap() <= CONNECTIONS_MAX).then_some(())
    })
    .unwrap();
    say("5000 addresses", &flood, uses, before);
    let heals = || {
        drop(flood);
        rig.served(pod, &role)
    };
    witness.heals(heals).unwrap();
    witness.sees(ENOUGH).unwrap();
    let seen = witness.end();
    eprintln!("{}", seen.line("everybody-opens-connections"));
    // Every place is taken by addresses that have no more than their share. Pods are turned away like
    // everyone else, and not for longer than that lasts.
    let turned_away = |kind: &Failure| NO_PLACE.contains(kind);
    assert!(seen.failures.keys().all(turned_away), "{:?}", seen.failures);
    assert_eq!(seen.relapses, 0);
    assert_eq!(rig.pid(Agent), pid);
    let log = rig.log(Agent);
    assert!(!log.contains("panicked"), "{log}");
}
