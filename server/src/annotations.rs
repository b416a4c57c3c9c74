//! What a pod asks for, read from its annotations and checked.
//!
//! Pure. It knows the form of every annotation and nothing of who may have what: that is
//! [`policy`](crate::policy)'s. An annotation that cannot be used is an error that names it, says
//! what is wrong with it and what to write instead, because the developer who wrote it is the one
//! who will read it. Nothing is guessed: credentials with other tags or a longer life than meant
//! would be worse than none.

mod imds_v2;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kiam_wire::go_duration;

pub use imds_v2::ImdsV2;

/// The role: a name, `path/name`, `/path/name` or a full ARN. Empty: none, even where the
/// `ServiceAccount` has one.
pub const ROLE: &str = "iam.amazonaws.com/role";
/// What the session is called in `CloudTrail`, behind `kiam-`.
pub const SESSION_NAME: &str = "iam.amazonaws.com/session-name";
/// What the role's trust policy may demand.
pub const EXTERNAL_ID: &str = "iam.amazonaws.com/external-id";
/// Followed by a tag's key; the value is the tag's.
pub const SESSION_TAG_PREFIX: &str = "iam.amazonaws.com/session-tag.";
/// The session's life, as Go writes durations.
pub const SESSION_DURATION: &str = "iam.amazonaws.com/session-duration";
/// ARNs of managed policies that narrow the session, separated by commas.
pub const SESSION_POLICY_ARNS: &str = "iam.amazonaws.com/session-policy-arns";
/// On a Namespace: the expression that a role's ARN must match.
pub const PERMITTED: &str = "iam.amazonaws.com/permitted";
/// On a Namespace: `required` refuses requests without an `IMDSv2` token; see [`ImdsV2`].
pub const IMDS_V2: &str = "iam.amazonaws.com/imds-v2";

/// STS: the shortest session.
pub const SESSION_DURATION_MIN: Duration = Duration::from_mins(15);
/// STS: the longest session that any role may allow.
pub const SESSION_DURATION_MAX: Duration = Duration::from_hours(12);
/// STS: tags of one session.
pub const SESSION_TAGS_MAX: usize = 50;

const TAG_KEY_CHARS_MAX: usize = 128;
const TAG_VALUE_CHARS_MAX: usize = 256;
const POLICY_ARNS_MAX: usize = 10;
const POLICY_ARN_CHARS: std::ops::RangeInclusive<usize> = 20..=2048;
const EXTERNAL_ID_CHARS: std::ops::RangeInclusive<usize> = 2..=1224;

/// The annotations of one object that mean something to kiam, sorted by key. A cluster's other
/// annotations are large, so these are all that is kept; and as the pods of a workload carry the
/// same, a copy shares them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Annotations(Option<Arc<[Annotation]>>);

/// A key and its value.
type Annotation = (Box<str>, Box<str>);

impl<'a> FromIterator<(&'a str, &'a str)> for Annotations {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(all: I) -> Self {
        let mut ours: Vec<_> = all
            .into_iter()
            .filter(|(key, _value)| is_ours(key))
            .map(|(key, value)| (Box::from(key), Box::from(value)))
            .collect();
        ours.sort();
        Self((!ours.is_empty()).then(|| ours.into()))
    }
}

impl Annotations {
    /// The value of the annotation `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let all = self.all();
        let at = all
            .binary_search_by(|(candidate, _value)| (**candidate).cmp(key))
            .ok()?;
        all.get(at).map(|(_key, value)| &**value)
    }

    /// All of them, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.all().iter().map(|(key, value)| (&**key, &**value))
    }

    /// No annotation of ours.
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// How many share these; none share an empty set.
    pub(crate) fn shared_by(&self) -> usize {
        self.0.as_ref().map_or(0, Arc::strong_count)
    }

    fn all(&self) -> &[Annotation] {
        self.0.as_deref().unwrap_or_default()
    }
}

fn is_ours(key: &str) -> bool {
    key.starts_with(SESSION_TAG_PREFIX)
        || [
            ROLE,
            SESSION_NAME,
            EXTERNAL_ID,
            SESSION_DURATION,
            SESSION_POLICY_ARNS,
            PERMITTED,
            IMDS_V2,
        ]
        .contains(&key)
}

/// What a pod asks for. Every field keeps the limits of STS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleAsk {
    /// Not empty; not yet an ARN.
    pub role: String,
    /// As written; never empty.
    pub session_name: Option<String>,
    /// Never empty.
    pub external_id: Option<String>,
    /// Sorted by key; no two keys differ only by case.
    pub tags: Vec<Tag>,
    /// 15 minutes to 12 hours, whole seconds.
    pub duration: Option<Duration>,
    /// At most ten, sorted, none twice.
    pub policy_arns: Vec<String>,
    /// Which object named the role.
    pub origin: Origin,
}

