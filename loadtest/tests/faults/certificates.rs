//! Certificates, keys and authorities replaced.

use kiam_loadtest::rig::Program::{Agent, Server};

use crate::{ENOUGH, RECONNECTS, ip, nobody_noticed, rig};

#[test]
fn certificates_are_rotated() {
    let rig = rig();
    let witness = rig.witness();
    rig.rotate_certificates().unwrap();
    rig.start_pod("on-the-old-stream", "reader", ip(1)).unwrap();
    rig.served(ip(1), "reader").unwrap();
    // Each side in turn meets the other's new certificate.
    let new_agent = || {
        rig.upgrade_agent()?;
        rig.start_pod("with-a-new-agent", "writer", ip(2))?;
        rig.served(ip(2), "writer")
    };
    witness.heals(new_agent).unwrap();
    rig.rotate_certificates().unwrap();
    rig.stop(Server).unwrap();
    let new_server = || {
        rig.restart(Server)?;
        rig.start_pod("with-a-new-server", "batch", ip(3))?;
        rig.served(ip(3), "batch")
    };
    witness.heals(new_server).unwrap();
    nobody_noticed("certificates-rotated", RECONNECTS, witness);
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
    let heals = || {
        rig.upgrade_agent()?;
        rig.start_pod("new", "writer", ip(2))?;
        rig.served(ip(2), "writer")
    };
    witness.heals(heals).unwrap();
    nobody_noticed("authority-replaced", RECONNECTS, witness);
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
    rig.start_pod("meanwhile", "reader", ip(1)).unwrap();
    kiam_loadtest::rig::within("the file is named in the log", || {
        rig.log(Agent).contains("agent.pem").then_some(())
    })
    .unwrap();
    // The one that was read before is good, and used.
    rig.served(ip(1), "reader").unwrap();
    witness.sees(ENOUGH).unwrap();
    let heals = || {
        std::fs::write(&path, good)?;
        rig.upgrade_agent()?;
        rig.start_pod("after", "writer", ip(2))?;
        rig.served(ip(2), "writer")
    };
    witness.heals(heals).unwrap();
    nobody_noticed("certificate-unreadable", RECONNECTS, witness);
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
    let heals = || {
        rig.restart(Server)?;
        let new = rig.container_token("reader-0", life)?;
        kiam_loadtest::rig::within("a token of the new key is good", || {
            (ask(&new).status == 200).then_some(())
        })
    };
    witness.heals(heals).unwrap();
    assert_eq!(ask(&old).status, 200);
    nobody_noticed("token-keys-rotated", RECONNECTS, witness);
}
