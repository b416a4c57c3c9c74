//! A pod as its node's agent needs to know it.

use std::net::IpAddr;

use crate::identity::{CredentialId, PodUid};
use crate::limits::{IPS_PER_POD_MAX, NAME_BYTES_MAX, REFUSAL_BYTES_MAX};
use crate::malformed::{Malformed, token};
use crate::proto;

/// One pod of the node, and what it may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// The key: names are reused, uids never.
    pub uid: PodUid,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The ServiceAccount it runs as; a token presented at the second door must name it.
    pub service_account: String,
    /// The addresses it owns now. Empty before it has one, and for hostNetwork pods.
    pub ips: Vec<IpAddr>,
    /// Shares the node's addresses, so only its ServiceAccount token can identify it.
    pub host_network: bool,
    /// A request of this pod without an IMDSv2 token is answered 401.
    pub imds_v2_required: bool,
    /// What it is answered.
    pub state: PodState,
}

/// What a pod may have. The agent can answer every one of these without asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodState {
    /// The credentials with this id.
    Granted(CredentialId),
    /// The credentials with this id, once they have been fetched. An agent that already holds
    /// unexpired ones with that id serves them.
    Pending(CredentialId),
    /// Nothing, and why.
    Refused(Refused),
    /// Nothing: it asked for no role.
    NoRole,
}

impl PodState {
    /// The credentials the pod is or will be served.
    pub const fn credential_id(&self) -> Option<CredentialId> {
        match self {
            Self::Granted(id) | Self::Pending(id) => Some(*id),
            Self::Refused(_) | Self::NoRole => None,
        }
    }
}

/// Why a pod gets nothing. Also a metric label; a closed set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// The namespace has no rule that permits roles.
    NamespaceHasNoRule,
    /// The namespace's rule does not match the role.
    NamespaceForbids,
    /// The namespace's rule cannot be used.
    NamespaceRuleInvalid,
    /// An annotation of the pod or its ServiceAccount cannot be used.
    AnnotationInvalid,
    /// STS refused the role.
    StsRefused,
    /// It is a static pod: what it asks for is written by its node.
    StaticPod,
    /// A reason newer than this program.
    Other,
}

impl Refusal {
    /// Every reason, for metrics that start at zero.
    pub const ALL: [Self; 7] = [
        Self::NamespaceHasNoRule,
        Self::NamespaceForbids,
        Self::NamespaceRuleInvalid,
        Self::AnnotationInvalid,
        Self::StsRefused,
        Self::StaticPod,
        Self::Other,
    ];

    /// The word used in labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NamespaceHasNoRule => "namespace_has_no_rule",
            Self::NamespaceForbids => "namespace_forbids",
            Self::NamespaceRuleInvalid => "namespace_rule_invalid",
            Self::AnnotationInvalid => "annotation_invalid",
            Self::StsRefused => "sts_refused",
            Self::StaticPod => "static_pod",
            Self::Other => "other",
        }
    }
}

/// A refusal and its explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    reason: Refusal,
    text: String,
}

impl Refused {
    /// Anything in `text` but printable ASCII and spaces becomes `?`, and it is cut at
    /// [`REFUSAL_BYTES_MAX`]: it quotes annotations, which anyone may write, and travels in a
    /// header.
    pub fn new(reason: Refusal, text: &str) -> Self {
        let text = text
            .chars()
            .map(|c| {
                if c == ' ' || c.is_ascii_graphic() {
                    c
                } else {
                    '?'
                }
            })
            .take(REFUSAL_BYTES_MAX)
            .collect();
        Self { reason, text }
    }

    /// The closed reason.
    pub const fn reason(&self) -> Refusal {
        self.reason
    }

    /// The explanation: printable ASCII and spaces, at most [`REFUSAL_BYTES_MAX`] bytes.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The addresses of `ip`, in network order.
pub(crate) fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An address from its bytes in network order. An IPv4 address in IPv6 clothes is taken for what
/// it is, so that each address has one form.
pub(crate) fn parse_ip(bytes: &[u8], field: &'static str) -> Result<IpAddr, Malformed> {
    let ip = if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(octets)
    } else if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(octets).to_canonical()
    } else {
        return Err(Malformed::new(field, "is not 4 or 16 bytes"));
    };
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(Malformed::new(field, "is not the address of one pod"));
    }
    Ok(ip)
}

impl From<Refusal> for proto::Refusal {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NamespaceHasNoRule => Self::NamespaceHasNoRule,
            Refusal::NamespaceForbids => Self::NamespaceForbids,
            Refusal::NamespaceRuleInvalid => Self::NamespaceRuleInvalid,
            Refusal::AnnotationInvalid => Self::AnnotationInvalid,
            Refusal::StsRefused => Self::StsRefused,
            Refusal::StaticPod => Self::StaticPod,
            Refusal::Other => Self::Unspecified,
        }
    }
}

impl From<proto::Refusal> for Refusal {
    fn from(refusal: proto::Refusal) -> Self {
        match refusal {
            proto::Refusal::NamespaceHasNoRule => Self::NamespaceHasNoRule,
            proto::Refusal::NamespaceForbids => Self::NamespaceForbids,
            proto::Refusal::NamespaceRuleInvalid => Self::NamespaceRuleInvalid,
            proto::Refusal::AnnotationInvalid => Self::AnnotationInvalid,
            proto::Refusal::StsRefused => Self::StsRefused,
            proto::Refusal::StaticPod => Self::StaticPod,
            proto::Refusal::Unspecified => Self::Other,
        }
    }
}

