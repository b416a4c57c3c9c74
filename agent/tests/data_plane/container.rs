//! The container door: tokens signed here as the API server would.

use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kiam_agent::clock::Now;
use kiam_agent::data::DriverChoice;
use kiam_wire::keys::{KeyMaterial, VerificationKey, VerificationKeys};
use kiam_wire::{PodState, Refusal, Refused};
use ring::rand::SystemRandom;
use ring::rsa::KeyPair as RsaKeyPair;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_SHA256,
};
use serde_json::{Value, json};

use crate::support::{
    Agent, Answer, BOTH, ask, config, connect, eventually, granted, id, ip, pod, read_answer,
};

/// The API server's private side.
struct Signer {
    kid: &'static str,
    alg: &'static str,
    key: Key,
}

enum Key {
    Ec(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl Signer {
    fn ec(kid: &'static str, bits: u16) -> Self {
        let (algorithm, alg) = match bits {
            256 => (&ECDSA_P256_SHA256_FIXED_SIGNING, "ES256"),
            _ => (&ECDSA_P384_SHA384_FIXED_SIGNING, "ES384"),
        };
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        Self {
            kid,
            alg,
            key: Key::Ec(pair),
        }
    }

    fn rsa(kid: &'static str) -> Self {
        let pair = RsaKeyPair::from_pkcs8(include_bytes!("rsa-key-for-tests.der")).unwrap();
        Self {
            kid,
            alg: "RS256",
            key: Key::Rsa(pair),
        }
    }

    fn public(&self) -> VerificationKey {
        let material = match &self.key {
            Key::Ec(pair) if self.alg == "ES256" => {
                KeyMaterial::P256(pair.public_key().as_ref().to_vec())
            }
            Key::Ec(pair) => KeyMaterial::P384(pair.public_key().as_ref().to_vec()),
            Key::Rsa(pair) => {
                let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
                KeyMaterial::Rsa {
                    modulus: public.n,
                    exponent: public.e,
                }
            }
        };
        VerificationKey {
            id: self.kid.into(),
            material,
        }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let random = SystemRandom::new();
        let signature = match &self.key {
            Key::Ec(pair) => pair
                .sign(&random, message.as_bytes())
                .unwrap()
                .as_ref()
                .to_vec(),
            Key::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(
                    &RSA_PKCS1_SHA256,
                    &random,
                    message.as_bytes(),
                    &mut signature,
                )
                .unwrap();
                signature
            }
        };
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(
            &json!({ "alg": self.alg, "kid": self.kid, "typ": "JWT" }),
            claims,
        )
    }
}

const ISSUER: &str = "https://kubernetes.default.svc";

fn claims(n: u8) -> Value {
    let now = Now::read().wall.get();
    json!({
        "iss": ISSUER,
        "aud": ["kiam"],
        "exp": now + 600,
        "nbf": now - 5,
        "kubernetes.io": {
            "namespace": "default",
            "pod": { "name": format!("pod-{n}"), "uid": format!("uid-{n}") },
            "serviceaccount": { "name": "web", "uid": "x" },
        },
    })
}

fn keys(signers: &[&Signer]) -> VerificationKeys {
    VerificationKeys {
        issuer: ISSUER.into(),
        keys: signers.iter().map(|signer| signer.public()).collect(),
    }
}

fn request(authorization: &str) -> String {
    format!("GET /v1/credentials HTTP/1.1\r\nAuthorization: {authorization}\r\n\r\n")
}

/// Asks from an address that belongs to no pod: only the token counts.
fn present(agent: &Agent, token: &str) -> Answer {
    ask(ip(99), agent.container_door(), &request(token))
}

#[test]
fn a_pod_proves_itself_with_its_token() {
    for driver in BOTH {
        let signers = [Signer::ec("a", 256), Signer::ec("b", 384), Signer::rsa("c")];
        let mut agent = Agent::start(config(driver));
        let refused = Refused::new(Refusal::StsRefused, "no trust");
        let mut host = granted(4);
        host.host_network = true;
        host.ips.clear();
        agent.full(
            vec![
                granted(1),
                pod(2, PodState::NoRole),
                pod(3, PodState::Refused(refused)),
                host,
            ],
            Some(keys(&signers.iter().collect::<Vec<_>>())),
        );
        for signer in &signers {
            let token = signer.token(&claims(1));
            for authorization in [token.clone(), format!("Bearer {token}")] {
                // Twice: the second time from what is remembered.
                for _ in 0..2 {
                    let answer = present(&agent, &authorization);
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    assert_eq!(answer.header("content-type"), Some("application/json"));
                    let json: Value = serde_json::from_str(&answer.body).unwrap();
                    assert_eq!(json["SecretAccessKey"], "secret-1");
                    assert_eq!(json["AccountId"], "123456789012");
                    assert!(json.get("Code").is_none());
                }
            }
        }
        let with = |n| present(&agent, &signers[0].token(&claims(n)));
        assert_eq!(with(2).status, 404);
        assert_eq!(
            (with(3).status, with(3).body.contains("no trust")),
            (403, true)
        );
        assert!(with(4).body.contains("secret-4"), "hostNetwork pods too");
    }
}

#[test]
fn nobody_else_does() {
    for driver in BOTH {
        let signer = Signer::ec("a", 256);
        let rsa = Signer::rsa("r");
        let stranger = Signer::ec("a", 256);
        let mut agent = Agent::start(config(driver));
        agent.full(vec![granted(1)], Some(keys(&[&signer, &rsa])));
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut claims = claims(1);
            change(&mut claims);
            signer.token(&claims)
        };
        let good = signer.token(&claims(1));
        let now = Now::read().wall.get();
        let (message, signature) = good.rsplit_once('.').unwrap();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"a"}"#);
        let body = message.split_once('.').unwrap().1;
        let forged_body = URL_SAFE_NO_PAD.encode(claims(2).to_string());
        let bad = [
            ("forged by another key", stranger.token(&claims(1))),
            ("no signature", format!("{message}.")),
            ("algorithm none", format!("{none}.{body}.")),
            (
                "other claims",
                format!(
                    "{}.{forged_body}.{signature}",
                    message.split_once('.').unwrap().0
                ),
            ),
            ("cut off", good[..good.len() - 4].to_owned()),
            ("not a token", "x".into()),
            ("four parts", format!("{good}.x")),
            (
                "unknown key",
                signer.sign(&json!({"alg": "ES256", "kid": "z"}), &claims(1)),
            ),
            ("no key", signer.sign(&json!({"alg": "ES256"}), &claims(1))),
            (
                "another algorithm than the key's",
                signer.sign(&json!({"alg": "RS256", "kid": "a"}), &claims(1)),
            ),
            (
                "a key of another type",
                signer.sign(&json!({"alg": "ES256", "kid": "r"}), &claims(1)),
            ),
            (
                "critical extensions",
                signer.sign(
                    &json!({"alg": "ES256", "kid": "a", "crit": ["x"]}),
                    &claims(1),
                ),
            ),
            (
                "issuer",
                changed(&|claims| claims["iss"] = "https://other".into()),
            ),
            (
                "audience",
                changed(&|claims| claims["aud"] = json!(["sts.amazonaws.com"])),
            ),
            ("no audience", changed(&|claims| claims["aud"] = json!([]))),
            (
                "expired",
                changed(&|claims| claims["exp"] = json!(now - 60)),
            ),
            (
                "not yet",
                changed(&|claims| claims["nbf"] = json!(now + 600)),
            ),
            (
                "no pod",
                changed(&|claims| claims["kubernetes.io"]["pod"] = Value::Null),
            ),
            (
                "not Kubernetes",
                changed(&|claims| claims["kubernetes.io"] = Value::Null),
            ),
            (
                "another namespace",
                changed(&|claims| claims["kubernetes.io"]["namespace"] = "kube-system".into()),
            ),
            (
                "another account",
                changed(&|claims| {
                    claims["kubernetes.io"]["serviceaccount"]["name"] = "admin".into();
                }),
            ),
            ("too long", format!("{good}{}", "x".repeat(6 * 1024))),
        ];
        for (what, token) in bad {
            let answer = present(&agent, &token);
            assert_eq!(answer.status, 401, "{what}");
            let json: Value = serde_json::from_str(&answer.body).unwrap();
            assert!(
                json["Code"].is_string() && json["Message"].is_string(),
                "{what}"
            );
            assert!(!answer.body.contains("secret"), "{what}");
        }
        assert_eq!(present(&agent, &good).status, 200);
        let door = agent.container_door();
        assert_eq!(
            ask(ip(1), door, "GET /v1/credentials HTTP/1.1\r\n\r\n").status,
            401
        );
        assert_eq!(
            ask(
                ip(1),
                door,
                "GET /latest/meta-data/iam/info HTTP/1.1\r\n\r\n"
            )
            .status,
            404
        );
        let put = format!("PUT /v1/credentials HTTP/1.1\r\nAuthorization: {good}\r\n\r\n");
        assert_eq!(ask(ip(1), door, &put).status, 405);
    }
}

