//! The real program in the place of the stand-in, with no server anywhere: it lives on what an agent
//! before it left.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::program::{Running, admin, install, leave_snapshot, until_verified};
use crate::world::{Got, Pod, V4, build, eventually, inside};

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

/// No pod has asked anything yet: the agent's own probe says whether one would be answered.
pub(crate) fn a_probe_decides_whether_it_is_ready() {
    let metadata = build();
    leave_snapshot(&[(1, "s")]);
    let agent = Running::start();
    until_verified(9610, true);
    assert!(agent.has_said("the agent answers"));
    drop(agent);

    // The address of another machine: the rules are there, and lead nowhere.
    let agent = Running::with("--driver=epoll", "10.1.0.1");
    until_verified(9610, false);
    eventually("the agent says why", || {
        agent.has_said("a probe was refused although the agent listens")
    });
    let (status, body) = admin(9610, "/readyz").unwrap();
    assert_eq!(status, 503, "{body}");
    drop(agent);

    let _agent = Running::start();
    until_verified(9610, true);
    assert_eq!(metadata.seen_from_pods(), 0);
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
