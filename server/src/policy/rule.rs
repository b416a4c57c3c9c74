//! A namespace's rule: the expression that a role's ARN must match.
use std::collections::HashMap;
use std::sync::Arc;

use kiam_wire::Refused;

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
pub struct Rule;

/// Why an expression cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {}

/// Compiled rules, by expression. Owned by whoever decides.
#[derive(Debug)]
pub struct Rules {
    matching: Matching,
    compiled: HashMap<Box<str>, Result<Arc<Rule>, RuleError>>,
}

impl Rules {
    /// Nothing compiled yet.
    pub fn new(matching: Matching) -> Self {
        Self {
            matching,
            compiled: HashMap::new(),
        }
    }

    /// Whether the namespace's rule permits the role; else why not.
    pub fn permits(
        &mut self,
        namespace: &str,
        permitted: Option<&str>,
        role: &RoleArn,
    ) -> Result<(), Refused> {
        let _ = (namespace, permitted, role, self.matching, &self.compiled);
        Ok(())
    }
}
