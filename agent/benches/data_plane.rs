//! What our own code costs: one answer, and one delta.
//!
//! `cargo bench` prints nanoseconds. `-- count KIND N` answers N requests of one kind and ends, for
//! counting instructions exactly, whatever else the machine does:
//!
//! ```sh
//! valgrind --tool=callgrind BENCH count credentials 1000   # and 2000; the difference is 1000
//! ```
//!
//! `-- serve io_uring|epoll PORT` and `-- null PORT` serve until killed, for comparing processor
//! time with the barest server.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark talks to a person and stops when it cannot go on"
)]

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use kiam_agent::clock::{Now, monotonic};
use kiam_agent::data::dry::{Dry, DryRun};
use kiam_agent::data::{self, DataConfig, DriverChoice, Limits, Scheduling, TokenKey};
use kiam_agent::readiness::Following;
use kiam_agent::snapshot::store::Doors;
use kiam_agent::snapshot::{Publisher, Store};
use kiam_agent::tally::Tallies;
use kiam_wire::credentials::Unchecked;
use kiam_wire::{
    CredentialId, Credentials, Delta, Full, Pod, PodState, PodUid, Revision, UnixSeconds, Update,
};
use rustix::event::epoll;
use zeroize::Zeroizing;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| *word != "--bench")
        .collect();
    match words.as_slice() {
        ["count", kind, times] => count(kind, times.parse().expect("a number")),
        ["serve", driver, port] => serve(driver, port.parse().expect("a port")),
        ["null", port] => null(port.parse().expect("a port")),
        _ => {
            answers();
            deltas();
            waiters();
        }
    }
}

fn config(driver: DriverChoice, port: u16) -> DataConfig {
    DataConfig {
        listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))],
        container_listen: vec![],
        workers: NonZeroUsize::MIN,
        pin_workers: false,
        driver,
        scheduling: Scheduling::Other,
        imds_v2_only: false,
        token_hop_limit: None,
        region: None,
        availability_zone: None,
        allow_ip_query: false,
        passthrough: None,
        audience: "kiam".into(),
        token_key: TokenKey::new([7; 32]),
        audit_log: false,
        limits: Limits {
            peer_requests_per_s: 100_000_000,
            peer_burst: 100_000_000,
            peer_connections_max: 4096,
            ..Limits::default()
        },
        witness: None,
        following: Following::default(),
    }
}

fn pod(n: u32, first: IpAddr) -> Pod {
    let [_, a, b, c] = n.to_be_bytes();
    Pod {
        uid: PodUid::try_new(&format!("6f1a2b3c-0000-4000-8000-{n:012}")).unwrap(),
        namespace: "default".into(),
        name: format!("pod-{n}"),
        service_account: "web".into(),
        ips: vec![if n == 0 {
            first
        } else {
            Ipv4Addr::new(10, a, b, c).into()
        }],
        host_network: false,
        imds_v2_required: false,
        state: PodState::Granted(id(n)),
    }
}

/// Fifty pods share a role.
fn id(n: u32) -> CredentialId {
    let mut digest = [0; 32];
    for (place, byte) in digest.iter_mut().zip((n / 50).to_be_bytes()) {
        *place = byte;
    }
    CredentialId::new(digest)
}

fn credentials(id: CredentialId, now: Now, life_s: i64) -> Arc<Credentials> {
    Arc::new(
        Credentials::try_new(Unchecked {
            id,
            role_name: "reader".into(),
            role_arn: "arn:aws:iam::123456789012:role/reader".into(),
            access_key_id: "ASIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: Zeroizing::new("s".repeat(40)),
            session_token: Zeroizing::new("t".repeat(900)),
            issued_at: now.wall,
            expires_at: UnixSeconds::new(now.wall.get() + life_s),
        })
        .unwrap(),
    )
}

fn revision(number: u64) -> Revision {
    Revision { epoch: 1, number }
}

fn store(pods: u32, doors: Doors, now: Now) -> Store {
    let mut store = Store::new(doors);
    let full = Full {
        revision: revision(0),
        pods: (0..pods).map(|n| pod(n, PEER)).collect(),
        credentials: (0..pods)
            .step_by(50)
            .map(|n| credentials(id(n), now, 3600))
            .collect(),
        keys: None,
    };
    store.apply(Update::Full(full), now).unwrap();
    store
}

// === one answer ===

