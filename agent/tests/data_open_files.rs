//! At the limit of open files nobody who is in is thrown out, and whoever comes later gets in when
//! there is room again.
//!
//! Alone in its program, because the limit is the process's.

#[path = "data_plane/support.rs"]
#[expect(dead_code, reason = "shared with the other tests, which use all of it")]
mod support;

use std::io::Write as _;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Agent, BOTH, LIST, config, connect, eventually, granted, ip, read_answer};

#[test]
fn the_limit_of_open_files_is_survived() {
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let without_an_agent = open_files();
    for driver in BOTH {
        // The sockets of an agent on io_uring are closed a moment after it has ended.
        eventually("nothing is left of the one before", || {
            open_files() <= without_an_agent
        });
        let agent = Agent::with(config(driver), vec![granted(1)]);
        let usual = getrlimit(Resource::Nofile);
        let request = format!("GET {LIST} HTTP/1.1\r\n\r\n");
        let mut inside = connect(ip(1), agent.door());
        inside.write_all(request.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut inside, false).unwrap().status, 200);
        // Room for the clients' own sockets, made first, and not one more for the agent's side.
        let mut outside: Vec<_> = (0..4)
            .map(|_| {
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap()
            })
            .collect();
        let open = open_files();
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(u64::try_from(open).unwrap() - 1),
                ..usual
            },
        )
        .unwrap();
        for socket in &outside {
            socket.connect(&agent.door().into()).unwrap();
        }
        eventually("accepting fails", || {
            agent.metric("kiam_agent_accept_errors_total") > Some(0.0)
        });
        inside.write_all(request.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut inside, false).unwrap().status, 200);
        setrlimit(Resource::Nofile, usual).unwrap();
        let mut waited = std::net::TcpStream::from(outside.pop().unwrap());
        waited.set_read_timeout(Some(support::PATIENCE)).unwrap();
        // Loopback without an address of a pod: unknown, so that it is parked and answered 503.
        waited.write_all(request.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut waited, false).unwrap().status, 503);
    }
}
