//! Processor time of a dialogue against the barest server.
//!
//! Each server is a process of its own on the first processor, the client is on the second. They take
//! turns in short rounds, and the median of the rounds counts, so that what else the machine does
//! falls on all of them alike. Processor time is the kernel's own account of the process's threads.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::park_timeout;
use std::time::Duration;

use kiam_agent::clock::monotonic;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::answers::Bench;

const ROUNDS: usize = 9;
const SERVERS: [&str; 3] = ["null", "io_uring", "epoll"];

/// How a client talks.
#[derive(Clone, Copy)]
struct Dialogue {
    name: &'static str,
    /// Requests on one connection; `None` keeps it for the whole round.
    requests: Option<u32>,
    connections: usize,
}

const DIALOGUES: [Dialogue; 4] = [
    Dialogue {
        name: "new connection, 1 request",
        requests: Some(1),
        connections: 1,
    },
    Dialogue {
        name: "new connection, 3 requests",
        requests: Some(3),
        connections: 1,
    },
    Dialogue {
        name: "1 kept-alive connection",
        requests: None,
        connections: 1,
    },
    Dialogue {
        name: "16 kept-alive connections",
        requests: None,
        connections: 16,
    },
];

/// One server in a process of its own.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; nothing else would be left to do.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

pub(crate) fn report(total: Duration) {
    let servers: Vec<Server> = SERVERS.iter().map(|name| start(name)).collect();
    pin(None, 1);
    let mut bench = Bench::new();
    let request = bench.request("credentials");
    let round = total / u32::try_from(ROUNDS).unwrap();
    println!("processor time of a dialogue, µs, and against the null server");
    for dialogue in DIALOGUES {
        let mut costs = vec![Vec::with_capacity(ROUNDS); SERVERS.len()];
        for _ in 0..ROUNDS {
            for (server, costs) in servers.iter().zip(&mut costs) {
                costs.push(cost(server, dialogue, &request, round));
            }
        }
        let costs: Vec<f64> = costs.into_iter().map(median).collect();
        let [null, io_uring, epoll] = *costs.as_slice() else {
            return;
        };
        println!(
            "  {:28} null {null:6.2}  io_uring {io_uring:6.2} ({:.2})  epoll {epoll:6.2} ({:.2})",
            dialogue.name,
            io_uring / null,
            epoll / null
        );
    }
}

fn median(mut costs: Vec<f64>) -> f64 {
    costs.sort_unstable_by(f64::total_cmp);
    costs.get(costs.len() / 2).copied().unwrap()
}

fn start(name: &str) -> Server {
    // Free a moment ago; whoever takes it meanwhile makes the server fail, and this with it.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .unwrap();
    let port = address.port().to_string();
    let words = match name {
        "null" => vec!["null", &port],
        driver => vec!["serve", driver, &port],
    };
    let child = Command::new(std::env::current_exe().unwrap())
        .args(words)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    pin(Some(pid(&child)), 0);
    let began = monotonic();
    while TcpStream::connect(address).is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "{name} does not start"
        );
        park_timeout(Duration::from_millis(20));
    }
    // Its threads were made before it listened, and after it was bound to the processor or not.
    Server { child, address }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

/// Binds a process to the `n`-th processor, where there is one.
fn pin(process: Option<Pid>, n: usize) {
    if std::thread::available_parallelism().is_ok_and(|count| count.get() > n) {
        let mut set = CpuSet::new();
        set.set(n);
        sched_setaffinity(process, &set).unwrap();
    }
}

/// Microseconds of the server's processor time per dialogue.
fn cost(server: &Server, dialogue: Dialogue, request: &[u8], round: Duration) -> f64 {
    let before = spent_ns(&server.child);
    let dialogues = talk(server.address, dialogue, request, round);
    // What the server does about the last close.
    park_timeout(Duration::from_millis(5));
    let spent = spent_ns(&server.child) - before;
    Duration::from_nanos(spent).as_secs_f64() * 1e6 / f64::from(dialogues)
}

/// Talks for as long as `round`; how many dialogues, for kept connections how many requests.
fn talk(address: SocketAddr, dialogue: Dialogue, request: &[u8], round: Duration) -> u32 {
    let mut buffer = [0; 8192];
    let mut exchange = |streams: &mut [TcpStream]| {
        for stream in &mut *streams {
            stream.write_all(request).unwrap();
        }
        for stream in streams {
            // Answers come in one piece on loopback.
            assert!(stream.read(&mut buffer).unwrap() > 1000);
        }
    };
    let connect = || -> Vec<TcpStream> {
        (0..dialogue.connections)
            .map(|_| {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_nodelay(true).unwrap();
                stream
            })
            .collect()
    };
    let began = monotonic();
    let mut count = 0;
    if let Some(requests) = dialogue.requests {
        while began.elapsed() < round {
            let mut streams = connect();
            for _ in 0..requests {
                exchange(&mut streams);
            }
            count += 1;
        }
    } else {
        let mut streams = connect();
        while began.elapsed() < round {
            exchange(&mut streams);
            count += u32::try_from(streams.len()).unwrap();
        }
    }
    count
}

fn spent_ns(child: &Child) -> u64 {
    let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    threads
        .filter_map(|thread| {
            let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}