/// One session tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// 1 to 128 characters.
    pub key: String,
    /// At most 256 characters.
    pub value: String,
}

/// The object an annotation was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The pod itself.
    Pod,
    /// The `ServiceAccount` it runs as.
    ServiceAccount,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::ServiceAccount => "ServiceAccount",
        })
    }
}

/// An annotation that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation} of the {origin}: {problem}")]
pub struct AnnotationError {
    /// Its key.
    pub annotation: String,
    /// The object that carries it.
    pub origin: Origin,
    /// What is wrong, and what to do.
    pub problem: Problem,
}

/// What is wrong with an annotation, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The role does not resolve to an ARN.
    #[error("{0}; write a role name, path/name, or a full role ARN")]
    Role(#[from] crate::arn::ArnError),
    /// Not a duration, or out of range.
    #[error("{0}; write a duration between 15m and 12h, such as 1h or 1h30m")]
    Duration(DurationProblem),
    /// Wrong length or characters.
    #[error("an external id has 2 to 1224 letters, digits or any of _+=,.@:/-")]
    ExternalId,
    /// Wrong length or characters.
    #[error(
        "a tag's key has 1 to 128 letters, digits, spaces or any of _.:/=+-@ and does not start with aws:"
    )]
    TagKey,
    /// Wrong length or characters.
    #[error("a tag's value has at most 256 letters, digits, spaces or any of _.:/=+-@")]
    TagValue,
    /// Two keys that AWS takes for one.
    #[error("two session tags have this key; AWS does not tell upper from lower case in tag keys")]
    TagTwice,
    /// A key that says where the pod runs, which only the server may say.
    #[error("this tag says where the pod runs and is set by kiam alone; choose another key")]
    TagReserved,
    /// More than 50 with those the server adds.
    #[error("a session has at most 50 tags, those that kiam adds included; remove some")]
    TooManyTags,
    /// Not an ARN of a managed policy.
    #[error(
        "every entry must be the ARN of a managed policy, such as arn:aws:iam::aws:policy/ReadOnlyAccess; separate them with commas"
    )]
    PolicyArn,
    /// More than ten.
    #[error("a session has at most 10 policies; merge some")]
    TooManyPolicies,
}

/// Why a session duration cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurationProblem {
    /// Not a Go duration.
    #[error("it is not a duration: {0}")]
    Form(go_duration::InvalidDuration),
    /// Below 15 minutes.
    #[error("it is shorter than STS allows")]
    Short,
    /// Above 12 hours.
    #[error("it is longer than STS allows")]
    Long,
}

/// Reads what a pod asks for; `None` when it asks for no role.
///
/// A role on the pod stands for itself, and the `ServiceAccount` is not looked at. Without one, the
/// `ServiceAccount`'s annotations are the pod's defaults, each of them to be overridden by the
/// pod's own. A pod that carries an empty role asks for none.
pub fn read(
    pod: &Annotations,
    service_account: Option<&Annotations>,
) -> Result<Option<RoleAsk>, AnnotationError> {
    let sources = Sources::of(pod, service_account);
    let Some((role, origin)) = sources.get(ROLE).filter(|(role, _)| !role.is_empty()) else {
        return Ok(None);
    };
    let set = |key| sources.get(key).filter(|(value, _)| !value.is_empty());
    let external_id = set(EXTERNAL_ID)
        .map(|(value, on)| external_id(value).map_err(|problem| at(EXTERNAL_ID, on, problem)))
        .transpose()?;
    let duration = set(SESSION_DURATION)
        .map(|(value, on)| {
            duration(value).map_err(|problem| at(SESSION_DURATION, on, Problem::Duration(problem)))
        })
        .transpose()?;
    let policy_arns = set(SESSION_POLICY_ARNS)
        .map(|(value, on)| {
            policy_arns(value).map_err(|problem| at(SESSION_POLICY_ARNS, on, problem))
        })
        .transpose()?
        .unwrap_or_default();
    Ok(Some(RoleAsk {
        role: role.to_owned(),
        session_name: set(SESSION_NAME).map(|(value, _)| value.to_owned()),
        external_id,
        tags: tags(&sources)?,
        duration,
        policy_arns,
        origin,
    }))
}

/// An error at the annotation `key`.
pub(crate) fn at(key: &str, origin: Origin, problem: Problem) -> AnnotationError {
    AnnotationError {
        annotation: key.to_owned(),
        origin,
        problem,
    }
}

