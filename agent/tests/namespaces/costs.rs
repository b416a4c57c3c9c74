//! What each way to the agent costs: processor time and connection tracking entries, counted.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use kiam_agent::intercept::{Backend, install};

use crate::world::{Got, HOST, PORT, Pod, V4, build, call_within, inside, rules, sh};

const CALLS: usize = 2_000;
const ROUNDS: usize = 3;
/// The short entries' time-outs have passed by then, and the kernel's collector has been round.
const LATER: Duration = Duration::from_secs(20);

/// A way: its name, what sets it up, where pods connect to, where the agent listens.
struct Way {
    name: &'static str,
    set_up: fn(),
    to: &'static str,
    listen: fn() -> io::Result<TcpListener>,
}

fn on_host() -> io::Result<TcpListener> {
    TcpListener::bind((HOST, PORT))
}

fn everywhere() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))
}

fn on_metadata() -> io::Result<TcpListener> {
    TcpListener::bind((V4, 80))
}

const NOTRACK: &str = "chain in { type filter hook prerouting priority -300; \
    ip daddr 169.254.169.254 tcp dport 80 notrack; }; \
    chain out { type filter hook output priority -300; \
    ip saddr 169.254.169.254 tcp sport 80 notrack; };";

fn dnat(chain: &str) {
    sh(&format!(
        "nft 'table ip way {{ chain pods {{ type nat hook prerouting priority -110; \
         iifname \"cali*\" ip daddr 169.254.169.254 tcp dport 80 {chain}; }}; }}'"
    ));
}

const WAYS: [Way; 5] = [
    Way {
        name: "the host address, no rule",
        set_up: || {},
        to: "10.1.0.2:8181",
        listen: on_host,
    },
    Way {
        name: "DNAT",
        set_up: || dnat("dnat to 10.1.0.2:8181"),
        to: "169.254.169.254:80",
        listen: on_host,
    },
    Way {
        name: "DNAT, short entries",
        set_up: || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let ours = rules(PORT, "cali+");
            let installed = install(Backend::Nftables, &ours, crate::AT);
            runtime.unwrap().block_on(installed).unwrap();
        },
        to: "169.254.169.254:80",
        listen: on_host,
    },
    Way {
        name: "redirect",
        set_up: || {
            sh("ip addr add 10.3.0.1/32 dev cali1");
            dnat("redirect to :8181");
        },
        to: "169.254.169.254:80",
        listen: everywhere,
    },
    Way {
        name: "address on lo, notrack",
        set_up: || {
            sh("ip addr add 169.254.169.254/32 dev lo");
            sh(&format!("nft 'table ip way {{ {NOTRACK} }}'"));
        },
        to: "169.254.169.254:80",
        listen: on_metadata,
    },
];

#[derive(Default)]
struct Costs {
    cpu_us: f64,
    entries: f64,
    later: f64,
}

pub(crate) fn what_each_way_costs() {
    let _metadata = build();
    let pod = Pod::create(1);
    let mut best: BTreeMap<usize, Costs> = BTreeMap::new();
    for round in 0..ROUNDS {
        for (number, way) in WAYS.iter().enumerate() {
            let last = round == ROUNDS - 1;
            let costs = measure(&pod, way, last);
            let best = best.entry(number).or_insert(Costs {
                cpu_us: f64::MAX,
                ..Costs::default()
            });
            best.cpu_us = best.cpu_us.min(costs.cpu_us);
            best.entries = best.entries.max(costs.entries);
            best.later = costs.later;
        }
    }
    println!(
        "| way | CPU µs a call | entries a call | after {} s |",
        LATER.as_secs()
    );
    for (
        number,
        Costs {
            cpu_us,
            entries,
            later,
        },
    ) in &best
    {
        let name = WAYS[*number].name;
        println!("| {name} | {cpu_us:.0} | {entries:.3} | {later:.3} |");
    }
    let entries = |name: &str| {
        let number = WAYS.iter().position(|way| way.name == name).unwrap();
        &best[&number]
    };
    // What the choice rests on.
    assert!(entries("DNAT").later > 0.9);
    assert!(entries("address on lo, notrack").entries < 0.01);
}

fn measure(pod: &Pod, way: &Way, waits: bool) -> Costs {
    (way.set_up)();
    let agent = serve((way.listen)().unwrap(), CALLS + 1);
    let to: SocketAddr = way.to.parse().unwrap();
    assert_eq!(
        inside(&pod.name, move || call_within(to, LATER)),
        Got::Agent,
        "{}",
        way.name
    );
    sh("conntrack -F 2>/dev/null");
    let before = entries();
    let cpu = cpu_us();
    let answered = inside(&pod.name, move || {
        (0..CALLS)
            .filter(|_| call_within(to, LATER) == Got::Agent)
            .count()
    });
    let cpu_us = (cpu_us() - cpu) / CALLS as f64;
    assert_eq!(answered, CALLS, "{}", way.name);
    let share = |entries: usize| entries.saturating_sub(before) as f64 / CALLS as f64;
    let costs = Costs {
        cpu_us,
        entries: share(entries()),
        later: if waits {
            std::thread::park_timeout(LATER);
            share(entries())
        } else {
            0.0
        },
    };
    agent.join().unwrap();
    sh(
        "nft delete table ip way 2>/dev/null || :; nft delete table inet kiam 2>/dev/null || :
        ip addr del 169.254.169.254/32 dev lo 2>/dev/null || :
        ip addr del 10.3.0.1/32 dev cali1 2>/dev/null || :
        for rule in 50 51 52; do
            ip rule del pref $rule 2>/dev/null || :; ip -6 rule del pref $rule 2>/dev/null || :
        done",
    );
    costs
}

/// Of this node's network namespace.
fn entries() -> usize {
    sh("conntrack -C").trim().parse().unwrap()
}

/// What this process has used: client, server, and the kernel's work for both, which over a veth pair
/// is done in their own time.
fn cpu_us() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 * 1e6 + spent.tv_nsec as f64 / 1e3
}

/// The least that can be called an agent: it sleeps until somebody comes, and ends after `calls`.
fn serve(listener: TcpListener, calls: usize) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for stream in listener.incoming().take(calls) {
            let mut stream = stream.unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npong";
            stream.write_all(answer).unwrap();
        }
    })
}
