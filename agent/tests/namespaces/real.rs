//! The real program in the place of the stand-in, with no server anywhere: it lives on what an agent
//! before it left.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiam_agent::handover::directory::Directory;
use kiam_agent::handover::{boot_id, snapshot};
use kiam_wire::credentials::Unchecked;
use kiam_wire::{
    CredentialId, Credentials, Full, Pod as WirePod, PodState, PodUid, Revision, UnixSeconds,
};

use crate::world::{Got, HOST, PORT, Pod, V4, build, eventually, inside};

const HANDOVER: &str = "/run/kiam";
/// There, and no certificate.
const FILE: &str = env!("CARGO_MANIFEST_PATH");

pub(crate) fn survives_and_never_mixes_up_pods() {
    let metadata = build();
    let one = Pod::create(1);
    let two = Pod::create(2);
    install();
    assert_eq!(
        one.call(V4, 80),
        Got::Refused,
        "the init container has run, no agent yet"
    );
    leave_snapshot(&[(1, "secret-of-one"), (2, "secret-of-two")]);

    let mut agent = Running::start();
    eventually("the agent answers", || one.call(V4, 80) == Got::Agent);
    let token = dialogue(&one, None, "secret-of-one").unwrap();
    dialogue(&two, None, "secret-of-two").unwrap();
    // Another pod's token opens nothing.
    assert!(dialogue(&two, Some(&token), "secret-of-two").is_err());

    // It dies; nobody reaches anything; the next one knows tokens and credentials at once.
    agent.kill();
    assert_eq!(one.call(V4, 80), Got::Refused);
    let agent = Running::start();
    eventually("the next agent answers", || one.call(V4, 80) == Got::Agent);
    dialogue(&one, Some(&token), "secret-of-one").unwrap();

    // Pod one goes, and another pod gets its address before anybody tells the agent.
    crate::sh("ip link del cali1");
    let heir = Pod::with_interface(1, 9);
    assert_eq!(heir.ip, one.ip);
    for _ in 0..20 {
        let got = dialogue(&heir, None, "secret-of-one");
        assert!(got.is_err(), "the former pod's credentials were handed out");
    }
    dialogue(&two, None, "secret-of-two").unwrap();

    // So too when the address changes hands while no agent runs.
    drop(agent);
    crate::sh("ip link del cali2");
    let heir = Pod::with_interface(2, 10);
    // It asks all the time, so that the agent's first moments are among them.
    let impatient = Impatient::start(&heir, "secret-of-two");
    let agent = Running::start();
    eventually("the third agent answers", || {
        heir.call(V4, 80) == Got::Agent
    });
    impatient.was_never_answered();

    // Nor when it changed hands in sight of an agent that ended before the server said anything.
    drop(agent);
    let impatient = Impatient::start(&heir, "secret-of-two");
    let _agent = Running::start();
    eventually("the fourth agent answers", || {
        heir.call(V4, 80) == Got::Agent
    });
    impatient.was_never_answered();
    assert_eq!(metadata.seen_from_pods(), 0);
}

/// As the init container does.
fn install() {
    crate::sh(&format!(
        "{} intercept install --intercept=nftables --port={PORT} --host={HOST} --host-interface=cali+",
        env!("CARGO_BIN_EXE_kiam-agent")
    ));
}

/// Agents replace each other while pods ask, some on new connections and some on old ones. Nobody
/// may be refused, reset or left without an answer.
pub(crate) fn upgrades_fail_nobody() {
    const UPGRADES: usize = 6;
    let metadata = build();
    install();
    let pods: [Pod; 4] = [1, 2, 3, 4].map(Pod::create);
    leave_snapshot(&[(1, "s"), (2, "s"), (3, "s"), (4, "s")]);
    let mut agent = Running::with("--driver=epoll");
    eventually("the agent answers", || pods[0].call(V4, 80) == Got::Agent);

    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::default());
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
    for upgrade in 0..UPGRADES {
        let before = calls.load(Ordering::Relaxed);
        eventually("calls are served", || {
            calls.load(Ordering::Relaxed) > before + 200
        });
        let driver = ["--driver=auto", "--driver=epoll"][upgrade % 2];
        let mut old = std::mem::replace(&mut agent, Running::with(driver));
        eventually("the old agent ends by itself", || old.has_ended_well());
    }
    let before = calls.load(Ordering::Relaxed);
    eventually("calls are served", || {
        calls.load(Ordering::Relaxed) > before + 200
    });
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    println!(
        "{} requests over {UPGRADES} upgrades, none failed",
        calls.load(Ordering::Relaxed)
    );
    assert_eq!(metadata.seen_from_pods(), 0);
}

/// A client that asks about 125 times a second.
struct Steady {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
}

impl Steady {
    fn ask_for_ever(&self, keeps_alive: bool) {
        let address = SocketAddr::new(V4.parse::<IpAddr>().unwrap(), 80);
        while !self.stop.load(Ordering::Relaxed) {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            let mut answers = BufReader::new(&stream);
            while !self.stop.load(Ordering::Relaxed) {
                let closing = Self::exchange(&stream, &mut answers, keeps_alive);
                self.calls.fetch_add(1, Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_millis(7));
                if closing {
                    break;
                }
            }
        }
    }

