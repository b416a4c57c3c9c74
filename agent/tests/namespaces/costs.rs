//! What each way to the agent costs: processor time and connection tracking entries, counted.
//!
//! The table of docs/interception.md is what this prints with `KIAM_COST_CALLS=5000`.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use kiam_agent::intercept::{Backend, install};

use crate::world::{Got, HOST, PORT, Pod, V4, build, call_within, inside, rules, sh};

/// Calls of each way and round, unless `KIAM_COST_CALLS` says otherwise.
const CALLS: usize = 200;
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);
/// What is left of a short entry after its close, at most, in seconds: that of a half-closed one.
const SHORT_S: u64 = 10;

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
        set_up: || dnat("redirect to :8181"),
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

struct Costs {
    cpu_us: f64,
    /// Entries a call.
    entries: f64,
    /// The longest that one of them would stay, in seconds.
    stays_s: u64,
}

pub(crate) fn what_each_way_costs() {
    if Command::new("conntrack").arg("--version").output().is_err() {
        println!("skipped: counting entries takes the tool conntrack");
        return;
    }
    let asked = std::env::vars().find(|(name, _value)| name == "KIAM_COST_CALLS");
    let calls = asked.map_or(CALLS, |(_name, value)| value.parse().unwrap());
    let _metadata = build();
    let pod = Pod::create(1);
    // For `redirect`. It stays: with an interface's last address its routes go too.
    sh("ip addr add 10.3.0.1/32 dev cali1");
    let mut best: BTreeMap<usize, Costs> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (number, way) in WAYS.iter().enumerate() {
            let costs = measure(&pod, way, calls);
            let best = best.entry(number).or_insert(Costs {
                cpu_us: f64::MAX,
                entries: 0.0,
                stays_s: 0,
            });
            best.cpu_us = best.cpu_us.min(costs.cpu_us);
            best.entries = best.entries.max(costs.entries);
            best.stays_s = best.stays_s.max(costs.stays_s);
        }
    }
    println!("| way | CPU µs a call | entries a call | for at most |");
    for (way, costs) in WAYS.iter().zip(best.values()) {
        let Costs {
            cpu_us,
            entries,
            stays_s,
        } = costs;
        println!(
            "| {} | {cpu_us:.0} | {entries:.2} | {stays_s} s |",
            way.name
        );
    }
    let of = |name: &str| {
        let number = WAYS.iter().position(|way| way.name == name).unwrap();
        &best[&number]
    };
    // What the choice rests on.
    let (plain, short) = (of("DNAT"), of("DNAT, short entries"));
    assert!(plain.entries > 0.9 && plain.stays_s > 60);
    assert!(of("address on lo, notrack").entries < 0.01);
    assert!(short.stays_s <= SHORT_S, "{} s", short.stays_s);
}

fn measure(pod: &Pod, way: &Way, calls: usize) -> Costs {
    (way.set_up)();
    let agent = serve((way.listen)().unwrap(), calls + 1);
    let to: SocketAddr = way.to.parse().unwrap();
    assert_eq!(
        inside(&pod.name, move || call_within(to, PATIENCE)),
        Got::Agent,
        "{}",
        way.name
    );
    sh("conntrack -F 2>/dev/null");
    let cpu = cpu_us();
    let answered = inside(&pod.name, move || {
        (0..calls)
            .filter(|_| call_within(to, PATIENCE) == Got::Agent)
            .count()
    });
    let cpu_us = (cpu_us() - cpu) / calls as f64;
    assert_eq!(answered, calls, "{}", way.name);
    let entries = entries();
    agent.join().unwrap();
    sh(
        "nft delete table ip way 2>/dev/null || :; nft delete table inet kiam 2>/dev/null || :
        ip addr del 169.254.169.254/32 dev lo 2>/dev/null || :
        for rule in 50 51 52; do
            ip rule del pref $rule 2>/dev/null || :; ip -6 rule del pref $rule 2>/dev/null || :
        done",
    );
    Costs {
        cpu_us,
        entries: entries.len() as f64 / calls as f64,
        stays_s: entries.into_iter().max().unwrap_or(0),
    }
}

/// What is left of each entry for TCP in this node's network namespace, in seconds.
fn entries() -> Vec<u64> {
    let listed = sh("conntrack -L -p tcp 2>/dev/null");
    let left = |line: &str| line.split_whitespace().nth(2)?.parse().ok();
    listed.lines().filter_map(left).collect()
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
