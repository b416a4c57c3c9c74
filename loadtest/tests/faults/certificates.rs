//! Certificates, keys and authorities replaced.

use kiam_loadtest::rig::Program::{Agent, Server};

use crate::{ENOUGH, ip, nobody_noticed, rig};

#[test]
fn certificates_are_rotated() {
    let rig = rig();
    let witness = rig.witness();
    rig.rotate_certificates().unwrap();
    rig.start_pod("on-the-old-stream", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
    // Each side in turn meets the other's new certificate.
    rig.upgrade_agent().unwrap();
    rig.start_pod("with-a-new-agent", "writer", ip(2)).unwrap();
    rig.served(ip(2), "writer").unwrap();
    rig.rotate_certificates().unwrap();
    rig.stop(Server).unwrap();
    rig.restart(Server).unwrap();
    rig.start_pod("with-a-new-server", "batch", ip(3)).unwrap();
    rig.served(ip(3), "batch").unwrap();
    witness.sees(ENOUGH).unwrap();
    nobody_noticed("certificates rotated twice", &witness.end());
}

#[test]
fn the_authority_is_replaced() {
    let rig = rig();
    let witness = rig.witness();
    rig.introduce_authority().unwrap();
    // Old certificates under both authorities.
    rig.upgrade_agent().unwrap();
    rig.start_pod("both", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
    rig.rotate_certificates().unwrap();
    rig.retire_authority().unwrap();
    // The server has not been restarted: it must have read all three files again.
    rig.upgrade_agent().unwrap();
    rig.start_pod("new", "writer", ip(2)).unwrap();
    rig.served(ip(2), "writer").unwrap();
    witness.sees(ENOUGH).unwrap();
    nobody_noticed("authority replaced", &witness.end());
}

#[test]
fn certificates_that_cannot_be_used_are_said_and_waited_out() {
    let rig = rig();
    let witness = rig.witness();
    let path = rig.dir().join("agent.pem");
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, "no certificate").unwrap();
    rig.kill(Server).unwrap();
    rig.restart(Server).unwrap();
    rig.start_pod("waits", "reader", ip(1)).unwrap();
    kiam_loadtest::rig::within("the file is named in the log", || {
        rig.log(Agent).contains("agent.pem").then_some(())
    })
    .unwrap();
    witness.sees(ENOUGH).unwrap();
    std::fs::write(&path, good).unwrap();
    rig.served(ip(1), "reader").unwrap();
    nobody_noticed("a certificate that cannot be read", &witness.end());
}

#[test]
fn token_keys_are_rotated() {
    let rig = rig();
    let witness = rig.witness();
    let ask = |token: &str| {
        let request = format!(
            "GET /v1/credentials HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\nconnection: close\r\n\r\n"
        );
        kiam_loadtest::rig::exchange(rig.container(), None, request.as_bytes()).unwrap()
    };
    let life = std::time::Duration::from_hours(1);
    let old = rig.container_token("reader-0", life).unwrap();
    assert_eq!(ask(&old).status, 200);
    rig.cluster().rotate_signing_key().unwrap();
    assert_eq!(ask(&old).status, 200, "the old key is still published");
    // The server reads the keys again now and then, and when it starts; neither is waited for here.
    rig.stop(Server).unwrap();
    rig.restart(Server).unwrap();
    let new = rig.container_token("reader-0", life).unwrap();
    kiam_loadtest::rig::within("a token of the new key is good", || {
        (ask(&new).status == 200).then_some(())
    })
    .unwrap();
    assert_eq!(ask(&old).status, 200);
    witness.sees(ENOUGH).unwrap();
    nobody_noticed("token keys rotated", &witness.end());
}
