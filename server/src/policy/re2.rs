//! Rewrites an expression in Go's syntax (RE2, as kiam has it) into the `regex` crate's.
//!
//! Pure. The two dialects look alike and differ in places that matter for a permission: in the
//! `regex` crate `&&`, `--`, `~~` and `[` mean something inside a class, `{` alone is an error,
//! `\<` is a word boundary and `\Q…\E` does not exist. So the expression is read as Go reads it and
//! written out again with every literal escaped. What Go has and we have not (`\pL`) is refused by
//! name, and what only the `regex` crate has (`(?x)`) is refused as Go does. Where Go refuses and
//! we do not (`a**`), nothing is matched that the expression does not say.
//!
//! Only ASCII text is ever matched, so that characters beyond it are left out of classes.

use std::fmt::Write as _;

/// Why an expression cannot be rewritten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untranslatable {
    /// More opened than closed, or the other way round.
    #[error("it has a parenthesis without its partner")]
    Parenthesis,
    /// A class that is not closed.
    #[error("it has a [ without a ]")]
    Bracket,
    /// `\` at the end, `\y`, a back reference.
    #[error("\\{0} means nothing in it")]
    Escape(String),
    /// `[[:alfa:]]`.
    #[error("it has a [:class:] that is none of {}", POSIX_CLASSES.join(", "))]
    Class,
    /// `[z-a]`.
    #[error("it has a range whose end comes before its start")]
    Range,
    /// `(?=`, `(?x)`.
    #[error("it has a group that begins with (? and is none of (?:, (?P<name>, (?i), (?s), (?m)")]
    Group,
    /// `\pL`.
    #[error("it has \\p, which is not supported; ARNs are ASCII, so [A-Za-z] does the same")]
    UnicodeClass,
}

/// What may stand between `[:` and `:]`, after a `^` or not.
const POSIX_CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

/// The same expression, for [`regex::bytes`] without Unicode.
pub(super) fn translate(expression: &str) -> Result<String, Untranslatable> {
    let mut translation = Translation {
        rest: expression,
        out: String::with_capacity(expression.len() * 2),
    };
    translation.all()?;
    Ok(translation.out)
}

struct Translation<'a> {
    rest: &'a str,
    out: String,
}

impl<'a> Translation<'a> {
    fn all(&mut self) -> Result<(), Untranslatable> {
        let mut depth = 0_usize;
        while let Some(c) = self.next() {
            match c {
                '\\' => self.escape()?,
                '[' => self.class()?,
                '(' => depth += self.group()?,
                ')' => {
                    depth = depth.checked_sub(1).ok_or(Untranslatable::Parenthesis)?;
                    self.out.push(')');
                }
                '{' => match counted_repetition(self.rest) {
                    Some(counted) => {
                        self.out.push('{');
                        self.out.push_str(counted);
                        self.rest = self.rest.strip_prefix(counted).unwrap_or_default();
                    }
                    None => self.literal('{'),
                },
                '*' | '+' | '?' | '|' | '^' | '$' | '.' => self.out.push(c),
                _ => self.literal(c),
            }
        }
        if depth == 0 {
            Ok(())
        } else {
            Err(Untranslatable::Parenthesis)
        }
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        self.rest = chars.as_str();
        Some(c)
    }

    fn take(&mut self, prefix: &str) -> bool {
        self.rest
            .strip_prefix(prefix)
            .map(|rest| self.rest = rest)
            .is_some()
    }

