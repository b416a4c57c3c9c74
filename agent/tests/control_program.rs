//! The program as an operator sees it: exit codes, log lines, the admin port, SIGTERM. No server is
//! reachable in any of these tests.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may end here"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use kiam_agent::clock::{Now, since_boot};
use kiam_agent::handover::directory::Directory;
use kiam_agent::handover::listeners::{Taken, take};
use kiam_agent::handover::snapshot::{self, Addresses, Here};
use kiam_agent::handover::{boot_id, watched};
use kiam_wire::credentials::Unchecked;
use kiam_wire::{CredentialId, Credentials, Full, Pod, PodState, PodUid, Revision};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);
/// There, and no certificate.
const FILE: &str = env!("CARGO_MANIFEST_PATH");

fn agent() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiam-agent"));
    command.env_remove("NODE_NAME").env_remove("HOST_IP");
    command.stdin(Stdio::null());
    command
}

fn run(flags: &[&str]) -> Output {
    agent().args(flags).output().unwrap()
}

/// An agent without a server.
struct Running {
    child: Child,
    lines: Receiver<Value>,
}

impl Running {
    fn start(flags: &[&str]) -> Self {
        Self::of(agent(), flags)
    }

    /// After a line of shell, in the same process.
    fn after(line: &str, flags: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("{line}; exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_kiam-agent"))
            .stdin(Stdio::null());
        Self::of(shell, flags)
    }

    fn of(mut command: Command, flags: &[&str]) -> Self {
        let key = |flag: &str| flag.split('=').next().unwrap().to_owned();
        let usual = [
            "--node-name=node-a",
            "--port=0",
            "--admin-listen-addr=127.0.0.1:0",
            "--listen-addr=127.0.0.1",
            // Nobody listens on the discard port.
            "--server-address=127.0.0.1:9",
            "--driver=epoll",
        ];
        let usual = usual
            .iter()
            .filter(|usual| flags.iter().all(|flag| key(flag) != key(usual)));
        let mut child = command
            .args(["--ca", FILE, "--token-file", FILE, "--json-log"])
            .args(usual)
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines() {
                let Ok(line) = line else { return };
                let line = serde_json::from_str(&line).expect("a line is no JSON");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next log line with this message.
    fn line(&self, message: &str) -> Value {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).expect(message);
            if line["message"] == message {
                return line;
            }
        }
    }

    fn admin(&self) -> SocketAddr {
        let line = self.line("admin port");
        line["address"].as_str().unwrap().parse().unwrap()
    }

    /// Where pods ask.
    fn door(&self) -> SocketAddr {
        let listening = self.line("answering pods")["listening"].to_string();
        let address = listening.trim_matches(['"', '[', ']', '\\']);
        address.parse().expect(address)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A connection from one address of this machine to another.
fn from(here: &str, there: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let here = SocketAddr::new(here.parse().unwrap(), 0);
    socket.bind(&here.into()).unwrap();
    socket.connect(&there.into()).unwrap();
    socket.into()
}

/// Status, head and body of a GET.
fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), body.to_owned())
}

