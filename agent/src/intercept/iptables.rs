//! The `iptables` tools, for nodes without nftables and for those whose operators want it so.
//!
//! Same promises as [`nft`](super::nft), with two differences that the tool brings: a table at a
//! time is atomic, not both together, and what is guarded is dropped rather than refused.

pub mod plan;

use std::net::IpAddr;

use crate::intercept::rules::{Redirect, Rules};
use crate::intercept::tool::{ToolError, run};
use crate::intercept::{InterceptError, Placement};
use plan::Table;

/// Waits for whoever else is writing, as kube-proxy does all the time.
const WAIT: &str = "--wait=5";

struct Tools {
    save: &'static str,
    restore: &'static str,
}

const fn tools(family: IpAddr) -> Tools {
    match family {
        IpAddr::V4(_) => Tools {
            save: "iptables-save",
            restore: "iptables-restore",
        },
        IpAddr::V6(_) => Tools {
            save: "ip6tables-save",
            restore: "ip6tables-restore",
        },
    }
}

/// Puts both families' rules in place of ours.
///
/// # Errors
/// A node without IPv6 in its kernel is not an error: nothing can be forwarded there either.
pub(super) async fn install(rules: &Rules) -> Result<(), InterceptError> {
    for redirect in rules.redirects() {
        for table in Table::ALL {
            let Some(dump) = dump(&redirect, table).await? else {
                continue;
            };
            let script = plan::install(rules, &redirect, table, &dump);
            restore(&redirect, script).await?;
        }
    }
    Ok(())
}

/// Takes our chains away.
pub(super) async fn remove(redirects: &[Redirect]) -> Result<(), InterceptError> {
    for redirect in redirects {
        // Redirection first and the guard last: until the end pods are refused.
        for table in Table::ALL.into_iter().rev() {
            let Some(dump) = dump(redirect, table).await? else {
                continue;
            };
            if let Some(script) = plan::remove(table, &dump) {
                restore(redirect, script).await?;
            }
        }
    }
    Ok(())
}

/// Compares the kernel's rules with ours.
pub(super) async fn status(rules: &Rules) -> Result<Placement, InterceptError> {
    let mut absent = 0;
    let mut looked_at = 0;
    for redirect in rules.redirects() {
        for table in Table::ALL {
            let Some(dump) = dump(&redirect, table).await? else {
                continue;
            };
            looked_at += 1;
            match plan::compare(rules, &redirect, table, &dump) {
                Ok(()) => {}
                Err(None) => absent += 1,
                Err(Some(difference)) => return Ok(Placement::Altered(difference)),
            }
        }
    }
    Ok(match absent {
        0 => Placement::InPlace,
        some if some == looked_at => Placement::Absent,
        _ => Placement::Altered("some of the chains are missing".to_owned()),
    })
}

/// kiam's own old rules, as `iptables` lists them.
pub(super) async fn leftovers() -> Result<Vec<Vec<String>>, ToolError> {
    let listed = run("iptables", &[WAIT, "-t", "nat", "-S", "PREROUTING"], None).await?;
    Ok(plan::leftovers(&listed))
}

/// Deletes one of [`leftovers`].
pub(super) async fn remove_leftover(rule: &[String]) -> Result<(), ToolError> {
    let mut arguments = vec![WAIT, "-t", "nat"];
    arguments.extend(rule.iter().map(String::as_str));
    run("iptables", &arguments, None).await.map(drop)
}

/// `None` when this node has no IPv6 and the question was about IPv6.
async fn dump(redirect: &Redirect, table: Table) -> Result<Option<String>, InterceptError> {
    let save = tools(redirect.metadata).save;
    match run(save, &["-t", table.name()], None).await {
        Ok(dump) => Ok(Some(dump)),
        Err(ToolError::Failed { complaint, .. })
            if redirect.metadata.is_ipv6() && redirect.host.is_none() =>
        {
            tracing::info!(complaint, "no ip6tables on this node: IPv6 is left alone");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

async fn restore(redirect: &Redirect, script: String) -> Result<(), InterceptError> {
    let restore = tools(redirect.metadata).restore;
    run(restore, &["--noflush", WAIT], Some(script)).await?;
    Ok(())
}
