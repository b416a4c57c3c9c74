//! Renders [`Rules`] as one nftables transaction, and tells whether a listing is still those rules.
//!
//! The JSON form is used both ways: what is sent is what must be listed later, so there is one
//! rendering and no second opinion of what "in place" means. Everything lives in a table of our
//! own; replacing it is a single transaction, in which no packet sees neither the old nor the new.
//!
//! Each redirected call leaves a conntrack entry behind. A closed connection's would stay for 120 s;
//! the `brief` policies cut that to seconds where the kernel has connection tracking timeouts. They are
//! written as text: nft before 1.1 takes a policy in JSON for an empty one, without a word.

use std::net::IpAddr;

use kiam_wire::UnixSeconds;
use serde_json::{Value, json};

use crate::intercept::interfaces::{Interfaces, Pattern};
use crate::intercept::rules::{METADATA_PORT, Redirect, Rules, TELLTALE_PORT};

/// The name of our table, of family `inet`.
pub const TABLE: &str = "kiam";

/// The chain that shortens what connection tracking keeps, and the beginning of its time-outs' names.
const BRIEF: &str = "brief";

/// Before the time of installation, in the comment of each rule.
const MARK: &str = "installed-at ";

/// Before every other NAT chain (kube-proxy, CNIs and kiam's own old rule are at -100), because the
/// first one to translate a connection wins.
const BEFORE_NAT: i32 = -110;
/// After connection tracking (-200), which must have made the entry, and before NAT.
const AFTER_CONNTRACK: i32 = -150;
const BEFORE_FILTER: i32 = -10;

/// How protocols are listed where there is no `/etc/protocols`, as in our image.
const TCP: u8 = 6;

/// Whether closed connections' conntrack entries are shortened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entries {
    /// For a few seconds after the end of a connection; needs `nf_conntrack_timeout`.
    Brief,
    /// As long as the kernel's own time-outs say: 120 s.
    Default,
}

/// A rule, for comparison: the chain it is in and its expressions.
type Rule = (String, Value);

/// The transaction that puts the rules in place of whatever our table held before. `at` marks them:
/// of two agents with different rules, the later keeps its own.
pub fn install(rules: &Rules, at: UnixSeconds) -> Value {
    // Adding first makes the deletion valid when there is no table yet.
    let mut commands = vec![
        json!({"add": {"table": table()}}),
        json!({"delete": {"table": table()}}),
        json!({"add": {"table": table()}}),
    ];
    commands.extend(chains(Entries::Default).iter().map(add_chain));
    let expected = expected(rules, Entries::Default).into_iter();
    commands.extend(expected.map(|rule| add_rule(rule, at)));
    json!({"nftables": commands})
}

/// The short time-outs, as text, for a table that is installed.
pub fn timeouts(rules: &Rules) -> String {
    let timeout = |redirect: Redirect| {
        // Long enough for a last segment to be sent twice more.
        format!(
            "ct timeout {} {{\nprotocol tcp\nl3proto {}\n\
             policy = {{ fin_wait : 10, close_wait : 10, last_ack : 5, time_wait : 5, close : 5 }}\n}}\n",
            brief(&redirect),
            family(redirect.metadata)
        )
    };
    let all = rules.redirects().map(timeout).concat();
    format!("table inet {TABLE} {{\n{all}}}\n")
}

/// The transaction that applies [`timeouts`], which are there, to pods' connections.
pub fn shorten(rules: &Rules, at: UnixSeconds) -> Value {
    let is_brief = |(chain, _expr): &Rule| chain == BRIEF;
    let rules = expected(rules, Entries::Brief).into_iter().filter(is_brief);
    let mut commands = vec![add_chain(&brief_chain())];
    commands.extend(rules.map(|rule| add_rule(rule, at)));
    json!({"nftables": commands})
}

fn add_chain(chain: &Value) -> Value {
    json!({"add": {"chain": chain}})
}

fn add_rule((chain, expr): Rule, at: UnixSeconds) -> Value {
    json!({"add": {"rule": {
        "family": "inet", "table": TABLE, "chain": chain, "expr": expr,
        "comment": format!("{MARK}{}", at.get()),
    }}})
}

/// The transaction that removes our table and leaves every other alone.
pub fn remove() -> Value {
    json!({"nftables": [
        {"add": {"table": table()}},
        {"delete": {"table": table()}},
    ]})
}

