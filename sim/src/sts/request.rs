//! What the service is asked: the query protocol's parameters, and an `AssumeRole` that obeys the
//! limits of the API model. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::refusal::Refusal;

const TAGS_MAX: usize = 50;
const POLICY_ARNS_MAX: usize = 10;
/// Inline and managed session policies together, in characters.
const POLICY_CHARS_MAX: usize = 2048;
const DURATION_DEFAULT_S: u64 = 3600;

/// Decoded parameters; of one given twice the last counts.
#[derive(Debug, Default)]
pub(super) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    pub(super) fn parse(form: &[u8]) -> Self {
        Self(form_urlencoded::parse(form).into_owned().collect())
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// `prefix.1`, `prefix.2`, … until one is missing.
    pub(super) fn list(&self, prefix: &str) -> Vec<String> {
        (1..)
            .map_while(|at| self.0.get(&format!("{prefix}.{at}")).cloned())
            .collect()
    }

    /// `prefix.1.field`, `prefix.2.field`, … until one is missing.
    pub(super) fn list_of(&self, prefix: &str, field: &str) -> Vec<String> {
        (1..)
            .map_while(|at| self.0.get(&format!("{prefix}.{at}.{field}")).cloned())
            .collect()
    }

    /// As [`Parameters::list_of`], two fields at a time; the second may be missing.
    pub(super) fn pairs(&self, prefix: &str, first: &str, second: &str) -> Vec<(String, String)> {
        let pair = |at: usize| {
            let key = self.0.get(&format!("{prefix}.{at}.{first}"))?.clone();
            let value = self.0.get(&format!("{prefix}.{at}.{second}")).cloned();
            Some((key, value.unwrap_or_default()))
        };
        (1..).map_while(pair).collect()
    }
}

/// `AKID/date/region/sts/aws4_request` out of an `Authorization` header.
pub(super) fn credential(authorization: &str) -> Option<&str> {
    let (_, rest) = authorization.split_once("Credential=")?;
    rest.split([',', ' ']).next()
}

/// A request for a role that may be granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AssumeRole {
    pub(super) role_arn: String,
    pub(super) partition: String,
    pub(super) account: String,
    /// The role's name without its path.
    pub(super) role: String,
    pub(super) session_name: String,
    pub(super) duration: Duration,
    pub(super) source_identity: Option<String>,
    /// How full the room for policies and tags is, in percent; none if neither was given.
    pub(super) packed_percent: Option<usize>,
}

impl AssumeRole {
    pub(super) fn parse(parameters: &Parameters) -> Result<Self, Refusal> {
        let role_arn = required(parameters, "RoleArn", "roleArn")?;
        let (partition, account, role) =
            role_of(role_arn).ok_or_else(|| Refusal::invalid(format!("{role_arn} is invalid")))?;
        length(role_arn, "roleArn", 20, 2048)?;
        let session_name = required(parameters, "RoleSessionName", "roleSessionName")?;
        characters(session_name, "roleSessionName", r"[\w+=,.@-]*", "+=,.@-_")?;
        length(session_name, "roleSessionName", 2, 64)?;
        if let Some(id) = parameters.get("ExternalId") {
            characters(id, "externalId", r"[\w+=,.@:\/-]*", "+=,.@:/-_")?;
            length(id, "externalId", 2, 1224)?;
        }
        let source_identity = parameters.get("SourceIdentity");
        if let Some(identity) = source_identity {
            characters(identity, "sourceIdentity", r"[\w+=,.@-]*", "+=,.@-_")?;
            length(identity, "sourceIdentity", 2, 64)?;
        }
        let packed = tags(parameters)? + policies(parameters)?;
        Ok(Self {
            role_arn: role_arn.to_owned(),
            partition: partition.to_owned(),
            account: account.to_owned(),
            role: role.to_owned(),
            session_name: session_name.to_owned(),
            duration: duration(parameters)?,
            source_identity: source_identity.map(str::to_owned),
            packed_percent: (packed > 0).then(|| (packed * 100 / POLICY_CHARS_MAX / 2).max(1)),
        })
    }
}

