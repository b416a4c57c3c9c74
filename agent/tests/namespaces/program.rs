//! The real program, what it is left by an agent before it, and what its admin port says.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiam_agent::clock::since_boot;
use kiam_agent::handover::directory::Directory;
use kiam_agent::handover::{boot_id, snapshot, watched};
use kiam_wire::credentials::Unchecked;
use kiam_wire::{
    CredentialId, Credentials, Full, Pod as WirePod, PodState, PodUid, Revision, UnixSeconds,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::world::{HOST, PORT, eventually, sh};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_kiam-agent");
pub(crate) const HANDOVER: &str = "/run/kiam";
/// There, and no certificate.
const FILE: &str = env!("CARGO_MANIFEST_PATH");
const ADMIN: &str = "127.0.0.1:9610";

/// As the init container does.
pub(crate) fn install() {
    sh(&format!(
        "{PROGRAM} intercept install --intercept=nftables --port={PORT} --host={HOST} \
         --host-interface=cali+"
    ));
}

/// A real agent, and what it says.
pub(crate) struct Running(Child, tempfile::NamedTempFile);

impl Running {
    pub(crate) fn start() -> Self {
        Self::with("--driver=epoll", HOST)
    }

    pub(crate) fn with(driver: &str, host: &str) -> Self {
        let mut command = Command::new(PROGRAM);
        command
            .args(["--node-name=node-a", "--ca", FILE, "--token-file", FILE])
            .args(["--server-address=127.0.0.1:9", "--shutdown-grace=2s"])
            .args([
                "--park-timeout=100ms",
                "--requests-per-second-per-peer=2000",
            ])
            .arg(driver)
            .arg(format!("--port={PORT}"))
            .args([
                "--intercept=nftables",
                "--host",
                host,
                "--host-interface=cali+",
            ])
            .args(["--handover-dir", HANDOVER, "--admin-listen-addr", ADMIN]);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let child = command
            .stdin(Stdio::null())
            .stderr(log.reopen().unwrap())
            .spawn()
            .unwrap();
        Self(child, log)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn has_said(&self, words: &str) -> bool {
        std::fs::read_to_string(self.1.path())
            .unwrap()
            .contains(words)
    }

    pub(crate) fn has_been_succeeded(&self) -> bool {
        self.has_said("another agent has taken over")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    pub(crate) fn has_ended_well(&mut self) -> bool {
        let status = self.0.try_wait().unwrap();
        status.is_some_and(|status| {
            assert!(status.success(), "{status}");
            true
        })
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
        if std::thread::panicking() {
            println!("{}", std::fs::read_to_string(self.1.path()).unwrap());
        }
    }
}

/// Status and body of what an admin port says.
pub(crate) fn admin(port: u16, path: &str) -> io::Result<(u16, String)> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::InvalidData)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}

/// Waits until `/readyz`, the server's view of interception and the metric agree on it.
#[track_caller]
pub(crate) fn until_verified(port: u16, verified: bool) {
    let (status, value) = if verified { (200, 1) } else { (503, 0) };
    let line = format!("kiam_agent_interception_verified {value}");
    eventually(&format!("verified is {verified}"), || {
        let ready = admin(port, "/readyz");
        let metrics = admin(port, "/metrics");
        ready.is_ok_and(|(got, body)| {
            got == status && body.contains("interception is not verified") != verified
        }) && metrics.is_ok_and(|(_, body)| body.lines().any(|got| got == line))
    });
}

pub(crate) fn leave_snapshot(pods: &[(u8, &str)]) {
    sh(&format!("mkdir -p {HANDOVER}"));
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
    watched::renew(&directory, since_boot()).unwrap();
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