/// What differs between the rules and `listing`, the answer to `nft -j list table inet kiam`.
///
/// # Errors
/// One sentence that names the first difference.
pub fn compare(rules: &Rules, listing: &Value) -> Result<Entries, String> {
    let objects = listing
        .get("nftables")
        .and_then(Value::as_array)
        .ok_or("nft's listing is not understood")?;
    let of_kind = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let entries = if of_kind("ct timeout").next().is_some() {
        Entries::Brief
    } else {
        Entries::Default
    };
    let is_empty = |timeout: &Value| {
        timeout
            .get("policy")
            .is_none_or(|policy| *policy == json!({}))
    };
    if of_kind("ct timeout").any(is_empty) {
        return Err("the time-outs of closed connections are empty".to_owned());
    }
    if of_kind("table").any(|table| table.get("flags").is_some()) {
        return Err("the table is switched off (dormant)".to_owned());
    }
    let listed_chains: Vec<Value> = of_kind("chain").map(without_handle).collect();
    for chain in chains(entries) {
        if !listed_chains.contains(&chain) {
            let name = chain.get("name").and_then(Value::as_str).unwrap_or("?");
            return Err(format!("the chain {name} is missing or was altered"));
        }
    }
    if listed_chains.len() != chains(entries).len() {
        return Err("a chain was added".to_owned());
    }
    let listed: Vec<Rule> = of_kind("rule").filter_map(listed_rule).collect();
    let expected = expected(rules, entries);
    // Rules of different chains may be listed in any order, those of one chain may not be.
    for chain in chains(entries) {
        let Some(name) = chain.get("name").and_then(Value::as_str) else {
            continue;
        };
        let of_chain = |all: &[Rule]| -> Vec<Value> {
            all.iter()
                .filter(|(chain, _)| chain == name)
                .map(|(_, expr)| expr.clone())
                .collect()
        };
        let (listed, expected) = (of_chain(&listed), of_chain(&expected));
        if listed != expected {
            return Err(difference(name, &listed, &expected));
        }
    }
    Ok(entries)
}

/// When the listed rules were installed: the latest mark among them.
pub fn installed_at(listing: &Value) -> Option<UnixSeconds> {
    let objects = listing.get("nftables")?.as_array()?;
    objects
        .iter()
        .filter_map(|object| object.get("rule")?.get("comment")?.as_str())
        .filter_map(|comment| comment.strip_prefix(MARK)?.parse().ok())
        .max()
        .map(UnixSeconds::new)
}

fn difference(chain: &str, listed: &[Value], expected: &[Value]) -> String {
    match listed.len().cmp(&expected.len()) {
        std::cmp::Ordering::Less => format!("a rule of the chain {chain} is missing"),
        std::cmp::Ordering::Greater => format!("a rule was added to the chain {chain}"),
        std::cmp::Ordering::Equal => format!(
            "a rule of the chain {chain} is not the one that belongs there: another address, port \
             or interface"
        ),
    }
}

fn table() -> Value {
    json!({"family": "inet", "name": TABLE})
}

fn chain(name: &str, kind: &str, hook: &str, priority: i32) -> Value {
    json!({
        "family": "inet", "table": TABLE, "name": name,
        "type": kind, "hook": hook, "prio": priority, "policy": "accept",
    })
}

fn brief_chain() -> Value {
    chain(BRIEF, "filter", "prerouting", AFTER_CONNTRACK)
}

fn chains(entries: Entries) -> Vec<Value> {
    let mut chains = vec![
        chain("pods", "nat", "prerouting", BEFORE_NAT),
        chain("guard", "filter", "forward", BEFORE_FILTER),
        chain("telltale", "nat", "output", BEFORE_NAT),
    ];
    if entries == Entries::Brief {
        chains.push(brief_chain());
    }
    chains
}

fn expected(rules: &Rules, entries: Entries) -> Vec<Rule> {
    let mut expected = Vec::new();
    for redirect in rules.redirects() {
        for mut expr in to_metadata(rules.interfaces(), &redirect) {
            if let Some(host) = redirect.host {
                if entries == Entries::Brief {
                    let mut brief_expr = expr.clone();
                    brief_expr.push(json!({"ct timeout": brief(&redirect)}));
                    expected.push((BRIEF.to_owned(), Value::Array(brief_expr)));
                }
                expr.push(dnat(rules, &redirect, host));
                expected.push(("pods".to_owned(), Value::Array(expr)));
            }
        }
        if let Some(host) = redirect.host {
            let mut expr = to(&redirect, TELLTALE_PORT).to_vec();
            expr.push(dnat(rules, &redirect, host));
            expected.push(("telltale".to_owned(), Value::Array(expr)));
        }
        expected.extend(guard(redirect.metadata).map(|expr| ("guard".to_owned(), expr)));
    }
    expected
}

