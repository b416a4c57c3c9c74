//! One answer: parsed, routed, looked up, chosen and copied, without a socket.

use std::hint::black_box;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kiam_agent::clock::{Now, monotonic};
use kiam_agent::data::DriverChoice;
use kiam_agent::data::dry::{Dry, DryRun};
use kiam_agent::data::token::TOKEN_BYTES;
use kiam_agent::snapshot::Snapshot;
use kiam_agent::snapshot::store::Doors;
use kiam_agent::tally::Tallies;
use ring::hmac;

use crate::{PEER, node, store};

/// What may be asked for.
pub(crate) const KINDS: [&str; 5] = ["token", "list", "credentials", "credentials-v2", "encoded"];
const LIST: &str = "/latest/meta-data/iam/security-credentials/";
/// Bytes that a session token's MAC is computed over.
const MAC_MESSAGE_BYTES: usize = 41;
/// Bytes of a session token before and after it is encoded.
const RAW_TOKEN_BYTES: usize = 41;

pub(crate) struct Bench {
    run: DryRun,
    snapshot: Snapshot,
    out: Vec<u8>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let now = Now::read();
        let tallies = Tallies::new(1);
        Self {
            run: DryRun::new(&node::config(DriverChoice::Auto), &tallies, now).unwrap(),
            snapshot: store(250, Doors::Metadata, now).snapshot(now),
            out: Vec::with_capacity(8192),
        }
    }

    pub(crate) fn answer(&mut self, request: &[u8]) -> &[u8] {
        self.out.clear();
        let dry = self
            .run
            .metadata(black_box(request), PEER, &self.snapshot, &mut self.out);
        assert!(matches!(dry, Dry::Answered { status: 200, .. }), "{dry:?}");
        black_box(&self.out)
    }

    /// As the AWS SDK for Rust sends it.
    pub(crate) fn request(&mut self, kind: &str) -> Vec<u8> {
        const PUT: &str = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\
                           User-Agent: aws-sdk-rust/1.3 os/linux lang/rust/1.95.0\r\n\
                           X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\
                           Accept: */*\r\nContent-Length: 0\r\n\r\n";
        let answer = String::from_utf8(self.answer(PUT.as_bytes()).to_vec()).unwrap();
        let token = answer.rsplit("\r\n").next().unwrap();
        let get = |path: &str, header: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{header}\
                 User-Agent: aws-sdk-rust/1.3 os/linux lang/rust/1.95.0\r\n\
                 Accept: */*\r\nAccept-Encoding: identity\r\n\r\n"
            )
        };
        let session = format!("X-aws-ec2-metadata-token: {token}\r\n");
        match kind {
            "token" => PUT.to_owned(),
            "list" => get(LIST, ""),
            "credentials" => get(&format!("{LIST}role-0"), ""),
            "credentials-v2" => get(&format!("{LIST}role-0"), &session),
            "encoded" => get(&format!("{LIST}/%72ole-0"), ""),
            other => panic!("no kind {other}"),
        }
        .into_bytes()
    }
}

/// Does something `times` times, and nothing else that depends on `times`.
pub(crate) fn count(what: &str, kind: &str, times: u32) {
    let mut bench = Bench::new();
    let request = bench.request(kind);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
    let message = [0_u8; MAC_MESSAGE_BYTES];
    let tag = hmac::sign(&key, &message);
    let raw = [7_u8; RAW_TOKEN_BYTES];
    let mut text = [b'A'; TOKEN_BYTES];
    let mut once: Box<dyn FnMut()> = match what {
        "answer" => Box::new(|| {
            bench.answer(&request);
        }),
        "httparse" => Box::new(|| httparse_alone(&request)),
        "ring" => match kind {
            "token" => Box::new(|| {
                black_box(hmac::sign(&key, black_box(&message)));
            }),
            "credentials-v2" => Box::new(|| {
                black_box(hmac::verify(
                    &key,
                    black_box(&message),
                    black_box(tag.as_ref()),
                ))
                .unwrap();
            }),
            _ => Box::new(|| ()),
        },
        "base64" => match kind {
            "token" => Box::new(|| {
                black_box(URL_SAFE_NO_PAD.encode_slice(black_box(&raw), &mut text)).unwrap();
            }),
            "credentials-v2" => Box::new(|| {
                let mut room = [0; RAW_TOKEN_BYTES + 3];
                black_box(URL_SAFE_NO_PAD.decode_slice(black_box(&text), &mut room)).unwrap();
            }),
            _ => Box::new(|| ()),
        },
        other => panic!("no such thing as {other}"),
    };
    for _ in 0..times {
        once();
    }
}

/// What the library takes of a request.
fn httparse_alone(request: &[u8]) {
    let mut headers = [const { std::mem::MaybeUninit::uninit() }; 48];
    let mut head = httparse::Request::new(&mut []);
    let parsed = head.parse_with_uninit_headers(black_box(request), &mut headers);
    assert!(parsed.is_ok_and(|status| status.is_complete()));
    black_box(&head);
}

pub(crate) fn report() {
    let mut bench = Bench::new();
    println!("parse, route, look up, choose and copy one answer");
    for kind in KINDS {
        let request = bench.request(kind);
        let rounds = (0..20).map(|_| {
            let began = monotonic();
            for _ in 0..10_000 {
                bench.answer(&request);
            }
            began.elapsed() / 10_000
        });
        println!("  {kind:16} {:?}", rounds.min().unwrap());
    }
}
