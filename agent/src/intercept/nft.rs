//! The `nft` tool: sends the transaction, reads the table back.
//!
//! Why the tool and not netlink of our own: expressions are written to the kernel as its register
//! machine, and no pure-Rust crate that speaks it is kept up; `nft` is the one implementation that
//! every distribution tests. It runs at start and when something touched our table, never per pod.

pub mod ruleset;

use kiam_wire::UnixSeconds;
use serde_json::Value;

use crate::intercept::rules::Rules;
use crate::intercept::tool::{ToolError, run};
use crate::intercept::{InterceptError, Placement};
use ruleset::{Entries, TABLE, compare};

/// Puts the rules in place of whatever our table held, in one transaction, and then shortens what
/// connection tracking keeps of them, where the kernel can.
///
/// # Errors
/// Nothing was changed.
pub(super) async fn install(rules: &Rules, at: UnixSeconds) -> Result<Entries, InterceptError> {
    let whole = ruleset::install(rules, at);
    apply(&whole).await?;
    // A kernel without nf_conntrack_timeout says no more than that something is missing. Short
    // entries are a kindness; the rules are the point.
    if let Err(error) = run("nft", &["-f", "-"], Some(ruleset::timeouts(rules))).await {
        tracing::debug!(%error, "without short conntrack entries");
        return Ok(Entries::Default);
    }
    if let Err(error) = apply(&ruleset::shorten(rules, at)).await {
        tracing::debug!(%error, "without short conntrack entries");
        // Without the time-outs that nothing uses.
        apply(&whole).await?;
        return Ok(Entries::Default);
    }
    Ok(Entries::Brief)
}

/// Removes our table.
pub(super) async fn remove() -> Result<(), InterceptError> {
    Ok(apply(&ruleset::remove()).await?)
}

/// Compares the kernel's rules with ours.
pub(super) async fn status(rules: &Rules) -> Result<Placement, InterceptError> {
    let Some(listing) = list().await? else {
        return Ok(Placement::Absent);
    };
    Ok(match compare(rules, &listing) {
        Ok(_entries) => Placement::InPlace,
        Err(difference) => Placement::Altered(difference),
    })
}

/// When the rules now in place were installed; `None` when there are none or they do not say.
pub(super) async fn installed_at() -> Option<UnixSeconds> {
    ruleset::installed_at(&list().await.ok()??)
}

/// Whether `nft` can be used at all: it is installed, and the kernel has nftables.
pub(super) async fn usable() -> Result<(), ToolError> {
    run("nft", &["-j", "list", "tables"], None).await.map(drop)
}

async fn list() -> Result<Option<Value>, InterceptError> {
    match run("nft", &["-j", "list", "table", "inet", TABLE], None).await {
        Ok(listing) => serde_json::from_str(&listing)
            .map(Some)
            .map_err(InterceptError::Listing),
        Err(ToolError::Failed { complaint, .. }) if complaint.contains("No such file") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn apply(transaction: &Value) -> Result<(), ToolError> {
    run("nft", &["-j", "-f", "-"], Some(transaction.to_string()))
        .await
        .map(drop)
}
