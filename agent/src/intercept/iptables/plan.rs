//! Renders [`Rules`] for iptables, tells whether a dump still holds them, and finds kiam's old rule.
//!
//! iptables has no tables of one's own: we own the chains `KIAM-PODS` and `KIAM-TELLTALE` (table
//! `nat`) and `KIAM-GUARD` (table `mangle`) and one jump to each. The guard is in `mangle` because that comes before
//! `filter`, where CNIs and kube-proxy accept pods' traffic with a final verdict; only `DROP` is
//! possible there, so what is guarded times out instead of being refused.
//!
//! Each table is replaced by one `iptables-restore --noflush`, which is atomic for that table. The
//! guard goes in first, so that there is no moment with the one table but without the other in which
//! a pod reaches the metadata service.

use std::net::IpAddr;

use crate::intercept::interfaces::Interfaces;
use crate::intercept::rules::{METADATA_PORT, METADATA_V4, Redirect, Rules, TELLTALE_PORT};

const PODS: &str = "KIAM-PODS";
const GUARD: &str = "KIAM-GUARD";
const TELLTALE: &str = "KIAM-TELLTALE";

/// A table that we add to, and where, in the order in which they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Drops what would be forwarded to a metadata address.
    Mangle,
    /// Redirects pods to the agent.
    Nat,
    /// Redirects the node's own telltale connections to the agent; also the table `nat`.
    Telltale,
}

impl Table {
    /// Guard first.
    pub const ALL: [Self; 3] = [Self::Mangle, Self::Nat, Self::Telltale];

    /// As `--table` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Nat | Self::Telltale => "nat",
        }
    }

    const fn chain(self) -> &'static str {
        match self {
            Self::Mangle => GUARD,
            Self::Nat => PODS,
            Self::Telltale => TELLTALE,
        }
    }

    const fn parent(self) -> &'static str {
        match self {
            Self::Mangle => "FORWARD",
            Self::Nat => "PREROUTING",
            Self::Telltale => "OUTPUT",
        }
    }

    fn jump(self) -> String {
        format!("-A {} -j {}", self.parent(), self.chain())
    }
}

/// The input of `iptables-restore --noflush` that turns `dump` (`iptables-save` of that table) into
/// one that holds the rules, with our jump first in its chain.
pub fn install(rules: &Rules, redirect: &Redirect, table: Table, dump: &str) -> String {
    let mut script = format!("*{}\n:{} - [0:0]\n", table.name(), table.chain());
    script += &delete_jumps(table, dump);
    for rule in chain_rules(rules, redirect, table) {
        script += &rule;
        script.push('\n');
    }
    let jump = format!("-I {} 1 -j {}\nCOMMIT\n", table.parent(), table.chain());
    script += &jump;
    script
}

/// The input of `iptables-restore --noflush` that takes our jump and chain away again; `None` when
/// there is neither.
pub fn remove(table: Table, dump: &str) -> Option<String> {
    let chain = table.chain();
    if !dump.lines().any(|line| declares(line, chain)) {
        return None;
    }
    let jumps = delete_jumps(table, dump);
    Some(format!(
        "*{}\n:{chain} - [0:0]\n{jumps}-X {chain}\nCOMMIT\n",
        table.name()
    ))
}

/// What differs between the rules and `dump` (`iptables-save` of that table).
///
/// # Errors
/// `None` when nothing of ours is there, else one sentence that names the first difference.
pub fn compare(
    rules: &Rules,
    redirect: &Redirect,
    table: Table,
    dump: &str,
) -> Result<(), Option<String>> {
    let chain = table.chain();
    let jump = table.jump();
    let own = format!("-A {chain} ");
    let listed: Vec<&str> = dump.lines().filter(|line| line.starts_with(&own)).collect();
    let expected = chain_rules(rules, redirect, table);
    let parent = format!("-A {} ", table.parent());
    let jumps = dump.lines().filter(|line| *line == jump).count();
    if jumps == 0 && !dump.lines().any(|line| declares(line, chain)) {
        return Err(None);
    }
    if jumps == 0 {
        return Err(Some(format!(
            "the jump from {} to {chain} is missing",
            table.parent()
        )));
    }
    if listed != expected {
        return Err(Some(format!("the rules of {chain} were altered")));
    }
    // Whatever comes before us may decide before us; only other owners' jumps are expected there.
    let before = dump
        .lines()
        .filter(|line| line.starts_with(&parent))
        .take_while(|line| *line != jump);
    for line in before {
        if line.contains("-d 169.254.169.254/32") || line.contains("-d fd00:ec2::254/128") {
            return Err(Some(format!("a rule before ours decides first: {line}")));
        }
    }
    Ok(())
}

