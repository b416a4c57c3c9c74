//! `--host-interface` in kiam's forms: `eth0`, `cali+`, `!eth0`, `!eni+`.

use std::fmt;
use std::str::FromStr;

/// Bytes of an interface name: the kernel's IFNAMSIZ less the zero at its end.
const NAME_BYTES_MAX: usize = 15;

/// The interfaces that pods' traffic comes in by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInterface {
    negated: bool,
    name: String,
    prefix: bool,
}

/// Why a text names no interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInterface {
    /// Nothing there.
    #[error("is empty: name an interface, for example cali+ or !eth0")]
    Empty,
    /// More than the kernel takes.
    #[error("an interface name has at most {NAME_BYTES_MAX} characters")]
    TooLong,
    /// A slash, white space, or anything that could be taken for another word of a rule.
    #[error("an interface name is made of letters, digits and -_.:@; + may only be its end")]
    Character,
}

impl HostInterface {
    /// Every interface but the named ones is meant.
    pub const fn is_negated(&self) -> bool {
        self.negated
    }

    /// The name, or the beginning of the names, without `!` and `+`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the name is only the beginning.
    pub const fn is_prefix(&self) -> bool {
        self.prefix
    }
}

impl FromStr for HostInterface {
    type Err = InvalidInterface;

    fn from_str(text: &str) -> Result<Self, InvalidInterface> {
        let (negated, rest) = text
            .strip_prefix('!')
            .map_or((false, text), |rest| (true, rest.trim_start()));
        let (name, prefix) = rest
            .strip_suffix('+')
            .map_or((rest, false), |name| (name, true));
        if rest.is_empty() {
            return Err(InvalidInterface::Empty);
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(InvalidInterface::TooLong);
        }
        // A dash in front would be an option of the tool that installs the rule.
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
        if !name.bytes().all(fits) || name.starts_with('-') {
            return Err(InvalidInterface::Character);
        }
        Ok(Self {
            negated,
            name: name.to_owned(),
            prefix,
        })
    }
}

impl fmt::Display for HostInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.negated { "!" } else { "" };
        let plus = if self.prefix { "+" } else { "" };
        write!(f, "{not}{}{plus}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = text.parse::<HostInterface>().map_or_else(
            |error| format!("{error:?}"),
            |interface| {
                let HostInterface {
                    negated,
                    name,
                    prefix,
                } = interface;
                format!("{negated} {name} {prefix}")
            },
        );
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn kiams_forms() {
        check("docker0", "false docker0 false");
        check("cali+", "false cali true");
        check("!eth0", "true eth0 false");
        check("!eni+", "true eni true");
        check("! eth0", "true eth0 false");
        check("+", "false  true");
        check("eth0.100", "false eth0.100 false");
    }

    #[test]
    fn nothing_that_could_be_another_word_of_a_rule() {
        check("", "Empty");
        check("!", "Empty");
        check("a b", "Character");
        check("eth0;drop", "Character");
        check("eth\"0", "Character");
        check("-j", "Character");
        check("a+b", "Character");
        check("a/b", "Character");
        check("sixteencharacter", "TooLong");
    }
}
