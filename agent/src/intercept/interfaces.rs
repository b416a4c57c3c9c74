//! Which interfaces pods' requests arrive on, in kiam's notation.
//!
//! `cali+` is every interface whose name begins with `cali`, `!eth0` every one but `eth0`. Several
//! are separated by commas: `eni+,vlan+` is either, `!eth0,!eth1` is neither. A mixture of both
//! kinds has no obvious meaning and is refused.

use std::fmt;
use std::str::FromStr;

/// `IFNAMSIZ` without its final zero.
const NAME_BYTES_MAX: usize = 15;
/// More are a mistake: each becomes a rule that every packet of the node passes.
const PATTERNS_MAX: usize = 16;

/// The interfaces on which pods' requests are intercepted; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interfaces {
    /// Those whose name matches one of these.
    AnyOf(Vec<Pattern>),
    /// Those whose name matches none of these.
    NoneOf(Vec<Pattern>),
}

/// An interface name, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// Exactly this name.
    Name(String),
    /// Every name that begins with this; every name at all when it is empty.
    Prefix(String),
}

/// Why `--host-interface` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInterfaces {
    /// Nothing before, between or after commas.
    #[error("--host-interface has an empty name")]
    Empty,
    /// Linux allows 15 bytes.
    #[error("--host-interface {0:?} is longer than an interface name can be (15 bytes)")]
    TooLong(String),
    /// Such a name would have to be quoted differently in each tool.
    #[error(
        "--host-interface {0:?} may hold letters, digits and . _ - @ only, with ! before and + after"
    )]
    Characters(String),
    /// `cali+,!eth0`.
    #[error("--host-interface mixes names with and without !, use one kind")]
    Mixed,
    /// `!+` would be no interface at all.
    #[error("--host-interface !+ matches no interface: pods would not be intercepted")]
    Nothing,
    /// Each is a rule on every packet's way.
    #[error("--host-interface names more than 16 interfaces, use a prefix such as cali+")]
    TooMany,
}

impl Interfaces {
    /// Whether requests that arrive on the interface `name` are intercepted.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::AnyOf(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
            Self::NoneOf(patterns) => !patterns.iter().any(|pattern| pattern.matches(name)),
        }
    }
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(exact) => exact == name,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

impl FromStr for Interfaces {
    type Err = InvalidInterfaces;

    fn from_str(text: &str) -> Result<Self, InvalidInterfaces> {
        let mut any_of = Vec::new();
        let mut none_of = Vec::new();
        for part in text.split(',').map(str::trim) {
            match part.strip_prefix('!') {
                // kiam passed `! eth0` through a shell as often as `!eth0`.
                Some(rest) => none_of.push(pattern(rest.trim_start())?),
                None => any_of.push(pattern(part)?),
            }
        }
        if any_of.len().max(none_of.len()) > PATTERNS_MAX {
            return Err(InvalidInterfaces::TooMany);
        }
        match (any_of.is_empty(), none_of.is_empty()) {
            (false, true) => Ok(Self::AnyOf(any_of)),
            (true, false) if none_of.contains(&Pattern::Prefix(String::new())) => {
                Err(InvalidInterfaces::Nothing)
            }
            (true, false) => Ok(Self::NoneOf(none_of)),
            (false, false) => Err(InvalidInterfaces::Mixed),
            (true, true) => Err(InvalidInterfaces::Empty),
        }
    }
}

fn pattern(text: &str) -> Result<Pattern, InvalidInterfaces> {
    let (name, is_prefix) = match text.strip_suffix('+') {
        Some(prefix) => (prefix, true),
        None => (text, false),
    };
    if name.is_empty() && !is_prefix {
        return Err(InvalidInterfaces::Empty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(InvalidInterfaces::TooLong(text.to_owned()));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
    // A leading dash would be an option to iptables.
    if !name.chars().all(plain) || name.starts_with('-') {
        return Err(InvalidInterfaces::Characters(text.to_owned()));
    }
    let name = name.to_owned();
    Ok(if is_prefix {
        Pattern::Prefix(name)
    } else {
        Pattern::Name(name)
    })
}

impl fmt::Display for Interfaces {
    /// In the notation it is parsed from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, patterns) = match self {
            Self::AnyOf(patterns) => ("", patterns),
            Self::NoneOf(patterns) => ("!", patterns),
        };
        for (i, pattern) in patterns.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{sign}{pattern}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Pattern {
    /// As iptables writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Prefix(prefix) => write!(f, "{prefix}+"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match text.parse::<Interfaces>() {
            Ok(interfaces) => interfaces.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn kiam_forms_are_understood() {
        for form in [
            "cali+",
            "!eth0",
            "docker0",
            "eni+,vlan+",
            "!eth0,!eth1",
            "+",
        ] {
            check(form, form);
        }
        check("! eth0", "!eth0");
        check(" eni+ , vlan+ ", "eni+,vlan+");
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        check("", "--host-interface has an empty name");
        check("cali+,", "--host-interface has an empty name");
        check("!", "--host-interface has an empty name");
        check(
            "cali+,!eth0",
            "--host-interface mixes names with and without !, use one kind",
        );
        check(
            "!+",
            "--host-interface !+ matches no interface: pods would not be intercepted",
        );
        check(
            "an-interface-name+",
            "--host-interface \"an-interface-name+\" is longer than an interface name can be (15 bytes)",
        );
        for odd in ["a\"b", "a b", "c*", "-i", "a+b", "a;b", "\u{e9}th0"] {
            let refused = odd.parse::<Interfaces>();
            assert!(
                matches!(refused, Err(InvalidInterfaces::Characters(_))),
                "{odd}: {refused:?}"
            );
        }
        let many = vec!["a+"; PATTERNS_MAX + 1].join(",");
        assert_eq!(many.parse::<Interfaces>(), Err(InvalidInterfaces::TooMany));
    }

    #[test]
    fn names_match_as_the_tools_match_them() {
        let matches = |form: &str, name: &str| form.parse::<Interfaces>().unwrap().matches(name);
        assert!(matches("cali+", "cali12ab"));
        assert!(matches("cali+", "cali"));
        assert!(!matches("cali+", "eth0"));
        assert!(matches("!eth0", "eni1234"));
        assert!(!matches("!eth0,!eth1", "eth1"));
        assert!(!matches("eth0", "eth01"));
        assert!(matches("+", "anything"));
    }
}
