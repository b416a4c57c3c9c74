//! Secrets are gone from this process's memory once nobody is to have them, also where connections
//! were cut off with credentials on the way out or a token on the way in.
//!
//! Alone in its program, and looks through all of its memory. The secrets are therefore never written
//! down here: each is a rule by which its bytes are made.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

#[path = "data_plane/support.rs"]
#[expect(dead_code, reason = "shared with the other tests, which use all of it")]
mod support;

use std::fs::{File, read_to_string};
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::credentials::Unchecked;
use kiam_wire::{Credentials, UnixSeconds};
use support::{Agent, BOTH, LIST, config, connect, eventually, granted, id, ip};
use zeroize::Zeroizing;

const SECRET_BYTES: usize = 48;

/// One secret: which of them.
#[derive(Clone, Copy)]
struct Secret(usize);

impl Secret {
    /// Its `n`-th byte: a letter.
    fn byte(self, n: usize) -> u8 {
        b"QXZJKVWYqxzjkvwy"[(n * (3 + 2 * self.0) + n * n / 3 + self.0) % 16]
    }

    /// Written out; `before` and `after` go around it. Wiped when dropped, and never moved.
    fn within(self, before: &str, after: &str) -> Zeroizing<String> {
        let bytes = before.len() + SECRET_BYTES + after.len();
        let mut text = Zeroizing::new(String::with_capacity(bytes));
        text.push_str(before);
        for n in 0..SECRET_BYTES {
            text.push(char::from(self.byte(n)));
        }
        text.push_str(after);
        text
    }

    /// How often it lies in memory.
    fn copies(self) -> usize {
        let memory = File::open("/proc/self/mem").unwrap();
        let mut piece = vec![0; 1 << 20];
        let mut found = 0;
        for range in writable() {
            let mut place = range.0;
            while place < range.1 {
                let wanted = (range.1 - place).min(1 << 20);
                let bytes = memory
                    .read_at(&mut piece[..usize::try_from(wanted).unwrap()], place)
                    .unwrap_or(0);
                if bytes < SECRET_BYTES {
                    break;
                }
                found += self.count(&piece[..bytes]);
                let whole = u64::try_from(bytes).unwrap() == range.1 - place;
                let overlap = if whole { 0 } else { SECRET_BYTES - 1 };
                place += u64::try_from(bytes - overlap).unwrap();
                // Nor may what was looked at be found here.
                piece.fill(0);
            }
        }
        found
    }

    fn count(self, piece: &[u8]) -> usize {
        let (first, second) = (self.byte(0), self.byte(1));
        piece
            .windows(SECRET_BYTES)
            .filter(|window| {
                window[0] == first
                    && window[1] == second
                    && (2..SECRET_BYTES).all(|n| window[n] == self.byte(n))
            })
            .count()
    }
}

/// Where this process's writable memory lies.
fn writable() -> Vec<(u64, u64)> {
    let maps = read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.contains(" rw-p "))
        .map(|line| {
            let (range, _) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            (number(start), number(end))
        })
        .collect()
}

fn credentials(secret: Secret) -> Arc<Credentials> {
    let now = kiam_agent::clock::Now::read().wall.get();
    Arc::new(
        Credentials::try_new(Unchecked {
            id: id(1),
            role_name: "role-1".into(),
            role_arn: "arn:aws:iam::123456789012:role/role-1".into(),
            access_key_id: "ASIA0000000000000001".into(),
            secret_access_key: secret.within("", ""),
            session_token: secret.within("", &"t".repeat(900)),
            issued_at: UnixSeconds::new(now - 60),
            expires_at: UnixSeconds::new(now + 3600),
        })
        .unwrap(),
    )
}

fn limited(agent: &Agent, limit: &str) -> Option<f64> {
    agent.metric(&format!(r#"kiam_agent_limited_total{{limit="{limit}"}}"#))
}

/// Asks for more than all buffers on the way hold, and reads nothing of it.
fn never_read(agent: &Agent) {
    let mut never = connect(ip(1), agent.door());
    never
        .set_write_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let requests = format!("GET {LIST}role-1 HTTP/1.1\r\n\r\n").repeat(100);
    eventually("the never-reader is cut off", || {
        let _full = never.write_all(requests.as_bytes());
        limited(agent, "write_timeout") == Some(1.0)
    });
}

/// Two requests with a secret for a token: one is whole and makes the receive buffer grow twice, of
/// the other the end never comes.
fn send_tokens(agent: &Agent, secret: Secret) -> [TcpStream; 2] {
    let long = format!("\r\nA: {}\r\n\r\n", "a".repeat(3000));
    let head = format!("GET {LIST} HTTP/1.1\r\nX-aws-ec2-metadata-token: ");
    [(long, true), ("\r\n".into(), false)].map(|(after, whole)| {
        let mut stream = connect(ip(1), agent.door());
        let request = secret.within(&head, &after);
        // In two pieces, so that the first lies in the buffer that is too small.
        let (first, second) = request.split_at(head.len() + SECRET_BYTES);
        stream.write_all(first.as_bytes()).unwrap();
        std::thread::park_timeout(Duration::from_millis(50));
        stream.write_all(second.as_bytes()).unwrap();
        if whole {
            assert_eq!(
                support::read_answer(&mut stream, false).unwrap().status,
                401
            );
        }
        stream
    })
}

#[test]
fn nothing_is_left_of_what_nobody_is_to_have() {
    for (n, driver) in BOTH.into_iter().enumerate() {
        let (credential, token) = (Secret(2 * n), Secret(2 * n + 1));
        let mut config = config(driver);
        config.limits.read_timeout = Duration::from_millis(600);
        config.limits.write_timeout = Duration::from_millis(300);
        config.limits.peer_burst = 1_000_000;
        config.audit_log = false;
        let mut agent = Agent::start(config);
        agent.full(vec![], None);
        agent.delta(vec![granted(1)], vec![credentials(credential)]);
        assert!(credential.copies() > 0, "it can be found");

        never_read(&agent);
        let streams = send_tokens(&agent, token);
        assert!(token.copies() > 0, "it can be found");
        eventually("the slow sender is cut off", || {
            limited(&agent, "read_timeout") == Some(1.0)
        });
        drop(streams);
        agent.full(vec![], None);
        eventually("every connection is closed", || {
            agent.metric("kiam_agent_connections_open") == Some(0.0)
        });
        eventually("no worker reads an old snapshot", || {
            agent.publisher.reap() == 0
        });
        assert_eq!(token.copies(), 0, "tokens, with {driver:?}");
        assert_eq!(credential.copies(), 0, "credentials, with {driver:?}");
    }
}
