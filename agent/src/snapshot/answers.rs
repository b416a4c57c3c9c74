//! One session's credentials, rendered for every contract.
//!
//! Shared by all pods of the node that have the same role, and rendered once, when they arrive.

use std::fmt;

use kiam_wire::Credentials;
use kiam_wire::document::{self, Contract};

use crate::clock::{Expiry, Now};
use crate::response::{Media, Response, Status};

/// Every answer that hangs on one session. Holds secrets in its responses, which wipe themselves.
pub struct Answers {
    role_name: String,
    role_arn: String,
    access_key_id: String,
    expiry: Expiry,
    /// The role list.
    pub(crate) list: Response,
    /// `security-credentials/ROLE`.
    pub(crate) credentials: Response,
    /// `security-credentials-extended/ROLE`.
    pub(crate) extended: Response,
    /// `iam/info`.
    pub(crate) info: Response,
    /// The container door.
    pub(crate) container: Response,
}

impl Answers {
    /// Renders `credentials`.
    pub fn new(credentials: &Credentials, now: Now) -> Self {
        let ok = |media, body: &[u8]| Response::new(Status::Ok, media, &[], body);
        let rendered = |contract, media| {
            ok(
                media,
                document::credentials(credentials, contract).as_bytes(),
            )
        };
        Self {
            role_name: credentials.role_name().to_owned(),
            role_arn: credentials.role_arn().to_owned(),
            access_key_id: credentials.access_key_id().to_owned(),
            expiry: Expiry::at(credentials.expires_at(), now),
            list: ok(Media::Text, credentials.role_name().as_bytes()),
            credentials: rendered(Contract::InstanceMetadata, Media::Text),
            extended: rendered(Contract::InstanceMetadataExtended, Media::Text),
            info: ok(Media::Text, document::info(credentials).as_bytes()),
            container: rendered(Contract::Container, Media::Json),
        }
    }

    /// Until when they may be served.
    pub const fn expiry(&self) -> Expiry {
        self.expiry
    }

    /// For the audit line; not a secret.
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// The role's ARN.
    pub fn role_arn(&self) -> &str {
        &self.role_arn
    }

    /// Whether `asked` means this role: the name in the list, with or without a leading slash, the
    /// role's path and name, or the whole ARN. `asked` is decoded and holds no doubled slashes.
    pub fn is_role(&self, asked: &str) -> bool {
        let asked = asked.strip_prefix('/').unwrap_or(asked);
        if asked == self.role_name || asked == self.role_arn {
            return true;
        }
        if asked == self.role_name.strip_prefix('/').unwrap_or(&self.role_name) {
            return true;
        }
        let path_and_name = self
            .role_arn
            .split_once(":role/")
            .map_or("", |(_, rest)| rest);
        !asked.is_empty()
            && (asked == path_and_name
                || path_and_name
                    .rsplit('/')
                    .next()
                    .is_some_and(|name| name == asked))
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers")
            .field("role_arn", &self.role_arn)
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}
