//! The template of the source identity: who stands behind a session, through every further role.
//!
//! Pure. `{namespace}`, `{service-account}` and `{pod}` are filled in for each pod. A template that
//! names the pod makes every pod's session its own, with an STS call for each.

use super::{PodFacts, sanitised};

/// A checked template (`--source-identity`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceIdentity(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Namespace,
    ServiceAccount,
    Pod,
}

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// A brace that is not closed or not opened.
    #[error("has a brace without its partner")]
    Brace,
    /// A name in braces that means nothing.
    #[error("names {{{0}}}; it may name {{namespace}}, {{service-account}} and {{pod}}")]
    Unknown(String),
    /// `aws:` is not for us.
    #[error("starts with aws:, which AWS keeps for itself")]
    Reserved,
}

/// STS: at most 64 characters.
const BYTES_MAX: usize = 64;

impl SourceIdentity {
    /// Reads a template such as `{namespace}.{service-account}`.
    pub fn parse(template: &str) -> Result<Self, TemplateError> {
        if template.is_empty() {
            return Err(TemplateError::Empty);
        }
        if template
            .get(..4)
            .is_some_and(|start| start.eq_ignore_ascii_case("aws:"))
        {
            return Err(TemplateError::Reserved);
        }
        let mut pieces = Vec::new();
        let mut rest = template;
        while let Some((text, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or(TemplateError::Brace)?;
            push_text(&mut pieces, text)?;
            pieces.push(match name {
                "namespace" => Piece::Namespace,
                "service-account" => Piece::ServiceAccount,
                "pod" => Piece::Pod,
                _ => return Err(TemplateError::Unknown(name.to_owned())),
            });
            rest = after;
        }
        push_text(&mut pieces, rest)?;
        Ok(Self(pieces))
    }

    /// The pod's source identity: 2 to 64 characters that STS accepts.
    pub fn render(&self, pod: PodFacts<'_>) -> String {
        let filled: String = self
            .0
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text,
                Piece::Namespace => pod.namespace,
                Piece::ServiceAccount => pod.service_account,
                Piece::Pod => pod.name,
            })
            .collect();
        // Only ASCII is left, so that bytes are characters. One character is too short for STS.
        let mut identity = sanitised(&filled);
        identity.truncate(BYTES_MAX);
        while identity.len() < 2 {
            identity.push('-');
        }
        identity
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) -> Result<(), TemplateError> {
    if text.contains('}') {
        return Err(TemplateError::Brace);
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::annotations::Annotations;

    #[track_caller]
    fn check(template: &str, expected: &str) {
        let pod = PodFacts {
            namespace: "shop",
            name: "web-0",
            uid: "u",
            service_account: "cart",
            is_static: false,
            annotations: &Annotations::default(),
            service_account_annotations: None,
            permitted: None,
        };
        let got = SourceIdentity::parse(template)
            .map_or_else(|error| error.to_string(), |template| template.render(pod));
        assert_eq!(got, expected, "for {template:?}");
    }

    #[test]
    fn templates_are_filled_in_and_made_fit_for_sts() {
        check("{namespace}.{service-account}", "shop.cart");
        check("{namespace}/{pod}", "shop-web-0");
        check("x", "x-");
        check(&"y".repeat(80), &"y".repeat(64));
    }

    #[test]
    fn broken_templates_are_refused() {
        check("", "is empty");
        check("{namespace", "has a brace without its partner");
        check("namespace}", "has a brace without its partner");
        check(
            "{a}b}",
            "names {a}; it may name {namespace}, {service-account} and {pod}",
        );
        check("{pod}b}", "has a brace without its partner");
        check("AWS:x", "starts with aws:, which AWS keeps for itself");
    }
}