#[test]
fn exit_codes_say_who_is_to_blame() {
    let check = |flags: &[&str], code: i32, said: &str| {
        let output = run(flags);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {text}");
        assert!(text.contains(said), "{flags:?}: {text}");
    };
    check(&["--help"], 0, "--server-address <HOST:PORT>");
    check(&["--version"], 0, env!("CARGO_PKG_VERSION"));
    check(&["completion", "bash"], 0, "kiam-agent");
    check(&["--no-such-flag"], 2, "--no-such-flag");
    check(&[], 2, "--node-name");
    let usual = ["--node-name=node-a", "--ca", FILE, "--token-file", FILE];
    let with = |more: &[&'static str]| [&usual[..], more].concat();
    check(&with(&["--park-timeout=0s"]), 2, "greater than zero");
    // An address of nobody: a failure of this machine, not of the command line.
    let nowhere = with(&["--listen-addr=192.0.2.1", "--driver=epoll"]);
    check(&nowhere, 1, "192.0.2.1");
}

#[test]
fn operators_are_answered_while_no_server_is_there() {
    let agent = Running::start(&[]);
    let admin = agent.admin();
    let (status, head, body) = get(admin, "/metrics");
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(body.ends_with("# EOF\n"));
    for line in [
        "kiam_agent_server_connected 0",
        "kiam_agent_pods{state=\"granted\"} 0",
        "kiam_agent_driver_reason_info{driver=\"epoll\"",
        "kiam_agent_build_info{version=",
        "process_resident_memory_bytes ",
    ] {
        assert!(body.contains(line), "{line} is not in {body}");
    }
    let names: Vec<&str> = body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    let mut once = names.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(
        once.len(),
        names.len(),
        "a metric is there twice: {names:?}"
    );

    assert_eq!(get(admin, "/livez").0, 200);
    let (status, _, reasons) = get(admin, "/readyz");
    assert_eq!(status, 503);
    assert!(reasons.starts_with("no snapshot yet"), "{reasons}");
    assert_eq!(get(admin, "/ping").2, "pong");
    assert_eq!(get(admin, "/health").0, 200);
    assert_eq!(get(admin, "/health?deep=").0, 200);
    assert_eq!(get(admin, "/health?deep=anything").0, 503);
    assert_eq!(get(admin, "/elsewhere").0, 404);

    let (status, _, body) = get(admin, "/snapshot");
    assert_eq!(status, 200);
    let snapshot: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(snapshot["node"], "node-a");
    assert_eq!(snapshot["revision"], Value::Null);
    assert_eq!(snapshot["pods"], Value::Array(vec![]));
}

#[test]
fn it_stops_when_told_to_and_says_why() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut agent = Running::start(&["--statsd=x", "--pprof-listen-addr=y"]);
        let ignored = agent.line("these flags of kiam's have no meaning here and are ignored");
        assert_eq!(ignored["flags"], "--pprof-listen-addr --statsd");
        agent.admin();
        agent.signal(signal);
        drop(agent.line("stopping"));
        assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    }
}

/// A hand-over directory in memory.
fn handover() -> (TempDir, Directory) {
    let guard = tempfile::tempdir_in("/dev/shm").unwrap();
    let directory = Directory::open(guard.path()).unwrap();
    (guard, directory)
}

/// What an agent of `node-a` that ended just now has left for its next.
fn leave_snapshot(directory: &Directory) {
    leave_unwatched(directory);
    watched::renew(directory, since_boot()).unwrap();
}

/// What one left that ended who knows when, with this machine as the pod.
fn leave_unwatched(directory: &Directory) {
    let id = CredentialId::new([7; 32]);
    let now = Now::read().wall;
    let credentials = Credentials::try_new(Unchecked {
        id,
        role_name: "reader".into(),
        role_arn: "arn:aws:iam::123456789012:role/reader".into(),
        access_key_id: "ASIAEXAMPLE".into(),
        secret_access_key: String::from("secret").into(),
        session_token: String::from("token").into(),
        issued_at: now,
        expires_at: now.after(Duration::from_hours(1)),
    });
    let pod = Pod {
        uid: PodUid::try_new("a").unwrap(),
        namespace: "default".into(),
        name: "a".into(),
        service_account: "default".into(),
        ips: vec!["127.0.0.1".parse().unwrap()],
        host_network: false,
        imds_v2_required: false,
        state: PodState::Granted(id),
    };
    let full = Full {
        revision: Revision {
            epoch: 1,
            number: 1,
        },
        pods: vec![pod],
        credentials: vec![credentials.unwrap().into()],
        keys: None,
    };
    let here = Here {
        node_name: "node-a",
        boot_id: &boot_id().unwrap(),
        now,
    };
    snapshot::write(directory, full, &Addresses::default(), here).unwrap();
}

const LIST: &str = "/latest/meta-data/iam/security-credentials/";