fn required<'a>(parameters: &'a Parameters, key: &str, field: &str) -> Result<&'a str, Refusal> {
    parameters.get(key).ok_or_else(|| {
        Refusal::invalid(format!(
            "1 validation error detected: Value null at '{field}' failed to satisfy constraint: Member must not be null"
        ))
    })
}

fn length(value: &str, field: &str, least: usize, most: usize) -> Result<(), Refusal> {
    let count = value.chars().count();
    let rule = if count < least {
        format!("Member must have length greater than or equal to {least}")
    } else if count > most {
        format!("Member must have length less than or equal to {most}")
    } else {
        return Ok(());
    };
    Err(Refusal::constraint(value, field, &rule))
}

fn characters(value: &str, field: &str, pattern: &str, others: &str) -> Result<(), Refusal> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || others.contains(letter);
    if value.chars().all(allowed) {
        return Ok(());
    }
    let rule = format!("Member must satisfy regular expression pattern: {pattern}");
    Err(Refusal::constraint(value, field, &rule))
}

/// Partition, account and name of `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`.
fn role_of(arn: &str) -> Option<(&str, &str, &str)> {
    let mut parts = arn.splitn(6, ':');
    let (scheme, partition, service) = (parts.next()?, parts.next()?, parts.next()?);
    let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
    let digits = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let name = resource.strip_prefix("role/")?.rsplit('/').next()?;
    let right = scheme == "arn" && partition.starts_with("aws") && service == "iam";
    (right && region.is_empty() && digits && !name.is_empty()).then_some((partition, account, name))
}

fn duration(parameters: &Parameters) -> Result<Duration, Refusal> {
    let Some(given) = parameters.get("DurationSeconds") else {
        return Ok(Duration::from_secs(DURATION_DEFAULT_S));
    };
    let rule = match given.parse::<u64>() {
        Ok(seconds @ 900..=43_200) => return Ok(Duration::from_secs(seconds)),
        Ok(0..900) => "Member must have value greater than or equal to 900",
        Ok(_) => "Member must have value less than or equal to 43200",
        Err(_) => "Member must be an integer",
    };
    Err(Refusal::constraint(given, "durationSeconds", rule))
}

/// Checks the session tags and returns how many characters they take.
fn tags(parameters: &Parameters) -> Result<usize, Refusal> {
    let tags = parameters.pairs("Tags.member", "Key", "Value");
    if tags.len() > TAGS_MAX {
        let rule = "Member must have length less than or equal to 50";
        return Err(Refusal::constraint("[…]", "tags", rule));
    }
    let mut seen = BTreeSet::new();
    let mut size = 0;
    for (at, (key, value)) in (1..).zip(&tags) {
        length(key, &format!("tags.{at}.member.key"), 1, 128)?;
        length(value, &format!("tags.{at}.member.value"), 0, 256)?;
        for (text, field) in [(key, "key"), (value, "value")] {
            let allowed = |letter: char| {
                letter.is_alphanumeric() || letter.is_whitespace() || "_.:/=+-@".contains(letter)
            };
            if !text.chars().all(allowed) {
                let rule =
                    r"Member must satisfy regular expression pattern: [\p{L}\p{Z}\p{N}_.:/=+\-@]+";
                return Err(Refusal::constraint(
                    text,
                    &format!("tags.{at}.member.{field}"),
                    rule,
                ));
            }
        }
        if !seen.insert(key.to_lowercase()) {
            return Err(Refusal::invalid(
                "Duplicate tag keys found. Please note that Tag keys are case insensitive.",
            ));
        }
        size += key.len() + value.len();
    }
    for key in parameters.list("TransitiveTagKeys.member") {
        if !seen.contains(&key.to_lowercase()) {
            let message = format!(
                "The transitive tag key {key} must be one of the session tags of the request."
            );
            return Err(Refusal::invalid(message));
        }
    }
    Ok(size)
}

