//! A second wall behind the rules: three routing rules a family, which make a metadata address
//! unreachable for whatever does not come from this node itself.
//!
//! Firewall services flush every nftables rule when they restart, ours with them. Until they are
//! put back a pod would reach the node's own metadata service; with the wall it is told that there
//! is no such host. Pods' redirected connections never meet it: they are translated before routing.
//!
//! `ip rule` is the tool for it; it is part of every node and of our image. Without it the rules
//! stand alone, which is said in the log.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::rules::{METADATA_V4, METADATA_V6};
use super::tool::{ToolError, run};

/// Before any rule of a CNI (amazon-vpc-cni begins at 512, cilium's proxy rule is 9 and asks for a
/// mark of its own), because the first that finds a route wins.
const OWN: u32 = 50;
const WALL: u32 = 51;
const BEHIND: u32 = 52;

/// Where our routing rules are, and nobody else's.
pub(super) const PRIORITIES: [u32; 3] = [OWN, WALL, BEHIND];

const ADDRESSES: [(&str, IpAddr); 2] = [
    ("-4", IpAddr::V4(METADATA_V4)),
    ("-6", IpAddr::V6(METADATA_V6)),
];

/// Builds it, where it does not stand.
///
/// # Errors
/// `ip` is missing or forbidden, or another program uses these three priorities.
pub(super) async fn build() -> Result<(), ToolError> {
    for (family, metadata) in ADDRESSES {
        let missing = missing(&list(family).await?, metadata);
        if !missing.is_empty() {
            run("ip", &[family, "-batch", "-"], Some(missing)).await?;
        }
    }
    Ok(())
}

/// Takes it down.
pub(super) async fn remove() -> Result<(), ToolError> {
    for (family, metadata) in ADDRESSES {
        let listing = list(family).await?;
        let standing: String = rules(metadata)
            .into_iter()
            // The wall first: without the way around it the node itself would be locked out.
            .rev()
            .filter(|(_, listed)| holds(&listing, listed))
            .map(|(rule, _)| format!("rule del {rule}\n"))
            .collect::<Vec<_>>()
            .concat();
        if !standing.is_empty() {
            run("ip", &[family, "-batch", "-"], Some(standing)).await?;
        }
    }
    Ok(())
}

/// Whether it stands, for both families.
pub(super) async fn stands() -> Result<bool, ToolError> {
    for (family, metadata) in ADDRESSES {
        if !missing(&list(family).await?, metadata).is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn list(family: &str) -> Result<Value, ToolError> {
    let listing = run("ip", &[family, "-json", "rule", "list"], None).await?;
    Ok(serde_json::from_str(&listing).unwrap_or(Value::Null))
}

/// Each rule as it is added and as it is listed, in the order in which they must be added: the way
/// around the wall, and where it leads, before the wall.
fn rules(metadata: IpAddr) -> [(String, Value); 3] {
    [
        (
            format!("pref {BEHIND} to {metadata} nop"),
            json!({"priority": BEHIND, "src": "all", "dst": metadata, "nop": null}),
        ),
        (
            format!("pref {OWN} iif lo to {metadata} goto {BEHIND}"),
            json!({"priority": OWN, "src": "all", "dst": metadata, "iif": "lo", "goto": BEHIND}),
        ),
        (
            format!("pref {WALL} to {metadata} unreachable"),
            json!({"priority": WALL, "src": "all", "dst": metadata, "action": "unreachable"}),
        ),
    ]
}

fn holds(listing: &Value, rule: &Value) -> bool {
    listing
        .as_array()
        .is_some_and(|listed| listed.contains(rule))
}

/// The commands that add what is missing.
fn missing(listing: &Value, metadata: IpAddr) -> String {
    rules(metadata)
        .into_iter()
        .filter(|(_, listed)| !holds(listing, listed))
        .map(|(rule, _)| format!("rule add {rule}\n"))
        .collect::<Vec<_>>()
        .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `ip -4 -json rule list` prints it.
    const STANDING: &str = r#"[{"priority":0,"src":"all","table":"local"},
        {"priority":50,"src":"all","dst":"169.254.169.254","iif":"lo","goto":52},
        {"priority":51,"src":"all","dst":"169.254.169.254","action":"unreachable"},
        {"priority":52,"src":"all","dst":"169.254.169.254","nop":null},
        {"priority":32766,"src":"all","table":"main"}]"#;

    #[test]
    fn what_stands_is_left_and_what_is_missing_is_added() {
        let metadata = IpAddr::V4(METADATA_V4);
        let standing: Value = serde_json::from_str(STANDING).unwrap();
        assert_eq!(missing(&standing, metadata), "");
        let mut damaged = standing;
        damaged.as_array_mut().unwrap().remove(2);
        assert_eq!(
            missing(&damaged, metadata),
            "rule add pref 51 to 169.254.169.254 unreachable\n"
        );
        let all = missing(&Value::Null, metadata);
        assert_eq!(all.lines().count(), 3);
        assert!(
            all.trim_end().ends_with("unreachable"),
            "the wall comes last: {all}"
        );
    }
}
