//! A boolean flag that remembers whether it was given.
//!
//! `--flag`, `--flag=true`, `--flag=false` and, through [`super::kingpin`], `--no-flag`.

use std::str::FromStr;

/// What a boolean flag was set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switch {
    /// `--flag`
    On,
    /// `--no-flag`
    Off,
}

/// Neither `true` nor `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected true or false")]
pub(super) struct NotABoolean;

impl Switch {
    /// Whether it was switched on.
    pub(super) const fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}

impl FromStr for Switch {
    type Err = NotABoolean;

    fn from_str(text: &str) -> Result<Self, NotABoolean> {
        match text {
            "true" => Ok(Self::On),
            "false" => Ok(Self::Off),
            _ => Err(NotABoolean),
        }
    }
}

/// Whether a flag that is off by default was switched on.
pub(super) fn is_on(switch: Option<Switch>) -> bool {
    switch.is_some_and(Switch::is_on)
}