/// Checks the session policies and returns how many characters they take.
fn policies(parameters: &Parameters) -> Result<usize, Refusal> {
    let mut size = 0;
    if let Some(policy) = parameters.get("Policy") {
        let document: serde_json::Value = serde_json::from_str(policy)
            .map_err(|_syntax| Refusal::malformed_policy("This policy contains invalid Json"))?;
        if document.get("Statement").is_none() {
            let message = "Syntax errors in policy: a policy needs a Statement.";
            return Err(Refusal::malformed_policy(message));
        }
        size += policy.chars().count();
    }
    let arns = parameters.list_of("PolicyArns.member", "arn");
    if arns.len() > POLICY_ARNS_MAX {
        let rule = "Member must have length less than or equal to 10";
        return Err(Refusal::constraint("[…]", "policyArns", rule));
    }
    for arn in &arns {
        length(arn, "policyArns.member.arn", 20, 2048)?;
        if !arn.starts_with("arn:aws") || !arn.contains(":policy/") {
            return Err(Refusal::invalid(format!(
                "{arn} is not a managed policy ARN"
            )));
        }
        size += arn.len();
    }
    if size > POLICY_CHARS_MAX {
        return Err(Refusal::packed_policy_too_large());
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::{AssumeRole, Parameters, credential};

    const GOOD: &str = "RoleArn=arn:aws:iam::123456789012:role/team/reader&RoleSessionName=pod-1";

    #[track_caller]
    fn check(more: &str, expected: &str) {
        let parsed = AssumeRole::parse(&Parameters::parse(format!("{GOOD}&{more}").as_bytes()));
        let got = match parsed {
            Ok(request) => format!("{} {}s", request.role, request.duration.as_secs()),
            Err(refusal) => format!("{} {}", refusal.code(), refusal.message()),
        };
        assert!(got.contains(expected), "{more}: {got}");
    }

    #[test]
    fn good_requests() {
        check("", "reader 3600s");
        check("DurationSeconds=900", "reader 900s");
        check(
            "DurationSeconds=43200&ExternalId=a:b/c&SourceIdentity=me",
            "reader 43200s",
        );
        check(
            "Tags.member.1.Key=a&Tags.member.1.Value=&TransitiveTagKeys.member.1=A",
            "reader",
        );
        check("Policy=%7B%22Statement%22%3A%5B%5D%7D", "reader");
        check(
            "PolicyArns.member.1.arn=arn:aws:iam::aws:policy/ReadOnlyAccess",
            "reader",
        );
    }

    #[test]
    fn bad_requests_name_the_field() {
        check(
            "RoleArn=arn:aws:iam::1:role/x",
            "ValidationError arn:aws:iam::1:role/x is invalid",
        );
        check(
            "RoleSessionName=a%20b",
            r"at 'roleSessionName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\w+=,.@-]*",
        );
        check(
            "RoleSessionName=a",
            "at 'roleSessionName' failed to satisfy constraint: Member must have length greater",
        );
        check("DurationSeconds=899", "greater than or equal to 900");
        check("DurationSeconds=43201", "less than or equal to 43200");
        check("DurationSeconds=x", "'durationSeconds'");
        check("ExternalId=a", "'externalId'");
        check("SourceIdentity=a:b", "'sourceIdentity'");
        check(
            "Tags.member.1.Key=a&Tags.member.2.Key=A",
            "Duplicate tag keys",
        );
        check("Tags.member.1.Key=%3F", "tags.1.member.key");
        check("TransitiveTagKeys.member.1=a", "transitive tag key a");
        check("Policy=x", "MalformedPolicyDocument");
        check(
            "PolicyArns.member.1.arn=arn:aws:iam::aws:user/ReadOnlyAccess",
            "not a managed policy",
        );
        check(
            &format!("Policy={{\"Statement\":\"{}\"}}", "x".repeat(2048)),
            "PackedPolicyTooLarge",
        );
        let none = AssumeRole::parse(&Parameters::default()).unwrap_err();
        assert!(none.message().contains("'roleArn'"), "{}", none.message());
    }

    #[test]
    fn credentials_in_a_header() {
        let header = "AWS4-HMAC-SHA256 Credential=ASIAX/20300101/eu-west-1/sts/aws4_request, SignedHeaders=host, Signature=0";
        assert_eq!(
            credential(header),
            Some("ASIAX/20300101/eu-west-1/sts/aws4_request")
        );
        assert_eq!(credential("Bearer x"), None);
    }
}
