//! Everything that is asked of STS for a pod, and the id that names it.
//!
//! Pure. Two pods whose requests are equal share credentials, on every node and replica, because
//! the id is a digest of the request and of nothing else.

use std::time::Duration;

use kiam_wire::CredentialId;
use ring::digest;

use crate::annotations::Tag;
use crate::arn::RoleArn;

/// One role session, as it will be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleRequest {
    id: CredentialId,
    session: Session,
}

/// The parts of a [`RoleRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The role.
    pub role: RoleArn,
    /// 2 to 64 characters.
    pub name: String,
    /// What the trust policy may demand.
    pub external_id: Option<String>,
    /// Sorted by key.
    pub tags: Vec<Tag>,
    /// Keys of those tags that follow into further roles. Sorted.
    pub transitive_keys: Vec<String>,
    /// Sorted.
    pub policy_arns: Vec<String>,
    /// Who stands behind the session, in `CloudTrail`, through all further roles.
    pub source_identity: Option<String>,
    /// 15 minutes to 12 hours, whole seconds.
    pub duration: Duration,
}

/// Names the encoding below; to be changed with it, so that two versions of the server never give
/// one id to different sessions.
const VERSION: &[u8] = b"kiam credential id 1";

impl RoleRequest {
    /// Names the session by its parts.
    pub fn new(session: Session) -> Self {
        Self {
            id: session.digest(),
            session,
        }
    }

    /// The same for every equal request, whichever server made it.
    pub const fn id(&self) -> CredentialId {
        self.id
    }

    /// The parts.
    pub const fn session(&self) -> &Session {
        &self.session
    }

    /// The role.
    pub const fn role(&self) -> &RoleArn {
        &self.session.role
    }
}

impl Session {
    /// Each part behind its length and each list behind its count, so that no two sessions encode
    /// alike.
    fn digest(&self) -> CredentialId {
        // No `..`: a part that is not in the id would let two sessions share credentials.
        let Self {
            role,
            name,
            external_id,
            tags,
            transitive_keys,
            policy_arns,
            source_identity,
            duration,
        } = self;
        let mut encoding = Encoding(digest::Context::new(&digest::SHA256));
        encoding.part(VERSION);
        encoding.text(role.as_str());
        encoding.text(name);
        encoding.option(external_id.as_deref());
        encoding.count(tags.len());
        for Tag { key, value } in tags {
            encoding.text(key);
            encoding.text(value);
        }
        encoding.list(transitive_keys);
        encoding.list(policy_arns);
        encoding.option(source_identity.as_deref());
        encoding.part(&duration.as_secs().to_be_bytes());
        encoding.finish()
    }
}

struct Encoding(digest::Context);

impl Encoding {
    fn count(&mut self, count: usize) {
        self.0
            .update(&u64::try_from(count).unwrap_or(u64::MAX).to_be_bytes());
    }

    fn part(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.part(text.as_bytes());
    }

    fn option(&mut self, text: Option<&str>) {
        self.count(usize::from(text.is_some()));
        if let Some(text) = text {
            self.text(text);
        }
    }

    fn list(&mut self, texts: &[String]) {
        self.count(texts.len());
        for text in texts {
            self.text(text);
        }
    }

    fn finish(self) -> CredentialId {
        let digest = self.0.finish();
        let mut id = [0; CredentialId::BYTES];
        // SHA-256 has exactly this length; zip cannot panic were it ever otherwise.
        for (to, from) in id.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        CredentialId::new(id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn session() -> Session {
        Session {
            role: RoleArn::parse("arn:aws:iam::123456789012:role/reader").unwrap(),
            name: "kiam-kiam".into(),
            external_id: None,
            tags: vec![],
            transitive_keys: vec![],
            policy_arns: vec![],
            source_identity: None,
            duration: Duration::from_hours(1),
        }
    }

    /// Changing the encoding without changing `VERSION` would let two releases of the server, side
    /// by side during an upgrade, disagree on what an id means.
    #[test]
    fn the_id_stays_what_it_was() {
        let id = RoleRequest::new(session()).id();
        assert_eq!(id.to_string(), "b1b917da063af44a");
    }

    #[test]
    fn every_part_makes_another_id() {
        let tag = |key: &str, value: &str| Tag {
            key: key.into(),
            value: value.into(),
        };
        let changes: [fn(&mut Session); 6] = [
            |_| {},
            |s| s.role = RoleArn::parse("arn:aws:iam::123456789012:role/reade").unwrap(),
            |s| s.name = "kiam-other".into(),
            |s| s.external_id = Some(String::new()),
            |s| s.source_identity = Some(String::new()),
            |s| s.duration = Duration::from_mins(59),
        ];
        let mut sessions: Vec<_> = changes
            .into_iter()
            .map(|change| {
                let mut changed = session();
                change(&mut changed);
                changed
            })
            .collect();
        let lists = [
            (vec![tag("a", "bc")], vec![], vec![]),
            (vec![tag("ab", "c")], vec![], vec![]),
            (vec![tag("a", "b"), tag("c", "")], vec![], vec![]),
            (vec![], vec!["a", "b"], vec![]),
            (vec![], vec!["a"], vec!["b"]),
            (vec![], vec![], vec!["a", "b"]),
            (vec![], vec!["ab"], vec![]),
        ];
        sessions.extend(lists.map(|(tags, transitive_keys, policy_arns)| Session {
            tags,
            transitive_keys: transitive_keys.into_iter().map(String::from).collect(),
            policy_arns: policy_arns.into_iter().map(String::from).collect(),
            ..session()
        }));
        let count = sessions.len();
        let ids: HashSet<_> = sessions
            .into_iter()
            .map(|s| RoleRequest::new(s).id())
            .collect();
        assert_eq!(ids.len(), count);
    }
}