    /// Everything up to `end`, which is taken too.
    fn take_until(&mut self, end: &str) -> Option<&'a str> {
        let (text, rest) = self.rest.split_once(end)?;
        self.rest = rest;
        Some(text)
    }

    fn literal(&mut self, c: char) {
        if c.is_ascii() && !c.is_ascii_alphanumeric() {
            // Writing to a string cannot fail.
            let _infallible = write!(self.out, "\\x{:02X}", u32::from(c));
        } else {
            self.out.push(c);
        }
    }

    /// What follows `(`. Returns 1 when it opens a group, 0 when it only sets flags.
    fn group(&mut self) -> Result<usize, Untranslatable> {
        if !self.take("?") {
            self.out.push('(');
            return Ok(1);
        }
        if self.take("P<") || self.take("<") {
            // A name changes nothing of what is matched, and Go's names are not all ours.
            let name = self.take_until(">").ok_or(Untranslatable::Group)?;
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(is_word) {
                return Err(Untranslatable::Group);
            }
            self.out.push('(');
            return Ok(1);
        }
        let flags_len = self
            .rest
            .find(|c: char| !"imsU-".contains(c))
            .ok_or(Untranslatable::Group)?;
        let (flags, rest) = self
            .rest
            .split_at_checked(flags_len)
            .ok_or(Untranslatable::Group)?;
        self.rest = rest;
        match self.next() {
            Some(end @ (':' | ')')) => {
                self.out.push_str("(?");
                self.out.push_str(flags);
                self.out.push(end);
                Ok(usize::from(end == ':'))
            }
            _ => Err(Untranslatable::Group),
        }
    }

    /// What follows `\` outside a class.
    fn escape(&mut self) -> Result<(), Untranslatable> {
        if self.take("Q") {
            let quoted = match self.take_until("\\E") {
                Some(quoted) => quoted,
                None => std::mem::take(&mut self.rest),
            };
            quoted.chars().for_each(|c| self.literal(c));
            return Ok(());
        }
        for same in ["A", "z", "b", "B"] {
            if self.take(same) {
                self.out.push('\\');
                self.out.push_str(same);
                return Ok(());
            }
        }
        if self.perl_class()? {
            return Ok(());
        }
        let c = self.escaped()?;
        self.literal(c);
        Ok(())
    }

    /// `\d` and the like, in and outside classes; the backslash is already taken.
    fn perl_class(&mut self) -> Result<bool, Untranslatable> {
        match self.rest.chars().next() {
            Some(class @ ('d' | 'D' | 's' | 'S' | 'w' | 'W')) => {
                self.next();
                self.out.push('\\');
                self.out.push(class);
                Ok(true)
            }
            Some('p' | 'P') => Err(Untranslatable::UnicodeClass),
            _ => Ok(false),
        }
    }

    /// The character that an escape stands for; the backslash is already taken.
    fn escaped(&mut self) -> Result<char, Untranslatable> {
        let wrong = |what: &str| Untranslatable::Escape(what.to_owned());
        let c = self.next().ok_or_else(|| wrong(""))?;
        match c {
            'a' => Ok('\x07'),
            'f' => Ok('\x0C'),
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            't' => Ok('\t'),
            'v' => Ok('\x0B'),
            'x' => self.hexadecimal().ok_or_else(|| wrong("x")),
            // One digit alone would be a back reference.
            '1'..='7' if !self.rest.starts_with(|c: char| c.is_digit(8)) => {
                Err(wrong(&c.to_string()))
            }
            '0'..='7' => {
                let mut value = c.to_digit(8).unwrap_or_default();
                for _ in 0..2 {
                    let Some(digit) = self.rest.chars().next().and_then(|c| c.to_digit(8)) else {
                        break;
                    };
                    self.next();
                    value = value * 8 + digit;
                }
                char::from_u32(value).ok_or_else(|| wrong("0"))
            }
            _ if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok(c),
            _ => Err(wrong(&c.to_string())),
        }
    }

    /// `41` or `{41}`.
    fn hexadecimal(&mut self) -> Option<char> {
        let digits = if self.take("{") {
            self.take_until("}")?
        } else {
            let (digits, rest) = self.rest.split_at_checked(2)?;
            self.rest = rest;
            digits
        };
        // `from_str_radix` would take a sign.
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        char::from_u32(u32::from_str_radix(digits, 16).ok()?)
    }

    /// What follows `[`.
    fn class(&mut self) -> Result<(), Untranslatable> {
        let negated = self.take("^");
        let start = self.out.len();
        self.out.push_str(if negated { "[^" } else { "[" });
        let empty = self.out.len();
        let mut first = true;
        while first || !self.take("]") {
            first = false;
            self.class_item()?;
        }
        if self.out.len() == empty {
            // Only characters beyond ASCII were in it.
            self.out.truncate(start);
            self.out
                .push_str(if negated { r"[\x00-\x7F]" } else { "[a&&b]" });
        } else {
            self.out.push(']');
        }
        Ok(())
    }

    fn class_item(&mut self) -> Result<(), Untranslatable> {
        if let Some(after) = self.rest.strip_prefix("[:")
            && let Some((name, rest)) = after.split_once(":]")
        {
            let bare = name.strip_prefix('^').unwrap_or(name);
            if !POSIX_CLASSES.contains(&bare) {
                return Err(Untranslatable::Class);
            }
            self.rest = rest;
            // They mean the same in both. Any other name would be taken for a class within this one.
            let _infallible = write!(self.out, "[:{name}:]");
            return Ok(());
        }
        if let Some(after) = self.rest.strip_prefix('\\') {
            let before = std::mem::replace(&mut self.rest, after);
            if self.perl_class()? {
                return Ok(());
            }
            self.rest = before;
        }
        let low = self.class_char()?;
        let is_range = self
            .rest
            .strip_prefix('-')
            .is_some_and(|after| !after.is_empty() && !after.starts_with(']'));
        let high = if is_range {
            self.next();
            self.class_char()?
        } else {
            low
        };
        if high < low {
            return Err(Untranslatable::Range);
        }
        if low.is_ascii() {
            self.literal(low);
            if high > low {
                self.out.push('-');
                self.literal(high.min('\x7F'));
            }
        }
        Ok(())
    }

    fn class_char(&mut self) -> Result<char, Untranslatable> {
        match self.next().ok_or(Untranslatable::Bracket)? {
            '\\' => self.escaped(),
            c => Ok(c),
        }
    }
}

/// `2}`, `2,}` or `2,3}` at the start of what follows a brace. Anything else is a literal brace.
fn counted_repetition(rest: &str) -> Option<&str> {
    let (inside, _after) = rest.split_once('}')?;
    // `{01}` is literal in Go.
    let is_number = |text: &str| match text.as_bytes() {
        [b'0', _, ..] | [] => false,
        digits => digits.iter().all(u8::is_ascii_digit),
    };
    let counted = match inside.split_once(',') {
        Some((min, max)) => is_number(min) && (max.is_empty() || is_number(max)),
        None => is_number(inside),
    };
    counted.then(|| rest.get(..=inside.len())).flatten()
}

#[cfg(test)]
mod tests;
