//! What stands between pods and the node's metadata service: rules in the kernel that send pods to
//! the agent, or, when no agent listens, nowhere.
//!
//! In reading order:
//! - [`interfaces`], [`rules`]: what is wanted, as values;
//! - [`nft`], [`iptables`]: rendered and compared (pure), written and read by the tools;
//! - `wall`: routing rules behind them, for the moments in which somebody flushed them;
//! - [`conntrack`]: connections that were open before;
//! - `watch`, [`oversee`]: put back at once when somebody removes them, or missed aloud by an agent
//!   that may not;
//! - [`probe`], [`witness`], [`verdict`]: whether pods' requests really arrive, and what to say;
//! - [`record`]: what the init container leaves for an agent that may not look for itself;
//! - [`command`]: `kiam-agent intercept`.
//!
//! # Invariants
//! - Rules are never taken away in order to be replaced: at every moment the old or the new hold.
//! - Nothing here runs per request or per pod.
//! - Stopping the agent leaves the rules: only an explicit `remove` opens the way.

pub mod command;
pub mod conntrack;
pub mod interfaces;
pub mod iptables;
pub mod nft;
pub mod oversee;
pub mod probe;
pub mod record;
pub mod rules;
pub mod tool;
pub mod verdict;
mod wall;
mod watch;
pub mod witness;

use std::io;

use kiam_wire::UnixSeconds;
use nft::ruleset::Entries;
use rules::Rules;
use tool::ToolError;

/// Which of the kernel's two ways holds the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A table of our own.
    Nftables,
    /// Chains of our own in the `nat` and `mangle` tables.
    Iptables,
}

impl Backend {
    /// As `--intercept` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }
}

/// What the kernel's rules are, compared with what they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Exactly what should be there.
    InPlace,
    /// Nothing of ours is there.
    Absent,
    /// Something of ours is there, but not what should be; one sentence.
    Altered(String),
}

/// Why the rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// The tool is missing, forbidden, or refused.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// It answered something else than JSON.
    #[error("nft's listing cannot be read")]
    Listing(#[source] serde_json::Error),
}

impl InterceptError {
    /// Whether `NET_ADMIN` is what is missing: then somebody else installs and looks.
    pub const fn is_not_permitted(&self) -> bool {
        matches!(self, Self::Tool(ToolError::NotPermitted { .. }))
    }
}

/// What an installation did.
#[derive(Debug)]
pub struct Installed {
    /// How long closed connections stay tracked; `None` with iptables, which cannot say.
    pub entries: Option<Entries>,
    /// Connections from before that were cut, or why they could not be.
    pub cut: io::Result<usize>,
}

/// nftables where its tool and the kernel have it, else iptables.
///
/// # Errors
/// Neither can be used; the error is nftables'.
pub async fn choose() -> Result<Backend, InterceptError> {
    match nft::usable().await {
        Ok(()) => Ok(Backend::Nftables),
        Err(ToolError::NotPermitted { tool, complaint }) => {
            Err(ToolError::NotPermitted { tool, complaint }.into())
        }
        Err(nftables) => match iptables::leftovers().await {
            Ok(_usable) => Ok(Backend::Iptables),
            Err(_iptables) => Err(nftables.into()),
        },
    }
}

/// Puts the rules in place, then takes away what an earlier run put elsewhere, then cuts what was
/// open before. In that order there is no moment without rules. `at` is now: later rules are kept
/// against earlier ones.
pub async fn install(
    backend: Backend,
    rules: &Rules,
    at: UnixSeconds,
) -> Result<Installed, InterceptError> {
    let entries = match backend {
        Backend::Nftables => Some(nft::install(rules, at).await?),
        Backend::Iptables => {
            iptables::install(rules).await?;
            None
        }
    };
    remove_other(backend, rules).await;
    build_wall().await;
    Ok(Installed {
        entries,
        cut: cut(rules).await,
    })
}

async fn build_wall() {
    if let Err(error) = wall::build().await {
        tracing::warn!(
            %error,
            "no routing rules behind the interception: whoever flushes the firewall opens the way \
             for as long as it takes to put the rules back"
        );
    }
}

async fn remove_other(backend: Backend, rules: &Rules) {
    let other = match backend {
        Backend::Nftables => iptables::remove(&rules.redirects()).await,
        Backend::Iptables => nft::remove().await,
    };
    if let Err(error) = other {
        // Usually the other tool is simply not there, and then neither are its rules.
        tracing::debug!(%error, "rules of the other kind were not looked for");
    }
}

async fn cut(rules: &Rules) -> io::Result<usize> {
    let cut = conntrack::cut(rules).await;
    match &cut {
        Ok(0) => {}
        Ok(cut) => tracing::warn!(cut, "connections to the node's metadata service were cut"),
        Err(error) => tracing::error!(
            %error,
            "connections that pods opened to the metadata service before the rules were installed \
             could not be looked for and may go on"
        ),
    }
    cut
}

/// Takes our rules away, of both kinds: pods reach the node's own credentials from then on.
pub async fn remove(rules: &Rules) -> Result<(), InterceptError> {
    let nftables = nft::remove().await;
    let iptables = iptables::remove(&rules.redirects()).await;
    wall::remove().await?;
    match (nftables, iptables) {
        (Err(InterceptError::Tool(ToolError::Missing { .. })), other)
        | (other, Err(InterceptError::Tool(ToolError::Missing { .. }))) => other,
        (Err(error), _) | (_, Err(error)) => Err(error),
        (Ok(()), Ok(())) => Ok(()),
    }
}

/// Compares the kernel's rules with what they should be.
pub async fn status(backend: Backend, rules: &Rules) -> Result<Placement, InterceptError> {
    let placement = match backend {
        Backend::Nftables => nft::status(rules).await?,
        Backend::Iptables => iptables::status(rules).await?,
    };
    if placement != Placement::InPlace {
        return Ok(placement);
    }
    Ok(match wall::stands().await {
        // Without the tool there never was a wall; installing said so.
        Ok(true) | Err(_) => Placement::InPlace,
        Ok(false) => Placement::Altered("the routing rules behind are missing".to_owned()),
    })
}