/// Rules of the Go project kiam in `dump` (`iptables -t nat -S PREROUTING` or `iptables-save`), each
/// as the arguments that delete it.
///
/// Exactly its form and nothing like it: others intercept the metadata address too (kube2iam
/// does), and theirs are not ours to remove.
pub fn leftovers(dump: &str) -> Vec<Vec<String>> {
    dump.lines()
        .filter(|line| is_leftover(line))
        .map(|line| {
            let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            if let Some(add) = words.first_mut() {
                "-D".clone_into(add);
            }
            words
        })
        .collect()
}

/// `-A PREROUTING -d 169.254.169.254/32 [!] -i IF -p tcp -m tcp --dport 80 -j DNAT --to-destination
/// HOST:PORT`, as every iptables since 1.4 lists what kiam added.
fn is_leftover(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let metadata = format!("{METADATA_V4}/32");
    let dport = METADATA_PORT.to_string();
    let (interface, rest) = match words.as_slice() {
        [
            "-A",
            "PREROUTING",
            "-d",
            to,
            "!",
            "-i",
            interface,
            rest @ ..,
        ]
        | ["-A", "PREROUTING", "-d", to, "-i", interface, rest @ ..]
            if *to == metadata =>
        {
            (*interface, rest)
        }
        _ => return false,
    };
    let [
        "-p",
        "tcp",
        "-m",
        "tcp",
        "--dport",
        port,
        "-j",
        "DNAT",
        "--to-destination",
        target,
    ] = rest
    else {
        return false;
    };
    !interface.is_empty() && *port == dport && target.parse::<std::net::SocketAddrV4>().is_ok()
}

fn chain_rules(rules: &Rules, redirect: &Redirect, table: Table) -> Vec<String> {
    let metadata = match redirect.metadata {
        IpAddr::V4(ip) => format!("{ip}/32"),
        IpAddr::V6(ip) => format!("{ip}/128"),
    };
    let chain = table.chain();
    match (table, redirect.host) {
        (Table::Mangle, _) => vec![
            format!("-A {chain} -d {metadata} -j DROP"),
            format!(
                "-A {chain} -m conntrack --ctorigdst {} -j DROP",
                redirect.metadata
            ),
        ],
        (Table::Nat | Table::Telltale, None) => Vec::new(),
        (Table::Nat, Some(host)) => {
            let target = std::net::SocketAddr::new(host, rules.port());
            dnat(rules.interfaces(), chain, &metadata, &target.to_string())
        }
        (Table::Telltale, Some(host)) => {
            let target = std::net::SocketAddr::new(host, rules.port());
            vec![format!(
                "-A {chain} -d {metadata} -p tcp -m tcp --dport {TELLTALE_PORT} -j DNAT \
                 --to-destination {target}"
            )]
        }
    }
}

fn dnat(interfaces: &Interfaces, chain: &str, metadata: &str, target: &str) -> Vec<String> {
    let to = format!("-p tcp -m tcp --dport {METADATA_PORT} -j DNAT --to-destination {target}");
    match interfaces {
        Interfaces::AnyOf(patterns) => patterns
            .iter()
            .map(|pattern| match pattern.to_string().as_str() {
                // iptables lists a match of every interface as no match at all.
                "+" => format!("-A {chain} -d {metadata} {to}"),
                name => format!("-A {chain} -d {metadata} -i {name} {to}"),
            })
            .collect(),
        // One rule can name one interface: each that is left out returns before the last rule.
        Interfaces::NoneOf(patterns) => patterns
            .iter()
            .map(|pattern| format!("-A {chain} -i {pattern} -j RETURN"))
            .chain([format!("-A {chain} -d {metadata} {to}")])
            .collect(),
    }
}

fn delete_jumps(table: Table, dump: &str) -> String {
    let jump = table.jump();
    dump.lines()
        .filter(|line| *line == jump)
        .map(|line| line.replacen("-A", "-D", 1) + "\n")
        .collect::<Vec<_>>()
        .concat()
}

