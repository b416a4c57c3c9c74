//! A worker's configuration and a node's pods, for whatever tries them without a cluster: the tests,
//! the fuzz targets and the benchmark, which all include this file.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use kiam_agent::clock::Now;
use kiam_agent::data::{DataConfig, DriverChoice, TokenKey};
use kiam_wire::credentials::Unchecked;
use kiam_wire::{CredentialId, Credentials, Pod, PodState, PodUid, Revision, UnixSeconds};
use zeroize::Zeroizing;

/// One worker with both doors on loopback, at ports of the system's choice.
pub(crate) fn config(driver: DriverChoice) -> DataConfig {
    DataConfig {
        listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        container_listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        driver,
        audience: "kiam".into(),
        ..DataConfig::new(TokenKey::new([7; 32]))
    }
}

pub(crate) fn revision(number: u64) -> Revision {
    Revision { epoch: 1, number }
}

/// The `n`-th session.
pub(crate) fn id(n: u32) -> CredentialId {
    let mut digest = [0; 32];
    for (place, byte) in digest.iter_mut().zip(n.to_be_bytes()) {
        *place = byte;
    }
    CredentialId::new(digest)
}

/// The `n`-th pod.
pub(crate) fn pod(n: u32, ip: IpAddr, state: PodState) -> Pod {
    Pod {
        uid: PodUid::try_new(&format!("uid-{n}")).expect("a uid"),
        namespace: "default".into(),
        name: format!("pod-{n}"),
        service_account: "web".into(),
        ips: vec![ip],
        host_network: false,
        imds_v2_required: false,
        state,
    }
}

/// What the `n`-th session holds: as long as STS makes it.
pub(crate) fn credentials(n: u32, life_s: i64) -> Arc<Credentials> {
    let now = Now::read().wall.get();
    Arc::new(
        Credentials::try_new(Unchecked {
            id: id(n),
            role_name: format!("role-{n}"),
            role_arn: format!("arn:aws:iam::123456789012:role/team/role-{n}"),
            access_key_id: format!("ASIA{n:016}"),
            secret_access_key: Zeroizing::new(format!("secret-{n}")),
            session_token: Zeroizing::new(format!("{n}{}", "t".repeat(900))),
            issued_at: UnixSeconds::new(now - 60),
            expires_at: UnixSeconds::new(now + life_s),
        })
        .expect("credentials"),
    )
}
