//! How far a token travels.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::program::{PROGRAM, Running};
use crate::world::{HOST, build, eventually, inside, sh};

const PORT: u16 = 8282;
/// There, and no certificate.
const FILE: &str = env!("CARGO_MANIFEST_PATH");
/// Longer than the kernel takes to send a lost packet again, a few times.
const PATIENCE: Duration = Duration::from_secs(3);

/// The cloud is one hop away from the node; `far` is another behind it.
pub(crate) fn a_token_does_not_travel_further() {
    let _metadata = build();
    sh("ip netns add far
        ip -n cloud link add far type veth peer name eth0 netns far
        ip -n cloud addr add 10.3.0.1/24 dev far; ip -n cloud link set far up
        ip -n far addr add 10.3.0.2/24 dev eth0; ip -n far link set eth0 up
        ip -n far route add default via 10.3.0.1
        ip route add 10.3.0.0/24 via 10.1.0.1
        nsenter --net=/run/netns/cloud sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'");
    for driver in ["--driver=epoll", "--driver=auto"] {
        let mut command = Command::new(PROGRAM);
        command
            .args(["--node-name=node-a", "--ca", FILE, "--token-file", FILE])
            .args(["--server-address=127.0.0.1:9", "--shutdown-grace=0s"])
            .args(["--intercept=none", "--token-hop-limit=1", driver])
            .args([format!("--port={PORT}"), format!("--listen-addr={HOST}")]);
        let mut agent = Running::spawn(command);
        let ping = || ask("far", "GET /ping HTTP/1.1\r\n").is_ok_and(|a| a.ends_with("pong"));
        eventually("the agent is reached from afar", ping);
        let put = "PUT /latest/api/token HTTP/1.1\r\nx-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
        let near = ask("cloud", put).unwrap();
        assert!(near.starts_with("HTTP/1.1 200"), "{near}");
        let far = ask("far", put);
        assert!(far.as_ref().map_or(true, String::is_empty), "{far:?}");
        agent.kill();
    }
}

/// What the namespace `from` is answered.
fn ask(from: &str, request: &'static str) -> io::Result<String> {
    let address: SocketAddr = format!("{HOST}:{PORT}").parse().unwrap();
    inside(from, move || {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{request}Connection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}