#[test]
fn keys_change_and_what_was_remembered_is_forgotten() {
    for driver in BOTH {
        let (old, new) = (Signer::ec("old", 256), Signer::ec("new", 256));
        let mut agent = Agent::start(config(driver));
        agent.full(vec![granted(1)], Some(keys(&[&old])));
        let (by_old, by_new) = (old.token(&claims(1)), new.token(&claims(1)));
        assert_eq!(present(&agent, &by_old).status, 200);
        assert_eq!(present(&agent, &by_new).status, 401);
        agent.full(vec![granted(1)], Some(keys(&[&new])));
        assert_eq!(present(&agent, &by_old).status, 401);
        assert_eq!(present(&agent, &by_new).status, 200);
        agent.full(vec![granted(1)], None);
        assert_eq!(present(&agent, &by_new).status, 401);
    }
}

#[test]
fn a_token_of_a_pod_that_is_not_known_yet_waits() {
    for driver in BOTH {
        let signer = Signer::ec("a", 256);
        let mut config = config(driver);
        config.limits.park_timeout = Duration::from_secs(6);
        let mut agent = Agent::start(config);
        let mut stream = connect(ip(99), agent.container_door());
        let token = signer.token(&claims(1));
        // Before any server has spoken there are no keys either.
        stream.write_all(request(&token).as_bytes()).unwrap();
        let parked = |agent: &Agent| agent.metric("kiam_agent_parked_requests") == Some(1.0);
        eventually("parked without keys", || parked(&agent));
        agent.full(vec![], Some(keys(&[&signer])));
        eventually("parked without a pod", || {
            agent.metric("kiam_agent_parked_total") == Some(2.0) && parked(&agent)
        });
        agent.full(
            vec![pod(1, PodState::Pending(id(1)))],
            Some(keys(&[&signer])),
        );
        agent.full(vec![granted(1)], Some(keys(&[&signer])));
        assert!(
            read_answer(&mut stream, false)
                .unwrap()
                .body
                .contains("secret-1")
        );
    }
}

#[test]
fn waiting_ends_in_503_with_a_reason() {
    let signer = Signer::ec("a", 256);
    let mut agent = Agent::start(config(DriverChoice::Auto));
    agent.full(vec![], Some(keys(&[&signer])));
    let answer = present(&agent, &signer.token(&claims(1)));
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(answer.body.contains("Unavailable"));
}
