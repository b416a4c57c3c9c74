//! What an error code of STS means, and what a developer can do about it.
//!
//! Pure. Decided by the code: STS throttles with 400. The status counts only where the code is
//! unknown, and then only 403, which means no whoever says it. The one message that is read is the
//! one that has no code of its own, the cap on chained roles.

use super::IssueError;
use crate::policy::{RoleRequest, Session};

const THROTTLED: [&str; 12] = [
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "BandwidthLimitExceeded",
    "SlowDown",
    // What a 503 says; SDKs take it for throttling too.
    "ServiceUnavailable",
];

const DENIED: [&str; 3] = [
    "AccessDenied",
    "AccessDeniedException",
    "UnauthorizedOperation",
];

/// The signature or the keys behind it are at fault, and those are the server's.
const OWN_CREDENTIALS: [&str; 10] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "InvalidAccessKeyId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "RequestExpired",
    "AuthFailure",
];

const INVALID: [&str; 12] = [
    "ValidationError",
    "ValidationException",
    "MalformedPolicyDocument",
    "MalformedPolicyDocumentException",
    "PackedPolicyTooLarge",
    "PackedPolicyTooLargeException",
    "RegionDisabledException",
    "InvalidParameterValue",
    "InvalidParameterCombination",
    "MissingParameter",
    "InvalidAction",
    "NoSuchEntity",
];

/// Said of a session longer than an hour whose caller is itself a role.
const CHAINING_CAP: &str = "session limit for roles assumed by role chaining";
const SESSION_MAX: &str = "MaxSessionDuration";

/// Whether STS would grant this, were it for an hour at most.
pub(super) fn is_chaining_cap(code: &str, message: &str) -> bool {
    INVALID.contains(&code) && message.contains(CHAINING_CAP)
}

/// The status of a refusal.
const FORBIDDEN: u16 = 403;

/// What STS, or whoever answered in its place, said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    /// Of HTTP.
    pub(super) status: u16,
    /// Empty when it gave none.
    pub(super) code: &'a str,
    /// May be empty.
    pub(super) message: &'a str,
}

/// The error for an answer; `caller` is who we are to AWS, as far as that is known.
pub(super) fn classify(
    words: Words<'_>,
    request: &RoleRequest,
    caller: Option<&str>,
) -> IssueError {
    let Words {
        status,
        code,
        message,
    } = words;
    if THROTTLED.contains(&code) {
        IssueError::Throttled(said(code, message))
    } else if DENIED.contains(&code) {
        IssueError::Denied(denied(message, request, caller))
    } else if OWN_CREDENTIALS.contains(&code) {
        IssueError::OwnCredentials(said(code, message))
    } else if INVALID.contains(&code) {
        IssueError::Invalid(invalid(code, message, request))
    } else if status == FORBIDDEN {
        let message = said(&format!("{status} {code}"), message);
        IssueError::Denied(denied(message.trim(), request, caller))
    } else {
        IssueError::Unreachable(said(code, message))
    }
}

fn said(code: &str, message: &str) -> String {
    if message.is_empty() {
        code.to_owned()
    } else {
        format!("{code}: {message}")
    }
}

/// Names every action the trust policy must allow: each is refused with the same code.
fn denied(message: &str, request: &RoleRequest, caller: Option<&str>) -> String {
    let Session {
        role,
        external_id,
        tags,
        source_identity,
        ..
    } = request.session();
    let caller = caller.unwrap_or("the kiam server's role");
    let mut actions = "sts:AssumeRole".to_owned();
    if !tags.is_empty() {
        actions.push_str(", sts:TagSession");
    }
    if source_identity.is_some() {
        actions.push_str(", sts:SetSourceIdentity");
    }
    let condition = if external_id.is_some() {
        " and accept the annotated external id"
    } else {
        ""
    };
    format!(
        "AWS refuses role {role}: it must exist, and its trust policy must allow {caller} \
         {actions}{condition}. STS said: {message}"
    )
}

