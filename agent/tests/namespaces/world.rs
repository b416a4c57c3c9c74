//! A node, its pods and its cloud, each a network namespace of this test's own.
//!
//! ```text
//! cloud: 169.254.169.254, fd00:ec2::254 ── eth0 ─ node ─ cali1 ── pod 1
//!        (the stand-in metadata service)     │          cali2 ── pod 2
//! ```
//! Pods are wired as calico and amazon-vpc-cni do it: a veth pair and a route to each address.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiam_agent::intercept::rules::Rules;
use kiam_agent::intercept::witness::Witness;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(crate) const V4: &str = "169.254.169.254";
pub(crate) const V6: &str = "fd00:ec2::254";
pub(crate) const HOST: &str = "10.1.0.2";
pub(crate) const HOST_V6: &str = "fd00:1::2";
pub(crate) const PORT: u16 = 8181;
const NODE_MAC: &str = "ee:ee:ee:ee:ee:ee";
const CALL_TIME_MAX: Duration = Duration::from_millis(1_500);

/// Runs a shell line in the node's namespace.
#[track_caller]
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `work` in the namespace `name`, on a thread that ends there. Sockets that it makes stay in
/// that namespace.
pub(crate) fn inside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    std::thread::spawn(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    })
    .join()
    .unwrap()
}

pub(crate) fn rules(port: u16, interfaces: &str) -> Rules {
    Rules::try_new(
        &[HOST.parse().unwrap(), HOST_V6.parse().unwrap()],
        NonZeroU16::new(port).unwrap(),
        interfaces.parse().unwrap(),
    )
    .unwrap()
}

/// Builds the node and its cloud in the present namespace, which must be new.
pub(crate) fn build() -> Metadata {
    sh(
        "mount -t tmpfs tmpfs /run; mkdir -p /run/netns; ip link set lo up
        echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
        echo 1 > /proc/sys/net/ipv4/ip_forward
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
        ip netns add cloud
        ip link add eth0 type veth peer name eth0 netns cloud
        ip addr add 10.1.0.2/24 dev eth0; ip addr add fd00:1::2/64 dev eth0 nodad
        ip link set eth0 up
        ip -n cloud link set lo up; ip -n cloud link set eth0 up
        ip -n cloud addr add 10.1.0.1/24 dev eth0; ip -n cloud addr add fd00:1::1/64 dev eth0 nodad
        ip -n cloud addr add 169.254.169.254/32 dev eth0
        ip -n cloud addr add fd00:ec2::254/128 dev eth0 nodad
        ip route add 169.254.169.254/32 dev eth0; ip route add fd00:ec2::254/128 dev eth0
        # As kube-proxy does it everywhere: connections are tracked before we come.
        nft 'table inet base { chain f { type filter hook forward priority 0; ct state established accept; }; }'
        ip -n cloud route add 10.2.0.0/16 via 10.1.0.2
        ip -n cloud route add 192.0.2.254/32 via 10.1.0.2
        ip -n cloud route add 2001:db8::254/128 via fd00:1::2
        ip -n cloud route add fd00:2::/64 via fd00:1::2",
    );
    Metadata::start()
}

/// A pod with 10.2.0.N and `fd00:2::N`.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
}

impl Pod {
    pub(crate) fn create(number: u8) -> Self {
        Self::with_interface(number, number)
    }

    /// As pod `number`, behind another interface: the address's next owner.
    pub(crate) fn with_interface(number: u8, interface: u8) -> Self {
        let name = format!("pod{interface}");
        sh(&format!(
            "ip netns add {name}
             ip link add cali{interface} address {NODE_MAC} type veth peer name eth0 netns {name}
             ip link set cali{interface} up
             ip route add 10.2.0.{number}/32 dev cali{interface}
             ip route add fd00:2::{number}/128 dev cali{interface}
             ip -n {name} link set lo up; ip -n {name} link set eth0 up
             ip -n {name} addr add 10.2.0.{number}/32 dev eth0
             ip -n {name} addr add fd00:2::{number}/128 dev eth0 nodad
             ip -n {name} route add 169.254.1.1 dev eth0
             ip -n {name} neigh add 169.254.1.1 lladdr {NODE_MAC} dev eth0
             ip -n {name} route add default via 169.254.1.1
             ip -n {name} route add fe80::1 dev eth0
             ip -n {name} neigh add fe80::1 lladdr {NODE_MAC} dev eth0
             ip -n {name} route add default via fe80::1 dev eth0"
        ));
        Self {
            name,
            ip: IpAddr::from([10, 2, 0, number]),
        }
    }

    /// One HTTP call, as an SDK without keep-alive makes it.
    pub(crate) fn call(&self, address: &str, port: u16) -> Got {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        inside(&self.name, move || call(address))
    }

    /// A connection to the metadata service that stays open.
    pub(crate) fn open(&self, address: &str) -> TcpStream {
        let address = SocketAddr::new(address.parse().unwrap(), 80);
        inside(&self.name, move || {
            let stream = TcpStream::connect_timeout(&address, CALL_TIME_MAX).unwrap();
            stream.set_read_timeout(Some(CALL_TIME_MAX)).unwrap();
            stream
        })
    }

    pub(crate) fn send_datagram(&self, address: &str) {
        let address = SocketAddr::new(address.parse().unwrap(), 53);
        inside(&self.name, move || {
            let any = if address.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any).unwrap();
            // Refusals come back as errors; what counts is what arrives.
            for _ in 0..3 {
                drop(socket.send_to(b"hello", address));
            }
        });
    }
}

