//! An error of the SDK and all that led to it, in words.
//!
//! The SDK's own way of saying it prints whole answers: the body, which holds credentials where an
//! answer is good but for one field, and its date and request id, with which no two errors are
//! alike. These words go to `/why`, to agents and into Kubernetes events, which are counted by
//! their text.

use std::error::Error;

use aws_sdk_sts::error::ErrorMetadata;

/// More is not kept: a gateway may send its whole page as a reason.
const CHARS_MAX: usize = 500;

/// The error and its causes, outermost first, none said twice in a row.
pub(crate) fn in_words(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut cause = Some(error);
    while let Some(current) = cause {
        let words = words(current);
        if !words.is_empty() && !text.ends_with(&words) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&words);
        }
        cause = current.source();
    }
    if let Some((end, _more)) = text.char_indices().nth(CHARS_MAX) {
        text.truncate(end);
    }
    text
}

fn words(error: &(dyn Error + 'static)) -> String {
    let Some(said) = error.downcast_ref::<ErrorMetadata>() else {
        return error.to_string();
    };
    // Among the rest is the id of the request.
    let parts = [said.code(), said.message()];
    let parts: Vec<&str> = parts.into_iter().flatten().collect();
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Outer(&'static str, #[source] Box<dyn Error + Send + Sync>);

    #[test]
    fn each_cause_is_said_once_and_no_request_is_named() {
        let said = ErrorMetadata::builder()
            .code("InternalFailure")
            .message("later")
            .custom("aws_request_id", "1234-5678")
            .build();
        let inner = Outer("service error", Box::new(said));
        let error = Outer("service error", Box::new(inner));
        assert_eq!(in_words(&error), "service error: InternalFailure: later");
        let page = Outer("a", "x".repeat(2_000).into());
        assert_eq!(in_words(&page).chars().count(), CHARS_MAX);
    }
}
