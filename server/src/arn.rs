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

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "arn:aws:iam::123456789012:role/";

    /// What `asked` resolves to under `base`, and the name that SDKs are shown.
    #[track_caller]
    fn check(base: &str, asked: &str, expected: Result<(&str, &str), ArnError>) {
        let got = BaseArn::parse(base).unwrap().resolve(asked);
        let got = got.as_ref().map(|role| (role.as_str(), role.name()));
        assert_eq!(got, expected.as_ref().map(|pair| *pair), "for {asked:?}");
    }

    /// kiam's own table (`TestAddsPrefix` and those after it). Its names keep their path; ours are
    /// what the metadata service lists, which is the bare name.
    #[test]
    fn kiams_table() {
        let own = "arn:aws:iam::123456789012:role/myrole";
        check(BASE, "myrole", Ok((own, "myrole")));
        check(BASE, "/myrole", Ok((own, "myrole")));
        check(BASE, "", Err(ArnError::Empty));
        let with_path = "arn:aws:iam::123456789012:role/kiam/myrole";
        check(BASE, "kiam/myrole", Ok((with_path, "myrole")));
        check(BASE, "/kiam/myrole", Ok((with_path, "myrole")));
        let other = "arn:aws:iam::999999999999:role/path-prefix/another-role";
        check(BASE, other, Ok((other, "another-role")));
    }

    #[test]
    fn a_base_may_have_a_path_and_may_lack_its_slash() {
        let role = "arn:aws:iam::123456789012:role/workloads/web";
        for base in [
            "arn:aws:iam::123456789012:role/workloads/",
            "arn:aws:iam::123456789012:role/workloads",
        ] {
            check(base, "web", Ok((role, "web")));
            check(base, "/web", Ok((role, "web")));
            check(base, role, Ok((role, "web")));
        }
        check(
            "arn:aws:iam::123456789012:role",
            "web",
            Ok(("arn:aws:iam::123456789012:role/web", "web")),
        );
    }

    #[test]
    fn equivalent_names_are_equal() {
        let base = BaseArn::parse("arn:aws:iam::123456789012:role/a/").unwrap();
        let role = base.resolve("b").unwrap();
        assert_eq!(role, base.resolve("/b").unwrap());
        assert_eq!(
            role,
            base.resolve("arn:aws:iam::123456789012:role/a/b").unwrap()
        );
        assert_ne!(role, base.resolve("a/b").unwrap());
        assert_ne!(role, base.resolve("B").unwrap());
    }

    #[test]
    fn every_partition_of_aws() {
        for partition in ["aws", "aws-cn", "aws-us-gov", "aws-iso-b", "aws-eusc"] {
            let role = RoleArn::parse(&format!("arn:{partition}:iam::123456789012:role/p/q/r"));
            let role = role.unwrap();
            assert_eq!(
                (role.partition(), role.account(), role.path(), role.name()),
                (partition, "123456789012", "/p/q/", "r")
            );
        }
        assert_eq!(RoleArn::parse(&format!("{BASE}r")).unwrap().path(), "/");
    }

    /// Among them those that crash kiam.
    #[test]
    fn malformed_arns_are_refused_by_part() {
        let refused = |asked: &str, expected| check(BASE, asked, Err(expected));
        refused("arn:", ArnError::Form);
        refused("arn:aws:iam", ArnError::Form);
        refused("arn:aws:iam::123456789012", ArnError::Form);
        refused("arn:gcp:iam::123456789012:role/r", ArnError::Partition);
        refused("arn:aws-:iam::123456789012:role/r", ArnError::Partition);
        refused(
            "arn:aws:sts::123456789012:assumed-role/r/s",
            ArnError::Service,
        );
        refused(
            "arn:aws:iam:eu-west-1:123456789012:role/r",
            ArnError::Region,
        );
        refused("arn:aws:iam::12345678901:role/r", ArnError::Account);
        refused("arn:aws:iam::12345678901x:role/r", ArnError::Account);
        refused("arn:aws:iam::123456789012:user/r", ArnError::Resource);
        refused(
            "arn:aws:iam::123456789012:instance-profile/r",
            ArnError::Resource,
        );
        refused("arn:aws:iam::123456789012:role/", ArnError::Empty);
        refused("/", ArnError::Empty);
        refused("role/", ArnError::Empty);
        refused("//r", ArnError::Name);
        refused("a//r", ArnError::Name);
        refused("a b", ArnError::Name);
        refused("r\u{e9}le", ArnError::Name);
        refused("a\nb/r", ArnError::Name);
        refused("role:name", ArnError::Name);
        refused(&"r".repeat(65), ArnError::TooLong);
        refused(&format!("{}/r", "p".repeat(511)), ArnError::TooLong);
        for base in [
            "",
            "role/",
            "arn:aws:iam::1:role/",
            "arn:aws:iam::123456789012:role//x/",
        ] {
            assert!(BaseArn::parse(base).is_err(), "{base:?}");
        }
    }
}
