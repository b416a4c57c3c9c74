//! What a pod asks for, read from its annotations and checked.
//!
//! Pure. It knows the form of every annotation and nothing of who may have what: that is
//! [`policy`](crate::policy)'s. An annotation that cannot be used is an error that names it, says
//! what is wrong with it and what to write instead, because the developer who wrote it is the one
//! who will read it. Nothing is guessed: credentials with other tags or a longer life than meant
//! would be worse than none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::go_duration;

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
/// On a Namespace: `required` refuses requests without an `IMDSv2` token.
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
    #[error("it is not a duration")]
    Form,
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
    let duration = go_duration::parse(value).map_err(|_form| DurationProblem::Form)?;
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
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs
            .iter()
            .map(|(key, value)| (format!("iam.amazonaws.com/{key}"), *value))
            .collect::<Vec<_>>()
            .iter()
            .map(|(key, value)| (key.as_str(), *value))
            .collect()
    }

    /// A pod with a role and these; the ask or the error as text.
    #[track_caller]
    fn ask(pairs: &[(&str, &str)]) -> Result<RoleAsk, String> {
        let all: Vec<_> = [("role", "reader")].iter().chain(pairs).copied().collect();
        read(&annotations(&all), None)
            .map(|ask| ask.expect("a role"))
            .map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(key: &str, value: &str, expected: &str) {
        let expected = format!("annotation iam.amazonaws.com/{key} of the pod: {expected}");
        assert_eq!(ask(&[(key, value)]).unwrap_err(), expected, "for {value:?}");
    }

    #[test]
    fn only_our_annotations_are_kept() {
        let kept: Annotations = [
            ("iam.amazonaws.com/role", "r"),
            ("kubectl.kubernetes.io/last-applied-configuration", "{...}"),
            ("iam.amazonaws.com/session-tag.Team", "t"),
            ("iam.amazonaws.com/allowed-roles", "[]"),
            ("iam.amazonaws.com/imds-v2", "required"),
        ]
        .into_iter()
        .collect();
        assert_eq!(kept.iter().count(), 3);
        assert_eq!(kept.get(ROLE), Some("r"));
        assert_eq!(kept.get("iam.amazonaws.com/allowed-roles"), None);
    }

    #[test]
    fn a_full_ask_is_read() {
        let got = ask(&[
            ("session-name", "billing run"),
            ("external-id", "partner:42"),
            ("session-tag.Team", "Data platform"),
            ("session-tag.Cost", ""),
            ("session-duration", "1h30m0.5s"),
            (
                "session-policy-arns",
                "arn:aws:iam::aws:policy/ReadOnlyAccess, arn:aws:iam::123456789012:policy/p/q,arn:aws:iam::aws:policy/ReadOnlyAccess",
            ),
        ])
        .unwrap();
        let tag = |key: &str, value: &str| Tag {
            key: key.into(),
            value: value.into(),
        };
        assert_eq!(
            got,
            RoleAsk {
                role: "reader".into(),
                session_name: Some("billing run".into()),
                external_id: Some("partner:42".into()),
                tags: vec![tag("Cost", ""), tag("Team", "Data platform")],
                duration: Some(Duration::from_mins(90)),
                policy_arns: vec![
                    "arn:aws:iam::123456789012:policy/p/q".into(),
                    "arn:aws:iam::aws:policy/ReadOnlyAccess".into(),
                ],
                origin: Origin::Pod,
            }
        );
    }

    #[test]
    fn empty_annotations_ask_for_nothing() {
        let got = ask(&[
            ("session-name", ""),
            ("external-id", ""),
            ("session-duration", ""),
            ("session-policy-arns", ""),
        ])
        .unwrap();
        assert_eq!(got, ask(&[]).unwrap());
        assert_eq!(read(&annotations(&[("role", "")]), None), Ok(None));
        assert_eq!(
            read(&annotations(&[("session-duration", "x")]), None),
            Ok(None)
        );
    }

    #[test]
    fn every_annotation_is_checked() {
        let range = "write a duration between 15m and 12h, such as 1h or 1h30m";
        refused(
            "session-duration",
            "soon",
            &format!("it is not a duration; {range}"),
        );
        refused(
            "session-duration",
            "14m59s",
            &format!("it is shorter than STS allows; {range}"),
        );
        refused(
            "session-duration",
            "12h1s",
            &format!("it is longer than STS allows; {range}"),
        );
        let id = "an external id has 2 to 1224 letters, digits or any of _+=,.@:/-";
        refused("external-id", "x", id);
        refused("external-id", "a b", id);
        refused("external-id", &"x".repeat(1225), id);
        let key = "a tag's key has 1 to 128 letters, digits, spaces or any of _.:/=+-@ and does \
                   not start with aws:";
        refused("session-tag.", "v", key);
        refused("session-tag.AWS:x", "v", key);
        refused("session-tag.a*", "v", key);
        refused(&format!("session-tag.{}", "k".repeat(129)), "v", key);
        let value = "a tag's value has at most 256 letters, digits, spaces or any of _.:/=+-@";
        refused("session-tag.k", "a\tb", value);
        refused("session-tag.k", "a;b", value);
        refused("session-tag.k", &"v".repeat(257), value);
        let policy = "every entry must be the ARN of a managed policy, such as \
                      arn:aws:iam::aws:policy/ReadOnlyAccess; separate them with commas";
        for wrong in [
            "ReadOnlyAccess",
            "arn:aws:iam::aws:policy/ReadOnlyAccess,",
            "arn:aws:iam::aws:role/reader-reader",
            "arn:aws:s3::aws:policy/ReadOnlyAccess",
        ] {
            refused("session-policy-arns", wrong, policy);
        }
        let many: Vec<_> = (0..11)
            .map(|i| format!("arn:aws:iam::aws:policy/P{i}"))
            .collect();
        refused(
            "session-policy-arns",
            &many.join(","),
            "a session has at most 10 policies; merge some",
        );
    }

    #[test]
    fn limits_are_allowed_themselves() {
        assert!(ask(&[("session-duration", "15m")]).is_ok());
        assert!(ask(&[("session-duration", "12h")]).is_ok());
        assert!(ask(&[("external-id", &"x".repeat(1224))]).is_ok());
        assert!(ask(&[("session-tag.k", &"\u{e9}".repeat(256))]).is_ok());
    }

    #[test]
    fn tags_are_at_most_fifty_and_differ_by_more_than_case() {
        let keys: Vec<String> = (0..51).map(|i| format!("session-tag.k{i:02}")).collect();
        let pairs: Vec<_> = keys.iter().map(|key| (key.as_str(), "v")).collect();
        assert_eq!(ask(&pairs[..50]).unwrap().tags.len(), 50);
        let error = ask(&pairs).unwrap_err();
        assert!(error.contains("at most 50 tags"), "{error}");
        let error = ask(&[("session-tag.Team", "a"), ("session-tag.team", "b")]).unwrap_err();
        assert!(
            error.starts_with("annotation iam.amazonaws.com/session-tag.team of the pod: two"),
            "{error}"
        );
    }

    #[test]
    fn a_service_account_supplies_defaults_only_to_pods_without_a_role() {
        let account = annotations(&[
            ("role", "account"),
            ("external-id", "from-account"),
            ("session-name", "from-account"),
        ]);
        let read = |pod: &[(&str, &str)]| read(&annotations(pod), Some(&account)).unwrap();
        let own = read(&[("role", "own")]).unwrap();
        assert_eq!(
            (own.role.as_str(), own.external_id, own.origin),
            ("own", None, Origin::Pod)
        );
        let inherited = read(&[("session-name", "own")]).unwrap();
        assert_eq!(inherited.role, "account");
        assert_eq!(inherited.session_name.as_deref(), Some("own"));
        assert_eq!(inherited.external_id.as_deref(), Some("from-account"));
        assert_eq!(inherited.origin, Origin::ServiceAccount);
        assert_eq!(read(&[("role", "")]), None, "an empty role opts out");
    }

    #[test]
    fn an_error_names_the_object_it_is_on() {
        let account = annotations(&[("role", "r"), ("session-duration", "1m")]);
        let error = read(&Annotations::default(), Some(&account)).unwrap_err();
        assert!(
            error.to_string().starts_with(
                "annotation iam.amazonaws.com/session-duration of the ServiceAccount:"
            ),
            "{error}"
        );
    }
}
