//! Agents replace each other while pods ask, some on new connections and some on old ones, and some
//! all at once. Nobody may be refused, reset or left without an answer.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use crate::program::{Running, install, leave_snapshot};
use crate::world::{Got, HOST, Pod, V4, build, eventually, inside};

const UPGRADES: usize = 6;
const PODS: [u8; 10] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
/// Answered before, after and between any two upgrades, at least.
const CALLS_BETWEEN: usize = 1_000;
/// Connections that are opened at once.
const CROWD: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn upgrades_fail_nobody() {
    let metadata = build();
    install();
    let pods = PODS.map(Pod::create);
    leave_snapshot(&PODS.map(|number| (number, "s")));
    let mut agent = Running::with("--driver=epoll", HOST);
    eventually("the agent answers", || pods[0].call(V4, 80) == Got::Agent);

    let began = tokio::time::Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let calls = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(number, pod)| {
            let (pod, stop, calls) = (pod.clone(), Arc::clone(&stop), Arc::clone(&calls));
            std::thread::spawn(move || {
                inside(&pod.name, move || {
                    let client = Steady { stop, calls };
                    client.ask_for_ever(number % 2 == 0);
                });
            })
        })
        .collect();
    let served = |calls: &AtomicUsize| {
        let before = calls.load(Ordering::Relaxed);
        eventually("calls are served", || {
            calls.load(Ordering::Relaxed) >= before + CALLS_BETWEEN
        });
    };
    for upgrade in 0..UPGRADES {
        served(&calls);
        let driver = ["--driver=auto", "--driver=epoll"][upgrade % 2];
        let crowd = (upgrade % 3 == 2).then(|| {
            // It accepts nothing for a moment: these wait in the queue when the next agent comes.
            agent.signal(Signal::STOP);
            Crowd::gather(&pods[upgrade])
        });
        let mut old = std::mem::replace(&mut agent, Running::with(driver, HOST));
        if let Some(crowd) = crowd {
            std::thread::park_timeout(Duration::from_millis(200));
            old.signal(Signal::CONT);
            calls.fetch_add(crowd.are_answered(), Ordering::Relaxed);
        }
        eventually("the new agent takes over", || old.has_been_succeeded());
        // As a DaemonSet does once the new one is ready: it does not cut short what is under way.
        old.signal(Signal::TERM);
        eventually("the old agent ends", || old.has_ended_well());
    }
    served(&calls);
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    let calls = calls.load(Ordering::Relaxed);
    println!(
        "{calls} requests over {UPGRADES} upgrades, {:.0} a second, none failed",
        calls as f64 / began.elapsed().as_secs_f64()
    );
    assert!(calls >= (UPGRADES + 1) * CALLS_BETWEEN);
    assert_eq!(metadata.seen_from_pods(), 0);
}

fn connect() -> TcpStream {
    let address = SocketAddr::new(V4.parse::<IpAddr>().unwrap(), 80);
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(mut stream: &TcpStream, keeps_alive: bool) {
    let close = if keeps_alive {
        ""
    } else {
        "Connection: close\r\n"
    };
    let request = format!(
        "PUT /latest/api/token HTTP/1.1\r\nHost: {V4}\r\n{close}\
         X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
}

/// Whether it was the connection's last answer.
fn listen(answers: &mut BufReader<&TcpStream>) -> bool {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(answers.read_line(&mut head).unwrap() > 0, "cut off: {head}");
    }
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("Content-Length: 55\r\n"), "{head}");
    let mut token = [0; 55];
    answers.read_exact(&mut token).unwrap();
    head.contains("Connection: close\r\n")
}

/// A client that asks a hundred times a second.
struct Steady {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

impl Steady {
    fn ask_for_ever(&self, keeps_alive: bool) {
        while !self.stop.load(Ordering::Relaxed) {
            let stream = connect();
            let mut answers = BufReader::new(&stream);
            while !self.stop.load(Ordering::Relaxed) {
                ask(&stream, keeps_alive);
                let closing = listen(&mut answers);
                self.calls.fetch_add(1, Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_millis(8));
                if closing {
                    break;
                }
            }
        }
    }
}

/// Connections that have asked, all before any was answered.
struct Crowd(Vec<TcpStream>);

impl Crowd {
    fn gather(pod: &Pod) -> Self {
        Self(inside(&pod.name, || {
            let streams: Vec<_> = (0..CROWD).map(|_| connect()).collect();
            for stream in &streams {
                ask(stream, false);
            }
            streams
        }))
    }

    /// How many they were.
    fn are_answered(self) -> usize {
        for stream in &self.0 {
            listen(&mut BufReader::new(stream));
        }
        self.0.len()
    }
}