/// Where to look, nearest first.
struct Sources<'a> {
    pod: &'a Annotations,
    service_account: Option<&'a Annotations>,
}

impl<'a> Sources<'a> {
    fn of(pod: &'a Annotations, service_account: Option<&'a Annotations>) -> Self {
        Self {
            pod,
            service_account: service_account.filter(|_| pod.get(ROLE).is_none()),
        }
    }

    fn get(&self, key: &str) -> Option<(&'a str, Origin)> {
        self.pod
            .get(key)
            .map(|value| (value, Origin::Pod))
            .or_else(|| {
                let value = self.service_account?.get(key)?;
                Some((value, Origin::ServiceAccount))
            })
    }

    fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str, Origin)> {
        let pod = self
            .pod
            .iter()
            .map(|(key, value)| (key, value, Origin::Pod));
        let defaults = self.service_account.into_iter().flat_map(Annotations::iter);
        pod.chain(
            defaults
                .filter(|(key, _)| self.pod.get(key).is_none())
                .map(|(key, value)| (key, value, Origin::ServiceAccount)),
        )
    }
}

fn external_id(value: &str) -> Result<String, Problem> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&byte);
    if EXTERNAL_ID_CHARS.contains(&value.len()) && value.bytes().all(allowed) {
        Ok(value.to_owned())
    } else {
        Err(Problem::ExternalId)
    }
}

/// STS takes whole seconds: a fraction is dropped.
fn duration(value: &str) -> Result<Duration, DurationProblem> {
    let duration = go_duration::parse(value).map_err(DurationProblem::Form)?;
    let duration = Duration::from_secs(duration.as_secs());
    if duration < SESSION_DURATION_MIN {
        Err(DurationProblem::Short)
    } else if duration > SESSION_DURATION_MAX {
        Err(DurationProblem::Long)
    } else {
        Ok(duration)
    }
}

fn tags(sources: &Sources<'_>) -> Result<Vec<Tag>, AnnotationError> {
    let mut tags: Vec<Tag> = Vec::new();
    for (annotation, value, origin) in sources.iter() {
        let Some(key) = annotation.strip_prefix(SESSION_TAG_PREFIX) else {
            continue;
        };
        let check = || {
            let reserved = key
                .get(..4)
                .is_some_and(|prefix| prefix.eq_ignore_ascii_case("aws:"));
            if !is_tag_text(key, TAG_KEY_CHARS_MAX) || key.is_empty() || reserved {
                return Err(Problem::TagKey);
            }
            if !is_tag_text(value, TAG_VALUE_CHARS_MAX) {
                return Err(Problem::TagValue);
            }
            if tags.iter().any(|tag| same_key(&tag.key, key)) {
                return Err(Problem::TagTwice);
            }
            if tags.len() == SESSION_TAGS_MAX {
                return Err(Problem::TooManyTags);
            }
            Ok(())
        };
        check().map_err(|problem| at(annotation, origin, problem))?;
        tags.push(Tag {
            key: key.to_owned(),
            value: value.to_owned(),
        });
    }
    tags.sort();
    Ok(tags)
}

/// AWS takes two tag keys for one when they differ only by case.
pub(crate) fn same_key(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

/// `[\p{L}\p{Z}\p{N}_.:/=+\-@]`, but for a few marks that Rust counts as letters: STS has the
/// last word on those.
fn is_tag_text(text: &str, chars_max: usize) -> bool {
    text.chars().count() <= chars_max
        && text.chars().all(|c| {
            c.is_alphanumeric() || (c.is_whitespace() && !c.is_control()) || "_.:/=+-@".contains(c)
        })
}

fn policy_arns(value: &str) -> Result<Vec<String>, Problem> {
    let mut arns = value
        .split(',')
        .map(str::trim)
        .map(|arn| {
            is_policy_arn(arn)
                .then(|| arn.to_owned())
                .ok_or(Problem::PolicyArn)
        })
        .collect::<Result<Vec<_>, _>>()?;
    arns.sort();
    arns.dedup();
    if arns.len() > POLICY_ARNS_MAX {
        return Err(Problem::TooManyPolicies);
    }
    Ok(arns)
}

fn is_policy_arn(arn: &str) -> bool {
    let mut fields = arn.splitn(6, ':');
    let mut next = || fields.next().unwrap_or_default();
    POLICY_ARN_CHARS.contains(&arn.len())
        && arn.bytes().all(|byte| byte.is_ascii_graphic())
        && next() == "arn"
        && next().starts_with("aws")
        && next() == "iam"
        && next().is_empty()
        && matches!(next(), account if account == "aws" || account.len() == 12)
        && next()
            .strip_prefix("policy/")
            .is_some_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests;