struct Bench {
    run: DryRun,
    snapshot: kiam_agent::snapshot::Snapshot,
    out: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let now = Now::read();
        let tallies = Tallies::new(1);
        Self {
            run: DryRun::new(&config(DriverChoice::Auto, 0), &tallies, now).unwrap(),
            snapshot: store(250, Doors::Metadata, now).snapshot(now),
            out: Vec::with_capacity(8192),
        }
    }

    fn answer(&mut self, request: &[u8]) {
        self.out.clear();
        let dry = self
            .run
            .metadata(black_box(request), PEER, &self.snapshot, &mut self.out);
        assert!(matches!(dry, Dry::Answered { status: 200, .. }), "{dry:?}");
        black_box(&self.out);
    }

    fn request(&mut self, kind: &str) -> Vec<u8> {
        const PUT: &str = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\
                           User-Agent: aws-sdk-rust/1.3 os/linux lang/rust/1.95.0\r\n\
                           X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\
                           Accept: */*\r\nContent-Length: 0\r\n\r\n";
        const LIST: &str = "/latest/meta-data/iam/security-credentials/";
        self.out.clear();
        self.run
            .metadata(PUT.as_bytes(), PEER, &self.snapshot, &mut self.out);
        let text = String::from_utf8(self.out.clone()).unwrap();
        let token = text.rsplit("\r\n").next().unwrap();
        let get = |path: &str, header: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{header}\
                 User-Agent: aws-sdk-rust/1.3 os/linux lang/rust/1.95.0\r\n\
                 Accept: */*\r\nAccept-Encoding: identity\r\n\r\n"
            )
        };
        let session = format!("X-aws-ec2-metadata-token: {token}\r\n");
        match kind {
            "token" => PUT.to_owned(),
            "list" => get(LIST, ""),
            "credentials" => get(&format!("{LIST}reader"), ""),
            "credentials-v2" => get(&format!("{LIST}reader"), &session),
            "encoded" => get(&format!("{LIST}/%72eader"), ""),
            other => panic!("no kind {other}"),
        }
        .into_bytes()
    }
}

const KINDS: [&str; 5] = ["token", "list", "credentials", "credentials-v2", "encoded"];

fn count(kind: &str, times: u32) {
    let mut bench = Bench::new();
    let request = bench.request(kind);
    for _ in 0..times {
        bench.answer(&request);
    }
}

fn answers() {
    let mut bench = Bench::new();
    println!("parse, route, look up, choose and copy one answer");
    for kind in KINDS {
        let request = bench.request(kind);
        let rounds = (0..20).map(|_| {
            let began = monotonic();
            for _ in 0..10_000 {
                bench.answer(&request);
            }
            began.elapsed() / 10_000
        });
        println!("  {kind:16} {:?}", rounds.min().unwrap());
    }
}

// === one delta ===

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap()
}

/// One pod changes; the store applies it and a snapshot is published.
fn one_delta(store: &mut Store, publisher: &mut Publisher, number: u64, pods: u32) -> Duration {
    let n = 1 + u32::try_from(number).unwrap() % (pods - 1);
    let delta = Update::Delta(Delta {
        from: revision(number),
        to: revision(number + 1),
        pods: vec![pod(n, PEER)],
        removed_pods: vec![],
        credentials: vec![],
        keys: None,
    });
    let now = Now::read();
    let began = monotonic();
    store.apply(delta, now).unwrap();
    publisher.publish(store.snapshot(now));
    began.elapsed()
}

fn deltas() {
    println!("apply a one-pod delta and publish, p50");
    for pods in [110, 250, 1_000, 10_000] {
        for doors in [Doors::Metadata, Doors::Both] {
            let now = Now::read();
            let mut store = store(pods, doors, now);
            let mut publisher = Publisher::new(now);
            let times = (0..400)
                .map(|number| one_delta(&mut store, &mut publisher, number, pods))
                .collect();
            println!("  {pods:6} pods, {doors:?}: {:?}", median(times));
        }
    }
}

/// The same beside a worker that has requests parked, ringing included.
fn waiters() {
    let mut config = config(DriverChoice::Auto, 0);
    config.limits.park_timeout = Duration::from_mins(1);
    config.limits.peer_parked_max = 1024;
    let now = Now::read();
    let (mut publisher, tallies) = (Publisher::new(now), Tallies::new(1));
    let plane = data::start(config, &publisher, &tallies).unwrap();
    let door = *plane.listening().first().unwrap();
    let waiting: Vec<TcpStream> = (0..500)
        .map(|_| {
            let mut stream = TcpStream::connect(door).unwrap();
            let path = "/latest/meta-data/iam/security-credentials/";
            write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
            stream
        })
        .collect();
    std::thread::park_timeout(Duration::from_millis(300));
    let mut store = Store::new(Doors::Metadata);
    let full = Full {
        revision: revision(0),
        // Pod 0 would own the address everybody waits at.
        pods: (1..1000).map(|n| pod(n, PEER)).collect(),
        credentials: vec![],
        keys: None,
    };
    store.apply(Update::Full(full), now).unwrap();
    let ringer = plane.ringer();
    let times = (0..400)
        .map(|number| {
            let applied = one_delta(&mut store, &mut publisher, number, 1000);
            let began = monotonic();
            ringer.ring();
            applied + began.elapsed()
        })
        .collect();
    println!(
        "  1000 pods, {} requests parked: {:?}",
        waiting.len(),
        median(times)
    );
    drop(waiting);
    plane.drain(Duration::from_secs(2));
}

// === servers to measure from outside ===

fn serve(driver: &str, port: u16) {
    let choice = if driver == "epoll" {
        DriverChoice::Epoll
    } else {
        DriverChoice::IoUring
    };
    let now = Now::read();
    let (mut publisher, tallies) = (Publisher::new(now), Tallies::new(1));
    publisher.publish(store(250, Doors::Metadata, now).snapshot(now));
    let plane = data::start(config(choice, port), &publisher, &tallies).unwrap();
    println!("{:?}", plane.driver());
    loop {
        std::thread::park();
    }
}

/// The barest server: epoll, a constant answer of the same size, no parsing, no limits.
fn null(port: u16) {
    let mut bench = Bench::new();
    let request = bench.request("credentials");
    bench.answer(&request);
    let answer = bench.out.clone();
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
