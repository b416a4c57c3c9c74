//! The answers that depend on nobody: rendered once, when a worker starts.
//!
//! Errors on the metadata door have empty bodies: some clients take any body of the role list for
//! a role name. On the container door they are the JSON that SDKs log.

use crate::response::{Media, Response, Status};

/// Every answer that is the same for everyone.
#[derive(Debug)]
pub(super) struct Fixed {
    pub(super) bad_request: Response,
    pub(super) unauthorized: Response,
    pub(super) forbidden: Response,
    pub(super) not_found: Response,
    /// Routes that are read.
    pub(super) method_get: Response,
    /// The token route.
    pub(super) method_put: Response,
    pub(super) content_too_large: Response,
    pub(super) expectation_failed: Response,
    pub(super) head_too_large: Response,
    pub(super) not_implemented: Response,
    pub(super) version_not_supported: Response,
    pub(super) bad_gateway: Response,
    pub(super) gateway_timeout: Response,
    /// With `Retry-After: 1`, which some SDKs honour.
    pub(super) unavailable: Response,
    pub(super) pong: Response,
    pub(super) healthy: Response,
    pub(super) unhealthy: Response,
    pub(super) deaf: Response,
    pub(super) region: Option<Response>,
    pub(super) availability_zone: Option<Response>,
    pub(super) identity_document: Option<Response>,
    pub(super) container: FixedContainer,
}

/// The container door's own.
#[derive(Debug)]
pub(super) struct FixedContainer {
    pub(super) no_token: Response,
    pub(super) not_found: Response,
    pub(super) no_role: Response,
    pub(super) method: Response,
    pub(super) unavailable: Response,
    pub(super) slow_down: Response,
}

impl Fixed {
    pub(super) fn new(region: Option<&str>, availability_zone: Option<&str>) -> Self {
        let empty = |status| Response::new(status, Media::Text, &[], b"");
        let with = |status, name, value| Response::new(status, Media::Text, &[(name, value)], b"");
        let text = |status, body: &str| Response::new(status, Media::Text, &[], body.as_bytes());
        Self {
            bad_request: empty(Status::BadRequest),
            unauthorized: empty(Status::Unauthorized),
            forbidden: empty(Status::Forbidden),
            not_found: empty(Status::NotFound),
            method_get: with(Status::MethodNotAllowed, "Allow", "GET, HEAD"),
            method_put: with(Status::MethodNotAllowed, "Allow", "PUT"),
            content_too_large: empty(Status::ContentTooLarge),
            expectation_failed: empty(Status::ExpectationFailed),
            head_too_large: empty(Status::HeadTooLarge),
            not_implemented: empty(Status::NotImplemented),
            version_not_supported: empty(Status::VersionNotSupported),
            bad_gateway: empty(Status::BadGateway),
            gateway_timeout: empty(Status::GatewayTimeout),
            unavailable: with(Status::Unavailable, "Retry-After", "1"),
            pong: text(Status::Ok, "pong"),
            healthy: text(Status::Ok, "ok"),
            unhealthy: text(Status::Unavailable, "no snapshot yet"),
            deaf: text(Status::Unavailable, "no server is followed"),
            region: region.map(|region| text(Status::Ok, region)),
            availability_zone: availability_zone.map(|zone| text(Status::Ok, zone)),
            identity_document: region.map(|region| {
                let mut document = serde_json::json!({ "region": region });
                if let (Some(zone), Some(fields)) = (availability_zone, document.as_object_mut()) {
                    fields.insert("availabilityZone".to_owned(), zone.into());
                }
                text(Status::Ok, &document.to_string())
            }),
            container: FixedContainer::new(),
        }
    }

    /// The answer to a request that was refused while it was read.
    pub(super) const fn refusal(&self, status: Status) -> &Response {
        match status {
            Status::ContentTooLarge => &self.content_too_large,
            Status::ExpectationFailed => &self.expectation_failed,
            Status::HeadTooLarge => &self.head_too_large,
            Status::NotImplemented => &self.not_implemented,
            Status::VersionNotSupported => &self.version_not_supported,
            Status::BadGateway => &self.bad_gateway,
            Status::GatewayTimeout => &self.gateway_timeout,
            Status::Unavailable => &self.unavailable,
            Status::Unauthorized => &self.unauthorized,
            Status::Forbidden => &self.forbidden,
            Status::NotFound => &self.not_found,
            Status::Ok | Status::BadRequest | Status::MethodNotAllowed => &self.bad_request,
        }
    }
}

impl FixedContainer {
    fn new() -> Self {
        Self {
            no_token: problem(
                Status::Unauthorized,
                "InvalidToken",
                "the Authorization header must hold the pod's projected ServiceAccount token",
            ),
            not_found: problem(Status::NotFound, "NotFound", "only /v1/credentials is here"),
            no_role: problem(Status::NotFound, "NoRole", "the pod asked for no role"),
            method: problem(
                Status::MethodNotAllowed,
                "MethodNotAllowed",
                "credentials are read with GET",
            ),
            unavailable: Response::new(
                Status::Unavailable,
                Media::Json,
                &[("Retry-After", "1")],
                body(
                    "Unavailable",
                    "the pod is not known on this node yet, or its credentials are on the way",
                )
                .as_bytes(),
            ),
            slow_down: Response::new(
                Status::Unavailable,
                Media::Json,
                &[("Retry-After", "1")],
                body("SlowDown", "too many requests").as_bytes(),
            ),
        }
    }
}

/// An error of the container door.
pub(super) fn problem(status: Status, code: &str, message: &str) -> Response {
    Response::new(status, Media::Json, &[], body(code, message).as_bytes())
}

fn body(code: &str, message: &str) -> String {
    serde_json::json!({ "Code": code, "Message": message }).to_string()
}
