//! Descriptors, disks and memory run out: bounded use, a clear line in the log, no crash loop.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kiam_loadtest::rig::Program::{Agent, Server};
use kiam_loadtest::rig::{Options, Rig, within};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use socket2::{Domain, Socket, Type};

use crate::{ENOUGH, MOMENT, NO_AGENT, RECONNECTS, ip, nobody_noticed, rig, saw_only};

fn limit_files(pid: u32, most: Option<u64>) -> Rlimit {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    let limit = Rlimit {
        current: most,
        maximum: None,
    };
    let before = prlimit(pid, Resource::Nofile, limit);
    before.unwrap_or_else(|_kept| {
        // Without the right to raise the hard limit it stays where it is.
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        prlimit(pid, Resource::Nofile, Rlimit { maximum, ..limit }).unwrap()
    })
}

/// What the program needs open at most when nobody asks anything of it, and a few more.
fn open_files(pid: u32) -> Option<u64> {
    // It hides from its user's other processes; root is told.
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    u64::try_from(files.count()).ok()
}

fn connect(to: SocketAddr, from: IpAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    socket.bind(&SocketAddr::new(from, 0).into()).ok()?;
    socket
        .connect_timeout(&to.into(), Duration::from_secs(5))
        .ok()?;
    Some(socket.into())
}

#[test]
fn the_agent_runs_out_of_descriptors() {
    let rig = rig();
    let (pod, role) = rig.granted().remove(0);
    let pid = rig.pid(Agent);
    let Some(open) = open_files(pid) else {
        eprintln!("skipped: what it has open is not told here");
        return;
    };
    let limit = open + 12;
    let witness = rig.witness();
    witness.sees(ENOUGH).unwrap();
    limit_files(pid, Some(limit));
    let held: Vec<_> = (1..60)
        .filter_map(|last| connect(rig.agent(), Ipv4Addr::new(127, 98, 0, last).into()))
        .collect();
    within("it is said", || {
        rig.log(Agent)
            .contains("cannot accept connections")
            .then_some(())
    })
    .unwrap();
    // Those that came between the count and the limit stay.
    assert!(open_files(pid).unwrap() <= limit + 8);
    let heals = || {
        drop(held);
        rig.served(pod, &role)
    };
    witness.heals(heals).unwrap();
    limit_files(pid, Some(4_096));
    assert_eq!(rig.pid(Agent), pid);
    let log = rig.log(Agent);
    let lines = log.matches("cannot accept connections").count();
    assert!(
        lines <= 20,
        "{lines} lines about it: it is told now and then, not each time"
    );
    rig.start_pod("after", "writer", ip(1)).unwrap();
    rig.served(ip(1), "writer").unwrap();
    nobody_noticed("agent-out-of-descriptors", MOMENT, witness);
}

#[test]
fn the_server_runs_out_of_descriptors() {
    let rig = rig();
    let pid = rig.pid(Server);
    let Some(open) = open_files(pid) else {
        eprintln!("skipped: what it has open is not told here");
        return;
    };
    let witness = rig.witness();
    limit_files(pid, Some(open));
    // Its streams and watches are open; new connections of any kind are not to be had.
    let held: Vec<_> = (1..40)
        .filter_map(|last| connect(rig.server(), Ipv4Addr::new(127, 98, 1, last).into()))
        .collect();
    rig.start_pod("on-the-stream", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
    witness.sees(ENOUGH).unwrap();
    let heals = || {
        drop(held);
        limit_files(pid, Some(4_096));
        rig.start_pod("fresh", "fresh", ip(2))?;
        rig.served(ip(2), "fresh")
    };
    witness.heals(heals).unwrap();
    rig.upgrade_agent().unwrap();
    rig.start_pod("reconnected", "writer", ip(3)).unwrap();
    rig.served(ip(3), "writer").unwrap();
    assert_eq!(rig.pid(Server), pid);
    nobody_noticed("server-out-of-descriptors", RECONNECTS, witness);
}

/// A mounted file system of its own size.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// `None` where this is not allowed.
    fn new(path: &'a Path, size: &str) -> Option<Self> {
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &options, "kiam-test"])
            .arg(path);
        let mounted = mount.output().is_ok_and(|mounted| mounted.status.success());
        mounted.then_some(Self(path))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0).output());
    }
}

#[test]
fn the_handover_directory_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mounted) = Mounted::new(dir.path(), "64k") else {
        eprintln!("skipped: a file system cannot be mounted here");
        return;
    };
    std::fs::write(dir.path().join("ballast"), vec![0; 60 * 1024]).unwrap();
    let rig = Rig::start(Options {
        program: Some(env!("CARGO_BIN_EXE_kiam-loadtest").into()),
        handover: Some(dir.path().to_owned()),
        ..Options::default()
    })
    .unwrap();
    within("it is said", || {
        rig.log(Agent)
            .contains("cannot be left for the next agent")
            .then_some(())
    })
    .unwrap();
    // The next agent has nothing, and asks.
    rig.kill(Agent).unwrap();
    rig.restart(Agent).unwrap();
    let (pod, role) = rig.granted().remove(0);
    rig.served(pod, &role).unwrap();
    let witness = rig.witness();
    witness.sees(ENOUGH).unwrap();
    let heals = || {
        // Room again, and it is used.
        std::fs::remove_file(dir.path().join("ballast"))?;
        rig.start_pod("change", "writer", ip(1))?;
        rig.served(ip(1), "writer")?;
        within("it is left", || {
            std::fs::metadata(dir.path().join("snapshot")).ok()
        })
    };
    witness.heals(heals).unwrap();
    nobody_noticed("disk-full", MOMENT, witness);
    drop(rig);
    drop(mounted);
}

/// What memory pressure ends in: the kernel kills the agent. Then its next start is what counts, and
/// it must not depend on anyone.
#[test]
fn the_kernel_kills_the_agent_again_and_again() {
    let rig = rig();
    let (pod, role) = rig.granted().remove(0);
    let witness = rig.witness();
    for _ in 0..4 {
        rig.kill(Agent).unwrap();
        let heals = || {
            rig.exec_agent()?;
            rig.served(pod, &role)
        };
        witness.heals(heals).unwrap();
    }
    saw_only(&NO_AGENT, "agent-killed-again-and-again", MOMENT, witness);
}