fn invalid(code: &str, message: &str, request: &RoleRequest) -> String {
    let Session { role, duration, .. } = request.session();
    if message.contains(SESSION_MAX) {
        let seconds = duration.as_secs();
        return format!(
            "role {role} does not allow sessions of {seconds} s: raise its maximum session \
             duration, or lower the annotation iam.amazonaws.com/session-duration"
        );
    }
    match code {
        "PackedPolicyTooLarge" | "PackedPolicyTooLargeException" => format!(
            "session tags and policies for role {role} are together too large for AWS: use fewer \
             or shorter ones. STS said: {message}"
        ),
        "RegionDisabledException" => format!(
            "STS is switched off in the server's region for the account of role {role}: its \
             administrator can activate it, or the server can use another region. STS said: \
             {message}"
        ),
        _ => {
            format!("AWS does not accept the request for role {role}. STS said: {code}: {message}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::annotations::Tag;
    use crate::arn::RoleArn;
    use crate::sts::Retry;

    fn request(change: impl FnOnce(&mut Session)) -> RoleRequest {
        let mut session = Session {
            role: RoleArn::parse("arn:aws:iam::123456789012:role/reader").unwrap(),
            name: "kiam-kiam".into(),
            external_id: None,
            tags: vec![],
            transitive_keys: vec![],
            policy_arns: vec![],
            source_identity: None,
            duration: Duration::from_hours(2),
        };
        change(&mut session);
        RoleRequest::new(session)
    }

    #[track_caller]
    fn check(code: &str, reason: &str, retry: Retry) {
        check_status(400, code, reason, retry);
    }

    fn words<'a>(code: &'a str, message: &'a str) -> Words<'a> {
        Words {
            status: 400,
            code,
            message,
        }
    }

    #[track_caller]
    fn check_status(status: u16, code: &str, reason: &str, retry: Retry) {
        let words = Words {
            status,
            ..words(code, "words")
        };
        let error = classify(words, &request(|_| {}), None);
        assert_eq!(
            (error.as_str(), error.retry()),
            (reason, retry),
            "for {code}"
        );
        assert!(IssueError::REASONS.contains(&reason));
        assert!(error.to_string().contains("words"), "{error}");
    }

    #[test]
    fn the_code_decides() {
        check("Throttling", "throttled", Retry::InTurn);
        check("RequestLimitExceeded", "throttled", Retry::InTurn);
        check("AccessDenied", "denied", Retry::Rarely);
        check("ValidationError", "invalid", Retry::Rarely);
        check("PackedPolicyTooLarge", "invalid", Retry::Rarely);
        check("RegionDisabledException", "invalid", Retry::Rarely);
        check("ExpiredToken", "own_credentials", Retry::Soon);
        check("InvalidClientTokenId", "own_credentials", Retry::Soon);
        check("InternalFailure", "unreachable", Retry::Soon);
        check("", "unreachable", Retry::Soon);
    }

    #[test]
    fn forbidden_means_denied_where_the_code_is_unknown() {
        check_status(403, "", "denied", Retry::Rarely);
        check_status(403, "SomethingNew", "denied", Retry::Rarely);
        check_status(403, "ExpiredToken", "own_credentials", Retry::Soon);
        check_status(403, "Throttling", "throttled", Retry::InTurn);
        check_status(500, "", "unreachable", Retry::Soon);
    }

    #[test]
    fn no_code_means_two_things() {
        let all = [&THROTTLED[..], &DENIED, &OWN_CREDENTIALS, &INVALID].concat();
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }

    #[test]
    fn a_denial_names_all_that_the_trust_policy_must_allow() {
        let full = request(|session| {
            session.external_id = Some("x1".into());
            session.source_identity = Some("shop".into());
            session.tags = vec![Tag {
                key: "team".into(),
                value: "x".into(),
            }];
        });
        let caller = "arn:aws:iam::123456789012:role/kiam-server";
        assert_eq!(
            classify(words("AccessDenied", "no"), &full, Some(caller)).to_string(),
            "AWS refuses role arn:aws:iam::123456789012:role/reader: it must exist, and its trust \
             policy must allow arn:aws:iam::123456789012:role/kiam-server sts:AssumeRole, \
             sts:TagSession, sts:SetSourceIdentity and accept the annotated external id. STS \
             said: no"
        );
    }

    #[test]
    fn too_long_a_session_is_explained() {
        let message =
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
        let error = classify(words("ValidationError", message), &request(|_| {}), None);
        assert_eq!(
            error.to_string(),
            "role arn:aws:iam::123456789012:role/reader does not allow sessions of 7200 s: raise \
             its maximum session duration, or lower the annotation \
             iam.amazonaws.com/session-duration"
        );
    }

    #[test]
    fn the_chaining_cap_is_known_by_its_words() {
        let message = "The requested DurationSeconds exceeds the 1 hour session limit for roles \
                       assumed by role chaining.";
        assert!(is_chaining_cap("ValidationError", message));
        assert!(!is_chaining_cap("AccessDenied", message));
        assert!(!is_chaining_cap("ValidationError", "too long"));
    }
}
