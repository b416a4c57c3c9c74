//! Whether a namespace insists on `IMDSv2`.

use super::{Annotations, IMDS_V2};

/// What a namespace says of requests without an `IMDSv2` token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImdsV2<'a> {
    /// They are answered: it says nothing, or `optional`.
    Optional,
    /// They are refused.
    Required,
    /// They are refused, because whoever wrote this cannot have meant that nothing changes.
    TakenForRequired(&'a str),
}

impl<'a> ImdsV2<'a> {
    /// What the annotations of a namespace say. The words are those of EC2's own setting.
    pub fn of(namespace: &'a Annotations) -> Self {
        let value = namespace.get(IMDS_V2).unwrap_or_default();
        match value.trim().to_ascii_lowercase().as_str() {
            "" | "optional" => Self::Optional,
            "required" => Self::Required,
            _ => Self::TakenForRequired(value),
        }
    }

    /// Whether requests without a token are refused.
    pub const fn is_required(self) -> bool {
        match self {
            Self::Optional => false,
            Self::Required | Self::TakenForRequired(_) => true,
        }
    }

    /// The value, if it is none that means something.
    pub const fn odd(self) -> Option<&'a str> {
        match self {
            Self::Optional | Self::Required => None,
            Self::TakenForRequired(value) => Some(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(value: Option<&str>, required: bool, odd: bool) {
        let annotations: Annotations = value.map(|value| (IMDS_V2, value)).into_iter().collect();
        let imds = ImdsV2::of(&annotations);
        assert_eq!(imds.is_required(), required, "{value:?}");
        assert_eq!(imds.odd(), value.filter(|_| odd), "{value:?}");
    }

    #[test]
    fn what_cannot_be_understood_is_required() {
        check(None, false, false);
        check(Some(""), false, false);
        check(Some("optional"), false, false);
        for value in ["required", "Required", "REQUIRED", " required "] {
            check(Some(value), true, false);
        }
        for value in ["true", "yes", "1", "false", "require", "v2"] {
            check(Some(value), true, true);
        }
    }
}
