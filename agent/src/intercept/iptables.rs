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

/// kiam's own old rules, as far as this process may see them.
pub(super) async fn leftovers() -> Result<Vec<Vec<String>>, ToolError> {
    let mut found = USUAL.leftovers().await?;
    match LEGACY.leftovers().await {
        // Where `iptables` is the legacy one, both list the same.
        Ok(legacy) => {
            let unseen = legacy.into_iter().filter(|rule| !found.contains(rule));
            let unseen: Vec<_> = unseen.collect();
            found.extend(unseen);
        }
        Err(error) => tracing::info!(%error, "rules of iptables-legacy are not looked at"),
    }
    Ok(found)
}

/// Deletes kiam's own old rules, and says which they were.
pub(super) async fn remove_leftovers() -> Result<Vec<Vec<String>>, ToolError> {
    let mut removed = Vec::new();
    for lister in [USUAL, LEGACY] {
        // Listed only now: where both are the same tool, the first has deleted all there was.
        for rule in lister.leftovers().await? {
            lister.run(rule.iter().map(String::as_str)).await?;
            removed.push(rule);
        }
    }
    Ok(removed)
}

/// A tool that lists and deletes rules of the `nat` table.
#[derive(Debug, Clone, Copy)]
struct Lister {
    tool: &'static str,
    /// What comes before the arguments.
    applet: Option<&'static str>,
    /// Where the kernel says which tables there are, if the tool must not be asked about others.
    tables: Option<&'static str>,
}

const USUAL: Lister = Lister {
    tool: "iptables",
    applet: None,
    tables: None,
};

/// kiam's image wrote its rule with the legacy tools, and those of nftables do not list it. They are
/// asked only about what is there: to list a legacy table makes the kernel set it up.
const LEGACY: Lister = Lister {
    tool: "xtables-legacy-multi",
    applet: Some("iptables"),
    tables: Some("/proc/thread-self/net/ip_tables_names"),
};

impl Lister {
    async fn leftovers(self) -> Result<Vec<Vec<String>>, ToolError> {
        let unused = |path| !std::fs::read_to_string(path).is_ok_and(|names| has_nat(&names));
        if self.tables.is_some_and(unused) {
            return Ok(Vec::new());
        }
        match self.run(["-S", "PREROUTING"]).await {
            Ok(listed) => Ok(plan::leftovers(&listed)),
            // An image without it has an `iptables` that sees the rules, or none that could.
            Err(ToolError::Missing { .. }) if self.tables.is_some() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn run(self, words: impl IntoIterator<Item = &str>) -> Result<String, ToolError> {
        let applet = self.applet.into_iter();
        let arguments: Vec<&str> = applet.chain([WAIT, "-t", "nat"]).chain(words).collect();
        run(self.tool, &arguments, None).await
    }
}

/// Whether the kernel's list of legacy tables, a name a line, has the one that kiam used.
fn has_nat(names: &str) -> bool {
    names.lines().any(|name| name == Table::Nat.name())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nat_table_is_asked_for() {
        assert!(has_nat("filter\nnat\n"));
        assert!(!has_nat("filter\nmangle\n"));
        assert!(!has_nat(""));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_tool_is_asked_about_tables_that_there_are_and_no_others() {
        // `echo` says what it is asked, which is no rule; and a tool that is not there says nothing.
        let asked = Lister {
            tool: "echo",
            applet: Some("iptables"),
            tables: Some("/dev/null"),
        };
        let words = asked.run(["-S", "PREROUTING"]).await.unwrap();
        assert_eq!(words, "iptables --wait=5 -t nat -S PREROUTING\n");
        let failing = Lister {
            tool: "false",
            ..asked
        };
        assert!(failing.leftovers().await.unwrap().is_empty());

        let directory = tempfile::tempdir().unwrap();
        let names = directory.path().join("names");
        std::fs::write(&names, "nat\n").unwrap();
        let names: &'static str = names.to_str().unwrap().to_owned().leak();
        let there = Some(names);
        let failing = Lister {
            tables: there,
            ..failing
        };
        let error = failing.leftovers().await.unwrap_err();
        assert!(matches!(error, ToolError::Failed { .. }), "{error}");
        let missing = Lister {
            tool: "kiam-no-such-tool",
            ..failing
        };
        assert!(missing.leftovers().await.unwrap().is_empty());
        let usual = Lister {
            tables: None,
            ..missing
        };
        let error = usual.leftovers().await.unwrap_err();
        assert!(matches!(error, ToolError::Missing { .. }), "{error}");
    }
}
