//! What is wrong with a message: the field and the rule, never the value.
//!
//! The value may be a secret, or bytes meant to confuse whoever reads the log.

/// A field that breaks a rule of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} {rule}")]
pub struct Malformed {
    /// The field as the `.proto` names it, for example `pod.ips`.
    pub field: &'static str,
    /// What it breaks, for example `is missing`.
    pub rule: &'static str,
}

impl Malformed {
    pub(crate) const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }

    pub(crate) const fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }

    pub(crate) const fn too_long(field: &'static str) -> Self {
        Self::new(field, "is too long")
    }
}

/// A non-empty text of at most `max` bytes of printable ASCII without white space.
pub(crate) fn token(text: &str, field: &'static str, max: usize) -> Result<(), Malformed> {
    if text.is_empty() {
        return Err(Malformed::missing(field));
    }
    if text.len() > max {
        return Err(Malformed::too_long(field));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Malformed::new(
            field,
            "holds white space, control or non-ASCII characters",
        ));
    }
    Ok(())
}
