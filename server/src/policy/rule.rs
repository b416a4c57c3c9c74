//! A namespace's rule: the expression that a role's ARN must match.
//!
//! Pure. An expression is compiled once, however many pods and namespaces use it, and only within
//! bounds: anyone who may edit a Namespace chooses it, and the `regex` crate's matching time is
//! linear in the ARN whatever it says. Unlike kiam's, an expression with alternatives is matched as
//! a whole: `foo|bar` there let `fooEVIL` through.

use std::collections::HashMap;
use std::sync::Arc;

use kiam_wire::{Refusal, Refused};
use regex::bytes::{Regex, RegexBuilder};

use super::re2::{self, Untranslatable};
use crate::annotations::PERMITTED;
use crate::arn::RoleArn;

/// How much of the ARN an expression must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matching {
    /// All of it, whatever alternatives the expression has.
    Whole,
    /// Any part of it (`--disable-strict-namespace-regexp`).
    Anywhere,
}

/// A compiled expression.
#[derive(Debug)]
pub struct Rule(Regex);

/// Why an expression cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Longer than anyone needs.
    #[error("it is longer than {EXPRESSION_BYTES_MAX} characters")]
    Long,
    /// Not an expression, or one that we cannot read as Go does.
    #[error("{0}")]
    Untranslatable(#[from] Untranslatable),
    /// Not an expression.
    #[error("it is not a regular expression: {0}")]
    Syntax(String),
    /// Large counts or nesting.
    #[error("it is too complex; use fewer counted repetitions")]
    Complex,
}

const EXPRESSION_BYTES_MAX: usize = 4096;
/// Bytes of a compiled expression; what people write needs a few KiB.
const COMPILED_BYTES_MAX: usize = 256 * 1024;
/// Bytes that matching may use beside it.
const CACHE_BYTES_MAX: usize = 256 * 1024;
const NESTING_MAX: u32 = 50;
/// Expressions of one generation; see [`Rules`].
const GENERATION_MAX: usize = 1_024;

impl Rule {
    /// Compiles an expression in Go's syntax.
    pub fn compile(expression: &str, matching: Matching) -> Result<Self, RuleError> {
        if expression.len() > EXPRESSION_BYTES_MAX {
            return Err(RuleError::Long);
        }
        let translated = re2::translate(expression)?;
        let anchored = match matching {
            Matching::Whole => format!(r"\A(?:{translated})\z"),
            Matching::Anywhere => translated,
        };
        RegexBuilder::new(&anchored)
            .unicode(false)
            .size_limit(COMPILED_BYTES_MAX)
            .dfa_size_limit(CACHE_BYTES_MAX)
            .nest_limit(NESTING_MAX)
            .build()
            .map(Self)
            .map_err(|error| {
                if matches!(error, regex::Error::CompiledTooBig(_)) {
                    RuleError::Complex
                } else {
                    RuleError::Syntax(last_line(&error.to_string()))
                }
            })
    }

    /// Whether it permits the role.
    pub fn permits(&self, role: &RoleArn) -> bool {
        self.0.is_match(role.as_str().as_bytes())
    }
}

