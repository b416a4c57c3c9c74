//! Role ARNs, and how a short role name becomes one.
//!
//! Pure. The rules are kiam's (`role`, `/role`, `path/role` and full ARNs) without its panic on a
//! malformed ARN and with one correction: equal means that the resolved ARNs are equal, so that a
//! base ARN with a path of its own no longer makes a role differ from itself.

use std::fmt;
use std::sync::Arc;

/// The ARN of an IAM role, checked: `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleArn(Arc<str>);

/// What a short role name is appended to: `arn:PARTITION:iam::ACCOUNT:role/` and perhaps a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseArn(Box<str>);

/// Why a text is no role ARN. Fit to be shown to whoever wrote the annotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArnError {
    /// Nothing is left once the leading slash is gone.
    #[error("the role is empty")]
    Empty,
    /// Too long for IAM.
    #[error("the role's path and name are longer than IAM allows (512 and 64 characters)")]
    TooLong,
    /// Too few fields, or not `arn:`.
    #[error("it is not of the form arn:aws:iam::ACCOUNT:role/NAME")]
    Form,
    /// Not a partition of AWS.
    #[error("its partition is not aws, aws-cn, aws-us-gov or another aws-* partition")]
    Partition,
    /// An ARN of another service.
    #[error("it is not an ARN of IAM")]
    Service,
    /// IAM has no regions.
    #[error("it names a region, but IAM ARNs have none")]
    Region,
    /// Not twelve digits.
    #[error("its account is not twelve digits")]
    Account,
    /// A user, an instance profile, an assumed role and so on.
    #[error("it does not name a role (role/NAME)")]
    Resource,
    /// A character that IAM does not allow, an empty path segment.
    #[error("the role's path or name holds a character that IAM does not allow")]
    Name,
}

/// IAM: a role's name.
const NAME_CHARS_MAX: usize = 64;
/// IAM: a role's path, both slashes included.
const PATH_CHARS_MAX: usize = 512;
const RESOURCE: &str = "role/";

impl RoleArn {
    /// Checks every part.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let resource = role_resource(text)?;
        check_resource(resource)?;
        Ok(Self(Arc::from(text)))
    }

    /// The whole ARN.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `aws`, `aws-cn`, `aws-us-gov` or another.
    pub fn partition(&self) -> &str {
        self.field(1)
    }

    /// Twelve digits.
    pub fn account(&self) -> &str {
        self.field(4)
    }

    /// `/` or `/a/b/`: as IAM writes it, both slashes included.
    pub fn path(&self) -> &str {
        let resource = self.resource();
        let name = self.name();
        resource
            .get(RESOURCE.len() - 1..resource.len() - name.len())
            .unwrap_or("/")
    }

    /// The role's name, without its path: what SDKs are shown.
    pub fn name(&self) -> &str {
        let resource = self.resource();
        resource
            .rsplit_once('/')
            .map_or(resource, |(_path, name)| name)
    }

    fn resource(&self) -> &str {
        self.field(5)
    }

    fn field(&self, index: usize) -> &str {
        self.0.splitn(6, ':').nth(index).unwrap_or_default()
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl BaseArn {
    /// `arn:aws:iam::123456789012:role/`, with or without a path behind it. A missing last slash
    /// is added, so that a name can never run into the path.
    pub fn parse(text: &str) -> Result<Self, ArnError> {
        let with_slash = if text.ends_with('/') {
            text.to_owned()
        } else {
            format!("{text}/")
        };
        let path = role_resource(&with_slash)?;
        if !path.is_empty() {
            check_path(path.trim_end_matches('/'))?;
        }
        Ok(Self(with_slash.into_boxed_str()))
    }

    /// The base of an account's roles, without a path.
    pub fn of_account(partition: &str, account: &str) -> Result<Self, ArnError> {
        Self::parse(&format!("arn:{partition}:iam::{account}:role/"))
    }

    /// The base as text, its last slash included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The role that `asked` means: a full ARN, in whatever account, stands for itself; anything
    /// else, less one leading slash, is appended to the base.
    pub fn resolve(&self, asked: &str) -> Result<RoleArn, ArnError> {
        if asked.starts_with("arn:") {
            return RoleArn::parse(asked);
        }
        let short = asked.strip_prefix('/').unwrap_or(asked);
        if short.is_empty() {
            return Err(ArnError::Empty);
        }
        RoleArn::parse(&format!("{}{short}", self.0))
    }
}

/// Checks everything up to `role/` and returns what follows it.
fn role_resource(text: &str) -> Result<&str, ArnError> {
    let mut fields = text.splitn(6, ':');
    let mut field = || fields.next().ok_or(ArnError::Form);
    if field()? != "arn" {
        return Err(ArnError::Form);
    }
    let (partition, service, region) = (field()?, field()?, field()?);
    let (account, resource) = (field()?, field()?);
    if !is_partition(partition) {
        return Err(ArnError::Partition);
    }
    if service != "iam" {
        return Err(ArnError::Service);
    }
    if !region.is_empty() {
        return Err(ArnError::Region);
    }
    if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ArnError::Account);
    }
    resource.strip_prefix(RESOURCE).ok_or(ArnError::Resource)
}

/// `aws` and `aws-*`: the isolated and sovereign partitions are many, and more will come.
fn is_partition(text: &str) -> bool {
    text == "aws"
        || text.strip_prefix("aws-").is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        })
}

/// `path/of/any/depth/name`, without a leading slash.
fn check_resource(resource: &str) -> Result<(), ArnError> {
    let (path, name) = match resource.rsplit_once('/') {
        Some((path, name)) => (Some(path), name),
        None => (None, resource),
    };
    if name.is_empty() {
        return Err(ArnError::Empty);
    }
    if name.len() > NAME_CHARS_MAX {
        return Err(ArnError::TooLong);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if !name.bytes().all(allowed) {
        return Err(ArnError::Name);
    }
    path.map_or(Ok(()), check_path)
}

/// IAM allows every printable ASCII character in a path. An empty segment is refused, although IAM
/// might have one: nobody means it, and SDKs and proxies collapse doubled slashes.
fn check_path(path: &str) -> Result<(), ArnError> {
    if path.len() + 2 > PATH_CHARS_MAX {
        return Err(ArnError::TooLong);
    }
    let segment_ok =
        |segment: &str| !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_graphic());
    if path.split('/').all(segment_ok) {
        Ok(())
    } else {
        Err(ArnError::Name)
    }
}