fn declares(line: &str, chain: &str) -> bool {
    line.strip_prefix(':')
        .and_then(|rest| rest.split_whitespace().next())
        == Some(chain)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    fn rules(form: &str) -> Rules {
        Rules::try_new(
            &["10.0.0.5".parse().unwrap()],
            NonZeroU16::new(8181).unwrap(),
            form.parse().unwrap(),
        )
        .unwrap()
    }

    const EMPTY: &str =
        "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j cali-PREROUTING\nCOMMIT\n";

    /// What `iptables-save` would print after that script.
    fn applied(script: &str, table: Table) -> String {
        let mut dump = format!(":{} - [0:0]\n", table.chain());
        let own = format!("-A {} ", table.chain());
        dump += &table.jump();
        dump.push('\n');
        for line in script.lines().filter(|line| line.starts_with(&own)) {
            dump += line;
            dump.push('\n');
        }
        dump
    }

    #[test]
    fn what_was_installed_is_in_place_and_can_be_removed() {
        for form in ["cali+", "!eth0", "eni+,vlan+", "!eth0,!eth1", "+"] {
            let rules = rules(form);
            for redirect in rules.redirects() {
                for table in Table::ALL {
                    assert_eq!(compare(&rules, &redirect, table, EMPTY), Err(None));
                    let dump = applied(&install(&rules, &redirect, table, EMPTY), table);
                    assert_eq!(compare(&rules, &redirect, table, &dump), Ok(()), "{dump}");
                    let again = install(&rules, &redirect, table, &dump);
                    assert!(again.contains(&table.jump().replace("-A", "-D")), "{again}");
                    let remove = remove(table, &dump).unwrap();
                    assert!(
                        remove.contains(&format!("-X {}", table.chain())),
                        "{remove}"
                    );
                }
            }
        }
        assert_eq!(remove(Table::Nat, EMPTY), None);
    }

    #[test]
    fn the_script_is_one_transaction_with_our_jump_first() {
        let rules = rules("!eth0");
        let script = install(&rules, &rules.redirects()[0], Table::Nat, EMPTY);
        assert_eq!(
            script,
            "*nat\n:KIAM-PODS - [0:0]\n\
             -A KIAM-PODS -i eth0 -j RETURN\n\
             -A KIAM-PODS -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8181\n\
             -I PREROUTING 1 -j KIAM-PODS\nCOMMIT\n"
        );
    }

    #[test]
    fn alterations_are_named() {
        let rules = rules("cali+");
        let redirect = rules.redirects()[0];
        let dump = applied(&install(&rules, &redirect, Table::Nat, EMPTY), Table::Nat);
        let check = |dump: &str, expected: &str| {
            let got = compare(&rules, &redirect, Table::Nat, dump).unwrap_err();
            assert_eq!(got.as_deref(), Some(expected));
        };
        check(
            &dump.replace("8181", "8182"),
            "the rules of KIAM-PODS were altered",
        );
        check(
            &dump.replace("-A PREROUTING -j KIAM-PODS\n", ""),
            "the jump from PREROUTING to KIAM-PODS is missing",
        );
        let stale = "-A PREROUTING -d 169.254.169.254/32 -j ACCEPT";
        check(
            &format!("{stale}\n{dump}"),
            &format!("a rule before ours decides first: {stale}"),
        );
    }

    #[test]
    fn only_kiams_own_rule_is_a_leftover() {
        let kiam = "-A PREROUTING -d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8181";
        let negated = kiam.replace("-i cali+", "! -i eth0");
        let others = [
            kiam.replace("--dport 80", "--dport 81"),
            kiam.replace("DNAT", "REDIRECT"),
            kiam.replace("169.254.169.254", "169.254.170.2"),
            format!("{kiam} -m comment"),
            kiam.replace("PREROUTING", "OUTPUT"),
            kiam.replace("-i cali+ ", ""),
        ];
        let dump = format!("{kiam}\n{negated}\n{}", others.join("\n"));
        let found = leftovers(&dump);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].join(" "), kiam.replace("-A", "-D"));
        assert_eq!(found[1].join(" "), negated.replace("-A", "-D"));
    }
}