impl TryFrom<proto::Pod> for Pod {
    type Error = Malformed;

    fn try_from(message: proto::Pod) -> Result<Self, Malformed> {
        let proto::Pod {
            uid,
            namespace,
            name,
            service_account,
            ips,
            host_network,
            imds_v2_required,
            state,
        } = message;
        token(&namespace, "pod.namespace", NAME_BYTES_MAX)?;
        token(&name, "pod.name", NAME_BYTES_MAX)?;
        if !service_account.is_empty() {
            token(&service_account, "pod.service_account", NAME_BYTES_MAX)?;
        }
        if ips.len() > IPS_PER_POD_MAX {
            return Err(Malformed::too_long("pod.ips"));
        }
        if host_network && !ips.is_empty() {
            return Err(Malformed::new("pod.ips", "is set for a hostNetwork pod"));
        }
        let state = match state.ok_or(Malformed::missing("pod.state"))? {
            proto::pod::State::Granted(id) => {
                PodState::Granted(CredentialId::parse(&id, "pod.granted")?)
            }
            proto::pod::State::Pending(id) => {
                PodState::Pending(CredentialId::parse(&id, "pod.pending")?)
            }
            proto::pod::State::Refused(refused) => {
                PodState::Refused(Refused::new(refused.reason().into(), &refused.text))
            }
            proto::pod::State::NoRole(proto::NoRole {}) => PodState::NoRole,
        };
        Ok(Self {
            uid: PodUid::try_new(&uid)?,
            namespace,
            name,
            service_account,
            ips: ips
                .iter()
                .map(|ip| parse_ip(ip, "pod.ips"))
                .collect::<Result<_, _>>()?,
            host_network,
            imds_v2_required,
            state,
        })
    }
}

impl From<&Pod> for proto::Pod {
    fn from(pod: &Pod) -> Self {
        let state = match &pod.state {
            PodState::Granted(id) => proto::pod::State::Granted(id.as_bytes().to_vec()),
            PodState::Pending(id) => proto::pod::State::Pending(id.as_bytes().to_vec()),
            PodState::Refused(refused) => proto::pod::State::Refused(proto::Refused {
                reason: proto::Refusal::from(refused.reason).into(),
                text: refused.text.clone(),
            }),
            PodState::NoRole => proto::pod::State::NoRole(proto::NoRole {}),
        };
        Self {
            uid: pod.uid.as_str().to_owned(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            service_account: pod.service_account.clone(),
            ips: pod.ips.iter().map(|ip| ip_bytes(*ip)).collect(),
            host_network: pod.host_network,
            imds_v2_required: pod.imds_v2_required,
            state: Some(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> proto::Pod {
        proto::Pod {
            uid: "6f1a".into(),
            namespace: "default".into(),
            name: "web-0".into(),
            service_account: "web".into(),
            ips: vec![vec![10, 0, 0, 7]],
            host_network: false,
            imds_v2_required: false,
            state: Some(proto::pod::State::Granted(vec![1; 32])),
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut proto::Pod), expected: &str) {
        let mut message = message();
        change(&mut message);
        let got = Pod::try_from(message).map_or_else(|error| error.to_string(), |_| "ok".into());
        assert_eq!(got, expected);
    }

    #[test]
    fn every_field_is_checked() {
        check(|_| {}, "ok");
        check(|pod| pod.uid.clear(), "pod.uid is missing");
        check(|pod| pod.name = "n".repeat(254), "pod.name is too long");
        check(
            |pod| pod.ips = vec![vec![1, 2, 3]],
            "pod.ips is not 4 or 16 bytes",
        );
        check(
            |pod| pod.ips = vec![vec![0; 4]],
            "pod.ips is not the address of one pod",
        );
        check(|pod| pod.ips = vec![vec![10; 4]; 17], "pod.ips is too long");
        check(
            |pod| pod.host_network = true,
            "pod.ips is set for a hostNetwork pod",
        );
        check(|pod| pod.state = None, "pod.state is missing");
        check(
            |pod| pod.state = Some(proto::pod::State::Pending(vec![1; 31])),
            "pod.pending is not 32 bytes",
        );
    }

    #[test]
    fn an_address_has_one_form() {
        let mapped = "::ffff:10.0.0.7".parse::<IpAddr>().unwrap();
        assert_eq!(
            parse_ip(&ip_bytes(mapped), "x"),
            Ok("10.0.0.7".parse().unwrap())
        );
    }

    #[test]
    fn an_explanation_is_made_fit_for_a_header() {
        let refused = Refused::new(Refusal::NamespaceForbids, "a\r\nb: \u{e9}");
        assert_eq!(refused.text(), "a??b: ?");
        assert_eq!(
            Refused::new(Refusal::Other, &"x".repeat(600)).text().len(),
            REFUSAL_BYTES_MAX
        );
    }

    #[test]
    fn reasons_survive_the_wire() {
        for reason in Refusal::ALL {
            assert_eq!(Refusal::from(proto::Refusal::from(reason)), reason);
        }
    }
}
