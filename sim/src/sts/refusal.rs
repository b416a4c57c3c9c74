//! The service's refusals: code, status and words of the real STS.

use http::StatusCode;

use super::identity::Identity;

/// Why a request was not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    pub(super) const fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) const fn code(&self) -> &'static str {
        self.code
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Whose fault it is.
    pub(super) fn party(&self) -> &'static str {
        if self.status.is_server_error() {
            "Receiver"
        } else {
            "Sender"
        }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "ValidationError", message)
    }

    /// A parameter that breaks a rule, in the words of AWS' validation.
    pub(super) fn constraint(value: &str, field: &str, rule: &str) -> Self {
        Self::invalid(format!(
            "1 validation error detected: Value '{value}' at '{field}' failed to satisfy constraint: {rule}"
        ))
    }

    pub(super) fn over_session_max() -> Self {
        Self::invalid(
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
        )
    }

    pub(super) fn over_chaining_cap() -> Self {
        Self::invalid(
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.",
        )
    }

    pub(super) fn malformed_policy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MalformedPolicyDocument", message)
    }

    pub(super) fn packed_policy_too_large() -> Self {
        let message = "Packed size of the session tags and policies is over the limit";
        Self::new(StatusCode::BAD_REQUEST, "PackedPolicyTooLarge", message)
    }

    pub(super) fn denied(caller: &Identity, role_arn: &str) -> Self {
        let message = format!(
            "User: {} is not authorized to perform: sts:AssumeRole on resource: {role_arn}",
            caller.arn()
        );
        Self::new(StatusCode::FORBIDDEN, "AccessDenied", message)
    }

    pub(super) fn throttled() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Throttling", "Rate exceeded")
    }

    pub(super) fn unsigned() -> Self {
        let message = "Request is missing Authentication Token";
        Self::new(StatusCode::FORBIDDEN, "MissingAuthenticationToken", message)
    }

    pub(super) fn invalid_token() -> Self {
        let message = "The security token included in the request is invalid.";
        Self::new(StatusCode::FORBIDDEN, "InvalidClientTokenId", message)
    }

    pub(super) fn expired_token() -> Self {
        let message = "The security token included in the request is expired";
        Self::new(StatusCode::FORBIDDEN, "ExpiredToken", message)
    }

    pub(super) fn no_such_action(action: &str) -> Self {
        let message = format!("Could not find operation {action} for version 2011-06-15");
        Self::new(StatusCode::BAD_REQUEST, "InvalidAction", message)
    }

    pub(super) fn no_such_version(version: &str) -> Self {
        let message = format!("Could not find version {version}");
        Self::new(StatusCode::BAD_REQUEST, "InvalidAction", message)
    }

    pub(super) fn method() -> Self {
        let message = "Only GET and POST are understood";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "InvalidAction", message)
    }

    pub(super) fn too_large() -> Self {
        let message = "The request is larger than the service takes";
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            message,
        )
    }

    /// The answer to a request that a fault turned away.
    pub(super) fn fault(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (code, message) = match status.as_u16() {
            429 => ("Throttling", "Rate exceeded"),
            503 => (
                "ServiceUnavailable",
                "Service is unavailable, please try again later.",
            ),
            _ => (
                "InternalFailure",
                "The request processing has failed because of an unknown error.",
            ),
        };
        Self::new(status, code, message)
    }
}