#[test]
fn whoever_has_the_sockets_keeps_them_when_the_agent_is_told_to_end() {
    let (guard, directory) = handover();
    let path = guard.path().to_str().unwrap();
    let mut agent = Running::start(&[&format!("--handover-dir={path}")]);
    let door = agent.door();
    let taken = take_ports(&directory);
    // Before the one who took them says that it serves.
    agent.signal(Signal::TERM);
    drop(agent.line("stopping"));
    assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    let is_door = |socket: &&TcpListener| socket.local_addr().unwrap() == door;
    let socket = taken.listeners.iter().find(is_door).unwrap();
    let client = TcpStream::connect(door).expect("somebody listens");
    let (_, peer) = socket.accept().expect("it is not shut down");
    assert_eq!(peer, client.local_addr().unwrap());
}

/// The agent offers them a moment after it answers.
fn take_ports(directory: &Directory) -> Taken {
    for _ in 0..400 {
        if let Some(taken) = take(directory).unwrap() {
            for socket in &taken.listeners {
                socket.set_nonblocking(false).unwrap();
            }
            return taken;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    panic!("never offered");
}

#[test]
fn what_nobody_watched_for_a_while_is_not_believed() {
    let status = |leave: fn(&Directory)| {
        let (guard, directory) = handover();
        leave(&directory);
        let agent = Running::start(&[&format!("--handover-dir={}", guard.path().display())]);
        get(agent.door(), LIST).0
    };
    // The pod's address is on no interface that the kernel tells of.
    assert_eq!(status(leave_snapshot), 200);
    assert_eq!(status(leave_unwatched), 503);
    let long_ago = |directory: &Directory| {
        leave_unwatched(directory);
        let then = since_boot().saturating_sub(watched::UNWATCHED_MAX + Duration::from_secs(5));
        watched::renew(directory, then).unwrap();
    };
    assert_eq!(status(long_ago), 503);
}

#[test]
fn a_running_agent_says_until_when_it_watched() {
    let (guard, directory) = handover();
    leave_snapshot(&directory);
    let written = || std::fs::read(guard.path().join("watched")).unwrap();
    let then = since_boot().saturating_sub(Duration::from_secs(20));
    watched::renew(&directory, then).unwrap();
    let before = written();
    let agent = Running::start(&[&format!("--handover-dir={}", guard.path().display())]);
    let _door = agent.door();
    for _ in 0..400 {
        if written() != before {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    panic!("never renewed");
}

#[test]
fn an_agent_that_can_answer_is_not_replaced_by_one_that_cannot() {
    let (guard, directory) = handover();
    leave_snapshot(&directory);
    let handover = format!("--handover-dir={}", guard.path().display());
    let first = Running::start(&[&handover]);
    let (admin, door) = (first.admin(), first.door());
    assert_eq!(get(door, LIST).2, "reader");
    // What the first has left is another node's for it, and no server is there.
    let second = Running::start(&[
        &handover,
        "--node-name=node-b",
        &format!("--port={}", door.port()),
        &format!("--admin-listen-addr={admin}"),
    ]);
    assert_eq!(second.door(), door);
    // An upgrade goes on once the successor says that it is ready. Both are asked, and neither is.
    for _ in 0..20 {
        let (status, _, reasons) = get(admin, "/readyz");
        assert_eq!(status, 503, "{reasons}");
        // And it lets nobody in, who would wait for an answer in vain.
        assert_eq!(get(door, LIST).2, "reader");
    }
    // The sockets are not the second's to shut down.
    let mut second = second;
    second.signal(Signal::TERM);
    assert_eq!(second.child.wait().unwrap().code(), Some(0));
    for _ in 0..20 {
        assert_eq!(get(door, LIST).2, "reader");
    }
    for _ in 0..100 {
        if get(admin, "/readyz").0 == 200 {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    panic!("never ready again");
}

#[test]
fn a_successor_that_ends_before_it_serves_keeps_nobody_from_the_next() {
    let (guard, directory) = handover();
    leave_snapshot(&directory);
    let handover = format!("--handover-dir={}", guard.path().display());
    let mut first = Running::start(&[&handover]);
    let door = first.door();
    let port = format!("--port={}", door.port());
    for signal in [Signal::TERM, Signal::KILL] {
        // It can take the ports, and nothing to answer with.
        let mut second = Running::start(&[&handover, "--node-name=node-b", &port]);
        assert_eq!(second.door(), door);
        // Long enough to offer the ports itself, if it did.
        drop(first.line("another agent takes over"));
        drop(second.line("cannot follow a server"));
        second.signal(signal);
        second.child.wait().unwrap();
        drop(first.line("a successor did not come to serve; this agent goes on"));
    }
    let third = Running::start(&[&handover, &port]);
    assert_eq!(third.door(), door);
    drop(first.line("stopping"));
    for _ in 0..20 {
        assert_eq!(get(door, LIST).2, "reader");
    }
    // Whoever started it tells it to end.
    first.signal(Signal::TERM);
    assert_eq!(first.child.wait().unwrap().code(), Some(0));
    assert_eq!(get(door, LIST).2, "reader");
}

#[test]
fn one_that_cannot_answer_lets_in_whoever_comes_when_it_is_alone() {
    let (guard, directory) = handover();
    leave_snapshot(&directory);
    let handover = format!("--handover-dir={}", guard.path().display());
    let mut first = Running::start(&[&handover]);
    let door = first.door();
    let second = Running::start(&[
        &handover,
        "--node-name=node-b",
        &format!("--port={}", door.port()),
    ]);
    assert_eq!(second.door(), door);
    assert_eq!(get(door, LIST).2, "reader");
    first.signal(Signal::TERM);
    assert_eq!(first.child.wait().unwrap().code(), Some(0));
    // It knows no pod; that it answers is what counts.
    assert_eq!(get(door, LIST).0, 503);
    assert_eq!(get(door, "/ping").2, "pong");
}

#[test]
fn two_agents_without_a_handover_directory_do_not_overlap() {
    let first = Running::start(&[]);
    let port = first.door().port();
    let second = run(&[
        "--node-name=node-a",
        "--ca",
        FILE,
        "--token-file",
        FILE,
        "--listen-addr=127.0.0.1",
        &format!("--port={port}"),
        "--admin-listen-addr=127.0.0.1:0",
        "--server-address=127.0.0.1:9",
    ]);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("--handover-dir"), "{said}");
    assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
}

#[test]
fn a_dawdling_operator_does_not_keep_the_others_out() {
    let agent = Running::start(&[]);
    let admin = agent.admin();
    // None of them ever says anything.
    let silent: Vec<TcpStream> = (0..100).map(|_| from("127.0.0.2", admin)).collect();
    assert_eq!(get(admin, "/livez").0, 200);
    drop(silent);
}

/// What forbids new privileges is each thread's own: one that was there before would be left out.
#[test]
fn no_thread_of_it_gains_privileges() {
    let agent = Running::start(&[]);
    drop(agent.line("answering pods"));
    let threads = std::fs::read_dir(format!("/proc/{}/task", agent.child.id())).unwrap();
    // One may end at any moment.
    let threads: Vec<String> = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok())
        .collect();
    assert!(threads.len() > 1, "{threads:?}");
    for status in threads {
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }
}

#[test]
fn the_limit_of_open_files_is_raised_or_kept_to() {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    assert!(hard > 300, "this test needs some files");
    let agent = Running::after("ulimit -Sn 300", &["--workers=1"]);
    let (_, _, metrics) = get(agent.admin(), "/metrics");
    let raised = format!("process_max_fds {hard}");
    assert!(hard == u64::MAX || metrics.contains(&raised), "{metrics}");

    let agent = Running::after("ulimit -n 300", &["--workers=1"]);
    let warning = "the limit of open files allows fewer connections than asked for";
    let line = agent.line(warning);
    assert_eq!(line["open_files_max"], 300);
    assert_eq!(line["connections_max"], 4096);
    assert_eq!(line["allowed"], 156);
}