const SILENCE: [io::ErrorKind; 2] = [io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock];
const REFUSALS: [io::ErrorKind; 5] = [
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::ConnectionReset,
    io::ErrorKind::HostUnreachable,
    io::ErrorKind::NetworkUnreachable,
    io::ErrorKind::PermissionDenied,
];

/// What a caller got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Got {
    Agent,
    Metadata,
    Refused,
    Silence,
    Odd(String),
}

pub(crate) fn call(address: SocketAddr) -> Got {
    call_within(address, CALL_TIME_MAX)
}

/// The same for a caller with less patience.
pub(crate) fn call_within(address: SocketAddr, patience: Duration) -> Got {
    let exchange = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"GET /ping HTTP/1.1\r\nHost: metadata\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match exchange() {
        Ok(answer) if answer.ends_with("pong") => Got::Agent,
        Ok(answer) if answer.contains("EC2ws") => Got::Metadata,
        Ok(answer) => Got::Odd(answer),
        Err(error) if REFUSALS.contains(&error.kind()) => Got::Refused,
        Err(error) if SILENCE.contains(&error.kind()) => Got::Silence,
        Err(error) => Got::Odd(error.to_string()),
    }
}

/// The stand-in for the node's metadata service: it counts whoever gets anything to it.
pub(crate) struct Metadata {
    from_pods: Arc<AtomicUsize>,
    from_node: Arc<AtomicUsize>,
}

impl Metadata {
    fn start() -> Self {
        let metadata = Self {
            from_pods: Arc::default(),
            from_node: Arc::default(),
        };
        for address in ["169.254.169.254", "[fd00:ec2::254]"] {
            for port in [80, 81] {
                let address = format!("{address}:{port}");
                let listener = inside("cloud", move || TcpListener::bind(address).unwrap());
                let (pods, node) = (metadata.from_pods.clone(), metadata.from_node.clone());
                std::thread::spawn(move || {
                    for stream in listener.incoming() {
                        let (pods, node) = (pods.clone(), node.clone());
                        std::thread::spawn(move || {
                            answer_as_metadata(stream.unwrap(), &pods, &node);
                        });
                    }
                });
            }
            let address = format!("{address}:53");
            let socket = inside("cloud", move || UdpSocket::bind(address).unwrap());
            let pods = metadata.from_pods.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 16];
                while socket.recv_from(&mut buffer).is_ok() {
                    pods.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        metadata
    }

    /// Connections, requests and datagrams of pods that arrived, since the start.
    pub(crate) fn seen_from_pods(&self) -> usize {
        self.from_pods.load(Ordering::Relaxed)
    }

    pub(crate) fn seen_from_node(&self) -> usize {
        self.from_node.load(Ordering::Relaxed)
    }
}

/// Counts the connection, and each request on it.
fn answer_as_metadata(mut stream: TcpStream, pods: &AtomicUsize, node: &AtomicUsize) {
    let peer = stream.peer_addr().unwrap().ip();
    let is_node = [HOST, HOST_V6].contains(&peer.to_string().as_str());
    let count = if is_node { node } else { pods };
    count.fetch_add(1, Ordering::Relaxed);
    let mut request = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut request) {
        count.fetch_add(1, Ordering::Relaxed);
        let answer = b"HTTP/1.1 404 Not Found\r\nServer: EC2ws\r\nContent-Length: 0\r\n\r\n";
        if stream.write_all(answer).is_err() || request[..length].starts_with(b"GET") {
            return;
        }
    }
}

/// A stand-in agent: answers `pong`, keeps who asked and whether they came through the rules.
pub(crate) struct Agent {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
    pub(crate) witness: Arc<Witness>,
    pub(crate) peers: Arc<Mutex<Vec<IpAddr>>>,
}

impl Agent {
    pub(crate) fn start(port: u16) -> Self {
        let listeners = [HOST, HOST_V6]
            .map(|host| TcpListener::bind((host.parse::<IpAddr>().unwrap(), port)).unwrap());
        Self::on(listeners.into())
    }

    pub(crate) fn on(listeners: Vec<TcpListener>) -> Self {
        let mut agent = Self {
            stop: Arc::default(),
            threads: Vec::new(),
            witness: Arc::default(),
            peers: Arc::default(),
        };
        for listener in listeners {
            listener.set_nonblocking(true).unwrap();
            let (stop, witness, peers) = (
                agent.stop.clone(),
                agent.witness.clone(),
                agent.peers.clone(),
            );
            agent.threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, peer)) => {
                            witness.look(&stream);
                            peers.lock().unwrap().push(peer.ip());
                            answer_as_agent(stream);
                        }
                        Err(_none) => std::thread::park_timeout(Duration::from_micros(300)),
                    }
                }
            }));
        }
        agent
    }

    /// Ends it; its sockets are closed unless somebody else has them.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

fn answer_as_agent(mut stream: TcpStream) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(CALL_TIME_MAX)).unwrap();
    let mut request = [0; 1024];
    if let Ok(1..) = stream.read(&mut request) {
        // The caller may have gone; that is the caller's test to notice.
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npong"));
    }
}

/// Waits for what must come true, on a busy machine within half a minute.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if holds() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    panic!("not within half a minute: {what}");
}