    /// One request and its answer; whether it was the connection's last.
    fn exchange(
        mut stream: &TcpStream,
        answers: &mut BufReader<&TcpStream>,
        keeps_alive: bool,
    ) -> bool {
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
}

/// A pod that asks for `secret` as fast as it can.
struct Impatient {
    stop: Arc<AtomicBool>,
    askers: Vec<std::thread::JoinHandle<bool>>,
}

impl Impatient {
    fn start(pod: &Pod, secret: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let askers = (0..4)
            .map(|_| {
                let (pod, stop) = (pod.clone(), Arc::clone(&stop));
                std::thread::spawn(move || {
                    inside(&pod.name, move || {
                        let mut got = false;
                        while !got && !stop.load(Ordering::Relaxed) {
                            got = converse(None, secret).is_ok();
                        }
                        got
                    })
                })
            })
            .collect();
        Self { stop, askers }
    }

    fn was_never_answered(self) {
        self.stop.store(true, Ordering::Relaxed);
        for asker in self.askers {
            let got = asker.join().unwrap();
            assert!(!got, "the former pod's credentials were handed out");
        }
    }
}

struct Running(Child);

impl Running {
    fn start() -> Self {
        Self::with("--driver=epoll")
    }

    fn with(driver: &str) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_kiam-agent"))
            .args(["--node-name=node-a", "--ca", FILE, "--token-file", FILE])
            .args([
                "--server-address=127.0.0.1:9",
                "--shutdown-grace=2s",
                "--park-timeout=100ms",
            ])
            .arg(driver)
            .arg(format!("--port={PORT}"))
            .args([
                "--intercept=nftables",
                "--host",
                HOST,
                "--host-interface=cali+",
            ])
            .args([
                "--handover-dir",
                HANDOVER,
                "--admin-listen-addr=127.0.0.1:9610",
            ])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn has_ended_well(&mut self) -> bool {
        let status = self.0.try_wait().unwrap();
        status.is_some_and(|status| {
            assert!(status.success(), "{status}");
            true
        })
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What an SDK says: a token, the role, its credentials. `Err` when any of it fails.
fn dialogue(pod: &Pod, token: Option<&str>, secret: &str) -> io::Result<String> {
    let (token, secret) = (token.map(str::to_owned), secret.to_owned());
    inside(&pod.name, move || converse(token, &secret))
}

fn converse(token: Option<String>, secret: &str) -> io::Result<String> {
    let token = match token {
        Some(token) => token,
        None => ask(
            "PUT",
            "/latest/api/token",
            "X-aws-ec2-metadata-token-ttl-seconds: 21600",
        )?,
    };
    let with = format!("X-aws-ec2-metadata-token: {token}");
    let path = "/latest/meta-data/iam/security-credentials/";
    let role = ask("GET", path, &with)?;
    let document = ask("GET", &format!("{path}{role}"), &with)?;
    if !document.contains(secret) {
        return Err(io::Error::other(document));
    }
    Ok(token)
}

/// The body of a 200.
fn ask(method: &str, path: &str, header: &str) -> io::Result<String> {
    let address = SocketAddr::new(V4.parse::<IpAddr>().unwrap(), 80);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {V4}\r\n{header}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(answer)),
    }
}

fn leave_snapshot(pods: &[(u8, &str)]) {
    crate::sh(&format!("mkdir -m 0700 {HANDOVER}"));
    #[expect(
        clippy::disallowed_methods,
        reason = "the program reads the real clock as well"
    )]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = UnixSeconds::new(i64::try_from(now.as_secs()).unwrap());
    let full = Full {
        revision: Revision {
            epoch: 1,
            number: 1,
        },
        pods: pods.iter().map(|(number, _)| pod(*number)).collect(),
        credentials: pods
            .iter()
            .map(|(number, secret)| credentials(*number, secret, now))
            .collect(),
        keys: None,
    };
    let here = snapshot::Here {
        node_name: "node-a",
        boot_id: &boot_id().unwrap(),
        now,
    };
    let directory = Directory::open(Path::new(HANDOVER)).unwrap();
    snapshot::write(&directory, full, &snapshot::Addresses::default(), here).unwrap();
}

fn pod(number: u8) -> WirePod {
    WirePod {
        uid: PodUid::try_new(&format!("00000000-0000-0000-0000-0000000000{number:02}")).unwrap(),
        namespace: "default".into(),
        name: format!("pod-{number}"),
        service_account: "default".into(),
        ips: vec![IpAddr::from([10, 2, 0, number])],
        host_network: false,
        imds_v2_required: true,
        state: PodState::Granted(CredentialId::new([number; 32])),
    }
}

fn credentials(number: u8, secret: &str, now: UnixSeconds) -> Arc<Credentials> {
    let parts = Unchecked {
        id: CredentialId::new([number; 32]),
        role_name: format!("role-{number}"),
        role_arn: format!("arn:aws:iam::123456789012:role/role-{number}"),
        access_key_id: "ASIAEXAMPLE000000000".into(),
        secret_access_key: secret.to_owned().into(),
        session_token: "a-session-token".to_owned().into(),
        issued_at: now,
        expires_at: now.after(Duration::from_hours(1)),
    };
    Arc::new(Credentials::try_new(parts).unwrap())
}
