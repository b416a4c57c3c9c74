//! Who somebody is to STS: an assumed role or a user.

/// An identity, as `GetCallerIdentity` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    arn: String,
    account: String,
    user_id: String,
    role: bool,
}

impl Identity {
    /// The session of a role, as an instance or a container has it.
    pub fn assumed_role(account: &str, role: &str, session: &str) -> Self {
        Self::session("aws", account, role, session)
    }

    /// A user.
    pub fn user(account: &str, name: &str) -> Self {
        Self {
            arn: format!("arn:aws:iam::{account}:user/{name}"),
            account: account.to_owned(),
            user_id: unique_id("AIDA", &format!("{account}/{name}")),
            role: false,
        }
    }

    pub(super) fn session(partition: &str, account: &str, role: &str, session: &str) -> Self {
        let role_id = unique_id("AROA", &format!("{account}/{role}"));
        Self {
            arn: format!("arn:{partition}:sts::{account}:assumed-role/{role}/{session}"),
            account: account.to_owned(),
            user_id: format!("{role_id}:{session}"),
            role: true,
        }
    }

    /// The ARN, for instance `arn:aws:sts::123456789012:assumed-role/reader/pod`.
    pub fn arn(&self) -> &str {
        &self.arn
    }

    /// The account's twelve digits.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// `UserId`; of a role, its unique id and the session name.
    pub fn user_id(&self) -> &str {
        &self.user_id
    }

    pub(super) const fn is_role(&self) -> bool {
        self.role
    }
}

/// AWS' alphabet for identifiers and access keys.
pub(super) const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// An identifier that is always the same for the same name.
fn unique_id(prefix: &str, name: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    let letters = digest.as_ref().iter().take(17).map(|byte| letter(*byte));
    prefix.chars().chain(letters).collect()
}

pub(super) fn letter(byte: u8) -> char {
    BASE32
        .get(usize::from(byte & 31))
        .map_or('A', |letter| char::from(*letter))
}