fn dnat(rules: &Rules, redirect: &Redirect, host: IpAddr) -> Value {
    json!({"dnat": {"family": family(redirect.metadata), "addr": host, "port": rules.port()}})
}

fn to(redirect: &Redirect, port: u16) -> [Value; 2] {
    [
        matching(
            &json!({"payload": {"protocol": family(redirect.metadata), "field": "daddr"}}),
            &json!(redirect.metadata),
        ),
        matching(
            &json!({"payload": {"protocol": "tcp", "field": "dport"}}),
            &json!(port),
        ),
    ]
}

/// One set of matches for each interface pattern of which any suffices; one for all of which each
/// must hold.
fn to_metadata(interfaces: &Interfaces, redirect: &Redirect) -> Vec<Vec<Value>> {
    let interface = |pattern: &Pattern, op: &str| {
        let name = match pattern {
            Pattern::Name(name) => name.clone(),
            Pattern::Prefix(prefix) if prefix.is_empty() => return None,
            Pattern::Prefix(prefix) => format!("{prefix}*"),
        };
        Some(json!({"match": {"op": op, "left": {"meta": {"key": "iifname"}}, "right": name}}))
    };
    let to = to(redirect, METADATA_PORT);
    let froms: Vec<Vec<Value>> = match interfaces {
        Interfaces::AnyOf(patterns) => patterns
            .iter()
            .map(|pattern| interface(pattern, "==").into_iter().collect())
            .collect(),
        Interfaces::NoneOf(patterns) => vec![
            patterns
                .iter()
                .filter_map(|pattern| interface(pattern, "!="))
                .collect(),
        ],
    };
    froms
        .into_iter()
        .map(|from| from.into_iter().chain(to.iter().cloned()).collect())
        .collect()
}

/// By the packet's own address, and by the connection's first one: a connection that something else
/// translated is still one to the metadata service.
fn guard(metadata: IpAddr) -> impl Iterator<Item = Value> {
    let family = family(metadata);
    let packet = json!({"payload": {"protocol": family, "field": "daddr"}});
    let connection = json!({"ct": {"key": format!("{family} daddr"), "dir": "original"}});
    let tcp = is_tcp(&json!("tcp"));
    let reset = json!({"reject": {"type": "tcp reset"}});
    let refuse = json!({"reject": {"type": "icmpx", "expr": "admin-prohibited"}});
    [packet, connection].into_iter().flat_map(move |address| {
        let to = matching(&address, &json!(metadata));
        [json!([to, tcp, reset]), json!([to, refuse])]
    })
}

fn matching(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

const fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

fn brief(redirect: &Redirect) -> String {
    format!("{BRIEF}-{}", family(redirect.metadata))
}

fn without_handle(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        // Absent is the ordinary case for a rendering, present for a listing.
        drop(fields.remove("handle"));
    }
    object
}

fn listed_rule(rule: &Value) -> Option<Rule> {
    let chain = rule.get("chain")?.as_str()?.to_owned();
    let mut expr = rule.get("expr")?.clone();
    for statement in expr.as_array_mut()? {
        if *statement == is_tcp(&json!(TCP)) {
            *statement = is_tcp(&json!("tcp"));
        }
    }
    Some((chain, expr))
}