/// The `regex` crate draws a picture of the expression; its last line is what went wrong.
fn last_line(picture: &str) -> String {
    let line = picture.lines().last().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// Compiled rules, by expression. Owned by whoever decides.
///
/// Bounded by two generations: when the young one is full, the old one is dropped and the young one
/// becomes old. An expression in use moves back to the young one, so that a cluster with fewer than
/// [`GENERATION_MAX`] different expressions compiles each once.
#[derive(Debug)]
pub struct Rules {
    matching: Matching,
    young: HashMap<Box<str>, Compiled>,
    old: HashMap<Box<str>, Compiled>,
}

type Compiled = Result<Arc<Rule>, RuleError>;

impl Rules {
    /// Nothing compiled yet.
    pub fn new(matching: Matching) -> Self {
        Self {
            matching,
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }

    /// Whether the namespace's rule, `permitted`, permits the role; else why not.
    pub fn permits(
        &mut self,
        namespace: &str,
        permitted: Option<&str>,
        role: &RoleArn,
    ) -> Result<(), Refused> {
        let Some(expression) = permitted.filter(|expression| !expression.is_empty()) else {
            let text = format!(
                "namespace {namespace} has no annotation {PERMITTED}, so its pods may have no \
                 role; add one whose regular expression matches {role}"
            );
            return Err(Refused::new(Refusal::NamespaceHasNoRule, &text));
        };
        match self.compiled(expression) {
            Ok(rule) if rule.permits(role) => Ok(()),
            Ok(_) => {
                let part = match self.matching {
                    Matching::Whole => "the whole of it",
                    Matching::Anywhere => "any part of it",
                };
                let text = format!(
                    "namespace {namespace} does not permit role {role}: its annotation \
                     {PERMITTED} does not match {part}: {expression}"
                );
                Err(Refused::new(Refusal::NamespaceForbids, &text))
            }
            Err(error) => {
                let text = format!(
                    "annotation {PERMITTED} of namespace {namespace} cannot be used: {error}"
                );
                Err(Refused::new(Refusal::NamespaceRuleInvalid, &text))
            }
        }
    }

    fn compiled(&mut self, expression: &str) -> Compiled {
        if let Some(compiled) = self.young.get(expression) {
            return compiled.clone();
        }
        let compiled = self
            .old
            .remove(expression)
            .unwrap_or_else(|| Rule::compile(expression, self.matching).map(Arc::new));
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(expression.into(), compiled.clone());
        compiled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arn::BaseArn;

    const BASE: &str = "arn:aws:iam::123456789012:role/";

    /// `strict` and `loose` say whether `expression` permits `role` in each mode.
    #[track_caller]
    fn check(base: &str, expression: &str, role: &str, strict: bool, loose: bool) {
        let role = BaseArn::parse(base).unwrap().resolve(role).unwrap();
        for (matching, expected) in [(Matching::Whole, strict), (Matching::Anywhere, loose)] {
            let got = Rules::new(matching).permits("ns", Some(expression), &role);
            assert_eq!(
                got.is_ok(),
                expected,
                "{expression:?} on {role}, {matching:?}: {got:?}"
            );
        }
    }

    /// kiam's own table. Its tests with an empty base ARN have our base here, so that their
    /// expressions begin with what leads to the name.
    #[test]
    fn kiams_table() {
        // TestNamespacePolicy and …WithSlash.
        let red = ".*/red.*$|^.*/.red.*$";
        check(BASE, red, "red_role", true, true);
        check(BASE, red, "/red_role", true, true);
        check(BASE, red, "orange_role", false, false);
        // TestVagueNamespaceAnnotationRegex, TestNotAllowedWithoutWildcardNamespaceAnnotationRegex.
        check(BASE, "o", "role", false, true);
        check(BASE, "role", "role", false, true);
        // TestAllowedWithWildcardNamespaceAnnotationRegex.
        check(BASE, ".*role", "role", true, true);
        // TestAllowedWithARNResolverBaseRole, TestNotAllowedWithoutARNResolverBaseRole.
        let exact = "arn:aws:iam::123456789012:role/myrole";
        check(BASE, exact, "myrole", true, true);
        check(BASE, "^myrole$", "myrole", false, false);
        // …WithSubPathRegexInNamespace, …WithExactSubPathInNamespace, and their negatives.
        let sub = "arn:aws:iam::123456789012:role/subpath/";
        let any = "arn:aws:iam::123456789012:role/subpath/.*";
        check(sub, any, "myrole", true, true);
        check(BASE, any, "myrole", false, false);
        check(BASE, any, "subpath/myrole", true, true);
        let exact = "arn:aws:iam::123456789012:role/subpath/myrole";
        check(sub, exact, "myrole", true, true);
        check(BASE, exact, "myrole", false, false);
    }

    #[test]
    fn alternatives_are_matched_as_a_whole() {
        let alternatives = ".*/foo|.*/bar";
        check(BASE, alternatives, "foo", true, true);
        check(BASE, alternatives, "bar", true, true);
        check(BASE, alternatives, "fooEVIL", false, true);
        check(BASE, "arn.*/foo|bar", "EVILbar", false, true);
        check(BASE, "(?m).*/foo$", "foo", true, true);
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let role = BaseArn::parse(BASE).unwrap().resolve("reader").unwrap();
        let refused = |expression: Option<&str>| {
            let refused = Rules::new(Matching::Whole)
                .permits("shop", expression, &role)
                .unwrap_err();
            (refused.reason(), refused.text().to_owned())
        };
        let none = "namespace shop has no annotation iam.amazonaws.com/permitted, so its pods may \
                    have no role; add one whose regular expression matches \
                    arn:aws:iam::123456789012:role/reader";
        assert_eq!(refused(None), (Refusal::NamespaceHasNoRule, none.into()));
        assert_eq!(
            refused(Some("")),
            (Refusal::NamespaceHasNoRule, none.into())
        );
        assert_eq!(
            refused(Some(".*/writer")),
            (
                Refusal::NamespaceForbids,
                "namespace shop does not permit role arn:aws:iam::123456789012:role/reader: its \
                 annotation iam.amazonaws.com/permitted does not match the whole of it: .*/writer"
                    .into()
            )
        );
        for (expression, problem) in [
            ("(", "it has a parenthesis without its partner"),
            (
                "*",
                "it is not a regular expression: repetition operator missing expression",
            ),
            (
                "(?:(?:a{1000}){1000}){1000}",
                "it is too complex; use fewer counted repetitions",
            ),
            (&"a".repeat(4097), "it is longer than 4096 characters"),
        ] {
            let text = format!(
                "annotation iam.amazonaws.com/permitted of namespace shop cannot be used: {problem}"
            );
            assert_eq!(
                refused(Some(expression)),
                (Refusal::NamespaceRuleInvalid, text)
            );
        }
        let deep = format!("{}a{}", "(".repeat(200), ")".repeat(200));
        assert_eq!(refused(Some(&deep)).0, Refusal::NamespaceRuleInvalid);
    }

    #[test]
    fn an_expression_is_compiled_once_while_it_is_in_use() {
        let mut rules = Rules::new(Matching::Whole);
        let used = rules.compiled("used").unwrap();
        for other in 0..3 * GENERATION_MAX {
            rules.compiled(&format!("other{other}")).unwrap();
            assert!(Arc::ptr_eq(&rules.compiled("used").unwrap(), &used));
        }
        assert!(rules.young.len() + rules.old.len() <= 2 * GENERATION_MAX);
        let forgotten = rules.compiled("other0").unwrap();
        assert!(Arc::ptr_eq(&rules.compiled("other0").unwrap(), &forgotten));
    }
}
