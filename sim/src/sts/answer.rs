//! The service's answers in XML, as the query protocol writes them. Pure.

use jiff::Timestamp;

use super::identity::Identity;
use super::issued::Session;
use super::refusal::Refusal;
use super::request::AssumeRole;

/// What a session token may grow to; tells how much of it this one uses.
const TOKEN_CHARS_MAX: usize = 4096;

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// `<ErrorResponse>`.
pub(super) fn error(refusal: &Refusal, request_id: &str) -> String {
    format!(
        "<ErrorResponse xmlns=\"{NAMESPACE}\">\n  <Error>\n    <Type>{}</Type>\n    <Code>{}</Code>\n    \
         <Message>{}</Message>\n  </Error>\n  <RequestId>{request_id}</RequestId>\n</ErrorResponse>\n",
        refusal.party(),
        refusal.code(),
        escape(refusal.message()),
    )
}

fn response(action: &str, result: &str, request_id: &str) -> String {
    format!(
        "<{action}Response xmlns=\"{NAMESPACE}\">\n  <{action}Result>\n{result}  </{action}Result>\n  \
         <ResponseMetadata>\n    <RequestId>{request_id}</RequestId>\n  </ResponseMetadata>\n</{action}Response>\n"
    )
}

fn time(at: Timestamp, fractional: bool) -> String {
    let form = if fractional {
        "%Y-%m-%dT%H:%M:%S.%3fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    at.strftime(form).to_string()
}

/// `<AssumeRoleResponse>`.
pub(super) fn assume_role(
    request: &AssumeRole,
    session: &Session,
    fractional: bool,
    request_id: &str,
) -> String {
    let mut result = format!(
        "    <Credentials>\n      <AccessKeyId>{}</AccessKeyId>\n      \
         <SecretAccessKey>{}</SecretAccessKey>\n      <SessionToken>{}</SessionToken>\n      \
         <Expiration>{}</Expiration>\n    </Credentials>\n    <AssumedRoleUser>\n      \
         <AssumedRoleId>{}</AssumedRoleId>\n      <Arn>{}</Arn>\n    </AssumedRoleUser>\n",
        session.access_key_id,
        session.secret_access_key,
        session.token,
        time(session.expires_at, fractional),
        escape(session.identity.user_id()),
        escape(session.identity.arn()),
    );
    let size = session.token.len();
    let mut more = vec![
        ("SessionTokenSize", size.to_string()),
        (
            "SessionTokenUtilization",
            (size * 100 / TOKEN_CHARS_MAX).to_string(),
        ),
    ];
    if let Some(percent) = request.packed_percent {
        more.push(("PackedPolicySize", percent.to_string()));
    }
    if let Some(identity) = &request.source_identity {
        more.push(("SourceIdentity", escape(identity)));
    }
    result.extend(
        more.iter()
            .map(|(name, text)| format!("    <{name}>{text}</{name}>\n")),
    );
    response("AssumeRole", &result, request_id)
}

/// `<GetCallerIdentityResponse>`.
pub(super) fn caller_identity(caller: &Identity, request_id: &str) -> String {
    let result = format!(
        "    <Arn>{}</Arn>\n    <UserId>{}</UserId>\n    <Account>{}</Account>\n",
        escape(caller.arn()),
        escape(caller.user_id()),
        caller.account(),
    );
    response("GetCallerIdentity", &result, request_id)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{error, time};
    use crate::sts::refusal::Refusal;

    #[test]
    fn errors_are_escaped_and_say_whose_fault_it_is() {
        let xml = error(&Refusal::invalid("a < b & c"), "id-1");
        assert!(
            xml.contains("<Type>Sender</Type>\n    <Code>ValidationError</Code>"),
            "{xml}"
        );
        assert!(xml.contains("<Message>a &lt; b &amp; c</Message>"), "{xml}");
        assert!(error(&Refusal::fault(503), "id-1").contains("<Type>Receiver</Type>"));
    }

    #[test]
    fn expirations() {
        let at: Timestamp = "2030-01-01T00:00:00.25Z".parse().unwrap();
        assert_eq!(time(at, false), "2030-01-01T00:00:00Z");
        assert_eq!(time(at, true), "2030-01-01T00:00:00.250Z");
    }
}