fn is_tcp(tcp: &Value) -> Value {
    matching(&json!({"meta": {"key": "l4proto"}}), tcp)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    fn rules(hosts: &[&str], port: u16, interfaces: &str) -> Rules {
        let hosts: Vec<IpAddr> = hosts.iter().map(|host| host.parse().unwrap()).collect();
        Rules::try_new(
            &hosts,
            NonZeroU16::new(port).unwrap(),
            interfaces.parse().unwrap(),
        )
        .unwrap()
    }

    /// A listing as nft would print it after that installation.
    fn listing(rules: &Rules, entries: Entries) -> Value {
        let at = UnixSeconds::new(1_700_000_000);
        let (install, shorten) = (install(rules, at), shorten(rules, at));
        let mut commands = install["nftables"].as_array().unwrap()[2..].to_vec();
        if entries == Entries::Brief {
            commands.extend(rules.redirects().map(|redirect| {
                json!({"add": {"ct timeout": {
                    "family": "inet", "table": TABLE, "name": brief(&redirect),
                    "protocol": "tcp", "l3proto": family(redirect.metadata),
                    "policy": {"time_wait": 5},
                }}})
            }));
            commands.extend(shorten["nftables"].as_array().unwrap().iter().cloned());
        }
        let objects: Vec<Value> = commands
            .iter()
            .map(|command| {
                let mut object = command["add"].clone();
                for (_, fields) in object.as_object_mut().unwrap() {
                    fields["handle"] = json!(7);
                }
                object
            })
            .collect();
        json!({"nftables": objects})
    }

    fn both() -> Rules {
        rules(&["10.0.0.1", "fd00::1"], 8181, "cali+")
    }

    #[test]
    fn what_was_installed_is_in_place() {
        for form in [
            "cali+",
            "eni+,vlan+",
            "!eth0",
            "!eth0,!eth1",
            "docker0",
            "+",
        ] {
            for hosts in [&["10.0.0.1"][..], &["fd00::1"], &["10.0.0.1", "fd00::1"]] {
                for entries in [Entries::Brief, Entries::Default] {
                    let rules = rules(hosts, 8181, form);
                    let listing = listing(&rules, entries);
                    assert_eq!(compare(&rules, &listing), Ok(entries));
                    assert_eq!(
                        installed_at(&listing),
                        Some(UnixSeconds::new(1_700_000_000))
                    );
                }
            }
        }
    }

    #[test]
    fn a_listing_without_names_of_protocols_is_the_same() {
        let listing = listing(&both(), Entries::Brief).to_string();
        let numbered = listing.replace(r#""right":"tcp""#, r#""right":6"#);
        assert_ne!(listing, numbered);
        let numbered: Value = serde_json::from_str(&numbered).unwrap();
        assert_eq!(compare(&both(), &numbered), Ok(Entries::Brief));
    }

    #[test]
    fn empty_time_outs_are_not_short_ones() {
        let listing = listing(&both(), Entries::Brief).to_string();
        let empty = listing.replace(r#""policy":{"time_wait":5}"#, r#""policy":{}"#);
        assert_ne!(listing, empty);
        let empty: Value = serde_json::from_str(&empty).unwrap();
        assert!(compare(&both(), &empty).unwrap_err().contains("empty"));
        assert!(timeouts(&both()).contains("l3proto ip6\npolicy = { fin_wait : 10,"));
    }

    #[test]
    fn other_rules_are_not_these() {
        for other in [
            rules(&["10.0.0.1", "fd00::1"], 8182, "cali+"),
            rules(&["10.0.0.2", "fd00::1"], 8181, "cali+"),
            rules(&["10.0.0.1"], 8181, "cali+"),
            rules(&["10.0.0.1", "fd00::1"], 8181, "!eth0"),
            rules(&["10.0.0.1", "fd00::1"], 8181, "cali"),
        ] {
            let refused = compare(&both(), &listing(&other, Entries::Brief));
            assert!(refused.is_err(), "{other:?}");
        }
    }

    #[test]
    fn every_object_counts() {
        for entries in [Entries::Brief, Entries::Default] {
            let whole = listing(&both(), entries);
            let objects = whole["nftables"].as_array().unwrap();
            for i in 0..objects.len() {
                let kind = objects[i].as_object().unwrap().keys().next().unwrap();
                if !["chain", "rule"].contains(&kind.as_str()) {
                    continue;
                }
                let mut less = objects.clone();
                less.remove(i);
                assert!(compare(&both(), &json!({"nftables": less})).is_err(), "{i}");
                let mut more = objects.clone();
                more.push(objects[i].clone());
                assert!(compare(&both(), &json!({"nftables": more})).is_err(), "{i}");
            }
        }
        let mut dormant = listing(&both(), Entries::Brief);
        dormant["nftables"][0]["table"]["flags"] = json!("dormant");
        assert!(compare(&both(), &dormant).unwrap_err().contains("dormant"));
        assert!(compare(&both(), &json!({})).is_err());
    }

    #[test]
    fn a_family_without_a_host_is_guarded_all_the_same() {
        let rules = rules(&["10.0.0.1"], 8181, "cali+");
        let text = install(&rules, UnixSeconds::new(5)).to_string();
        assert_eq!(text.matches("\"dnat\"").count(), 2, "{text}");
        assert_eq!(text.matches("\"reject\"").count(), 8, "{text}");
        assert!(text.contains("fd00:ec2::254"), "{text}");
    }

    #[test]
    fn each_positive_pattern_is_a_rule_and_all_negative_ones_are_one() {
        let count = |form: &str| {
            let text = listing(&rules(&["10.0.0.1"], 1, form), Entries::Default).to_string();
            // And the telltale, which comes from no interface.
            text.matches("\"dnat\"").count() - 1
        };
        assert_eq!(count("eni+,vlan+"), 2);
        assert_eq!(count("!eth0,!eth1"), 1);
    }
}
