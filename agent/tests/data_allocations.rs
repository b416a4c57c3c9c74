//! A served request allocates nothing, on any thread of the process.
//!
//! Alone in its program, because the allocator that counts belongs to the whole of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "data_plane/support.rs"]
#[expect(dead_code, reason = "shared with the other tests, which use all of it")]
mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use kiam_agent::data::DriverChoice;
use support::{Agent, BOTH, LIST, config, connect, granted, ip, token};

#[global_allocator]
static COUNTING: dhat::Alloc = dhat::Alloc;

/// Sends `request` and receives one answer of a known length, without allocating here either.
fn exchange(stream: &mut TcpStream, request: &[u8], answer: &mut [u8]) {
    stream.write_all(request).unwrap();
    stream.read_exact(answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
}

fn length(stream: &mut TcpStream, request: &[u8]) -> usize {
    stream.write_all(request).unwrap();
    let answer = support::read_answer(stream, false).unwrap();
    answer.head.len() + answer.body.len()
}

fn allocations(driver: DriverChoice) -> u64 {
    let mut limited = config(driver);
    limited.limits.peer_burst = 1_000_000;
    limited.audit_log = false;
    let agent = Agent::with(limited, vec![granted(1)]);
    let token = token(ip(1), agent.door(), "60");
    let requests = [
        format!("GET {LIST} HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"),
        format!("GET {LIST}role-1 HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"),
        format!("GET {LIST}/team%2Frole-1 HTTP/1.1\r\n\r\n"),
        "GET /latest/meta-data/iam/info HTTP/1.1\r\n\r\n".to_owned(),
        "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
            .to_owned(),
    ];
    let mut stream = connect(ip(1), agent.door());
    let mut answers: Vec<Vec<u8>> = requests
        .iter()
        .map(|request| vec![0; length(&mut stream, request.as_bytes())])
        .collect();
    // What is kept for later is made on the way there.
    for _ in 0..50 {
        for (request, answer) in requests.iter().zip(&mut answers) {
            exchange(&mut stream, request.as_bytes(), answer);
        }
    }
    let before = dhat::HeapStats::get().total_blocks;
    for _ in 0..200 {
        for (request, answer) in requests.iter().zip(&mut answers) {
            exchange(&mut stream, request.as_bytes(), answer);
        }
    }
    dhat::HeapStats::get().total_blocks - before
}

#[test]
fn a_served_request_allocates_nothing() {
    let _profiler = dhat::Profiler::builder().testing().build();
    // It does count.
    let before = dhat::HeapStats::get().total_blocks;
    drop(std::hint::black_box(vec![1_u8; 100]));
    assert_eq!(dhat::HeapStats::get().total_blocks - before, 1);
    for driver in BOTH {
        assert_eq!(allocations(driver), 0, "with {driver:?}");
    }
}
