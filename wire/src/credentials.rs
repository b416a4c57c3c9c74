//! One role session as STS issued it.

use std::fmt;

use zeroize::Zeroizing;

use crate::identity::CredentialId;
use crate::limits::{
    ACCESS_KEY_ID_BYTES_MAX, ROLE_ARN_BYTES_MAX, SECRET_ACCESS_KEY_BYTES_MAX,
    SESSION_TOKEN_BYTES_MAX,
};
use crate::malformed::{Malformed, token};
use crate::proto;
use crate::time::UnixSeconds;

/// Credentials of one role session. The two secrets are wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    id: CredentialId,
    role_name: String,
    role_arn: String,
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    session_token: Zeroizing<String>,
    issued_at: UnixSeconds,
    expires_at: UnixSeconds,
}

/// The parts of [`Credentials`], before they have been checked.
#[derive(Clone)]
pub struct Unchecked {
    /// Names the session; see [`CredentialId`].
    pub id: CredentialId,
    /// What SDKs see in the role list, and ask for next.
    pub role_name: String,
    /// The role's full ARN.
    pub role_arn: String,
    /// Not a secret: it is in every request that the pod signs, and in `CloudTrail`.
    pub access_key_id: String,
    /// A secret.
    pub secret_access_key: Zeroizing<String>,
    /// A secret.
    pub session_token: Zeroizing<String>,
    /// When STS answered.
    pub issued_at: UnixSeconds,
    /// What STS answered, rounded down.
    pub expires_at: UnixSeconds,
}

impl Credentials {
    /// Refuses an empty or overlong part, one with anything but printable ASCII, and a life that
    /// ends before it begins.
    pub fn try_new(parts: Unchecked) -> Result<Self, Malformed> {
        let Unchecked {
            id,
            role_name,
            role_arn,
            access_key_id,
            secret_access_key,
            session_token,
            issued_at,
            expires_at,
        } = parts;
        token(&role_name, "credentials.role_name", ROLE_ARN_BYTES_MAX)?;
        token(&role_arn, "credentials.role_arn", ROLE_ARN_BYTES_MAX)?;
        token(
            &access_key_id,
            "credentials.access_key_id",
            ACCESS_KEY_ID_BYTES_MAX,
        )?;
        token(
            &secret_access_key,
            "credentials.secret_access_key",
            SECRET_ACCESS_KEY_BYTES_MAX,
        )?;
        token(
            &session_token,
            "credentials.session_token",
            SESSION_TOKEN_BYTES_MAX,
        )?;
        if expires_at <= issued_at {
            return Err(Malformed::new(
                "credentials.expires_at_unix_s",
                "is not after issued_at_unix_s",
            ));
        }
        Ok(Self {
            id,
            role_name,
            role_arn,
            access_key_id,
            secret_access_key,
            session_token,
            issued_at,
            expires_at,
        })
    }

    /// Names the session.
    pub const fn id(&self) -> CredentialId {
        self.id
    }

    /// What SDKs see in the role list, and ask for next.
    pub fn role_name(&self) -> &str {
        &self.role_name
    }

    /// The role's full ARN.
    pub fn role_arn(&self) -> &str {
        &self.role_arn
    }

    /// The account of the role: the fifth field of its ARN, empty when that is no ARN.
    pub fn account_id(&self) -> &str {
        self.role_arn.split(':').nth(4).unwrap_or_default()
    }

    /// The access key id; not a secret.
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// A secret.
    pub fn secret_access_key(&self) -> &str {
        &self.secret_access_key
    }

    /// A secret.
    pub fn session_token(&self) -> &str {
        &self.session_token
    }

    /// When STS answered.
    pub const fn issued_at(&self) -> UnixSeconds {
        self.issued_at
    }

    /// The first second in which they no longer count as valid.
    pub const fn expires_at(&self) -> UnixSeconds {
        self.expires_at
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("id", &self.id)
            .field("role_arn", &self.role_arn)
            .field("access_key_id", &self.access_key_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Unchecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unchecked")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl TryFrom<proto::Credentials> for Credentials {
    type Error = Malformed;

    fn try_from(message: proto::Credentials) -> Result<Self, Malformed> {
        let proto::Credentials {
            id,
            role_name,
            role_arn,
            access_key_id,
            secret_access_key,
            session_token,
            issued_at_unix_s,
            expires_at_unix_s,
        } = message;
        // Into the wiping type first, so that a refusal wipes them too.
        let secret_access_key = Zeroizing::new(secret_access_key);
        let session_token = Zeroizing::new(session_token);
        Self::try_new(Unchecked {
            id: CredentialId::parse(&id, "credentials.id")?,
            role_name,
            role_arn,
            access_key_id,
            secret_access_key,
            session_token,
            issued_at: UnixSeconds::new(issued_at_unix_s),
            expires_at: UnixSeconds::new(expires_at_unix_s),
        })
    }
}

impl From<&Credentials> for proto::Credentials {
    fn from(credentials: &Credentials) -> Self {
        Self {
            id: credentials.id.as_bytes().to_vec(),
            role_name: credentials.role_name.clone(),
            role_arn: credentials.role_arn.clone(),
            access_key_id: credentials.access_key_id.clone(),
            secret_access_key: credentials.secret_access_key.to_string(),
            session_token: credentials.session_token.to_string(),
            issued_at_unix_s: credentials.issued_at.get(),
            expires_at_unix_s: credentials.expires_at.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Unchecked {
        Unchecked {
            id: CredentialId::new([7; 32]),
            role_name: "reader".into(),
            role_arn: "arn:aws:iam::123456789012:role/reader".into(),
            access_key_id: "ASIAEXAMPLE0000000".into(),
            secret_access_key: Zeroizing::new("hidden-one".into()),
            session_token: Zeroizing::new("hidden-two".into()),
            issued_at: UnixSeconds::new(1_000),
            expires_at: UnixSeconds::new(4_600),
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Unchecked), expected: &str) {
        let mut parts = parts();
        change(&mut parts);
        let got =
            Credentials::try_new(parts).map_or_else(|error| error.to_string(), |_| "ok".into());
        assert_eq!(got, expected);
    }

    #[test]
    fn every_part_is_checked() {
        check(|_| {}, "ok");
        check(
            |parts| parts.role_name = "two lines\n".into(),
            "credentials.role_name holds white space, control or non-ASCII characters",
        );
        check(
            |parts| parts.access_key_id.clear(),
            "credentials.access_key_id is missing",
        );
        check(
            |parts| parts.session_token = Zeroizing::new("t".repeat(SESSION_TOKEN_BYTES_MAX + 1)),
            "credentials.session_token is too long",
        );
        check(
            |parts| parts.expires_at = parts.issued_at,
            "credentials.expires_at_unix_s is not after issued_at_unix_s",
        );
    }

    #[test]
    fn secrets_are_never_printed() {
        let credentials = Credentials::try_new(parts()).unwrap();
        let printed = format!("{credentials:?} {:?}", parts());
        assert!(!printed.contains("hidden"), "{printed}");
        assert!(printed.contains("ASIAEXAMPLE0000000"), "{printed}");
    }

    #[test]
    fn the_message_and_back_is_the_same() {
        let credentials = Credentials::try_new(parts()).unwrap();
        let back = Credentials::try_from(proto::Credentials::from(&credentials)).unwrap();
        assert_eq!(back, credentials);
    }

    #[test]
    fn the_account_is_read_from_the_arn() {
        assert_eq!(
            Credentials::try_new(parts()).unwrap().account_id(),
            "123456789012"
        );
    }
}
