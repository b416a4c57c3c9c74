//! What an agent says on the stream.

use std::net::IpAddr;

use crate::identity::{CredentialId, Revision};
use crate::limits::{CREDENTIALS_MAX, NAME_BYTES_MAX, WAITING_PEERS_MAX};
use crate::malformed::{Malformed, token};
use crate::pod::{ip_bytes, parse_ip};
use crate::proto;
use crate::time::UnixSeconds;

/// One message of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentMessage {
    /// The first message of a stream, and only that.
    Hello(Hello),
    /// The data plane sees this revision.
    Applied(Revision),
    /// Peers with parked requests since the last such message. What could be no pod's address is left out.
    Waiting(Vec<IpAddr>),
    /// The agent's own state, at the start and whenever it changes.
    Report(Report),
}

/// Who the agent is and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The Kubernetes node the agent claims to run on.
    pub node_name: String,
    /// For logs and metrics only.
    pub agent_version: String,
    /// What it holds, if anything.
    pub holds: Option<Revision>,
    /// What it could serve without the server.
    pub held: Vec<HeldCredential>,
}

/// Credentials an agent still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldCredential {
    /// Which.
    pub id: CredentialId,
    /// Until when.
    pub expires_at: UnixSeconds,
}

/// An agent's own state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The data plane serves a snapshot.
    pub serving: bool,
    /// What stands between pods and the node's metadata service.
    pub interception: Interception,
    /// `io_uring` or `epoll`.
    pub driver: String,
}

/// What stands between pods and the node's metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interception {
    /// The agent was told not to intercept.
    Off,
    /// Rules are in place; no probe has come through them yet.
    Unverified,
    /// A probe came through the rules to this agent.
    Verified,
}

impl From<Interception> for proto::Interception {
    fn from(interception: Interception) -> Self {
        match interception {
            Interception::Off => Self::Off,
            Interception::Unverified => Self::Unverified,
            Interception::Verified => Self::Verified,
        }
    }
}

impl TryFrom<proto::AgentMessage> for AgentMessage {
    type Error = Malformed;

    fn try_from(message: proto::AgentMessage) -> Result<Self, Malformed> {
        use proto::agent_message::Message;
        match message
            .message
            .ok_or(Malformed::missing("agent_message.message"))?
        {
            Message::Hello(hello) => Hello::try_from(hello).map(Self::Hello),
            Message::Applied(revision) => {
                Revision::parse(Some(revision), "agent_message.applied").map(Self::Applied)
            }
            Message::Waiting(proto::Waiting { peers }) => {
                if peers.len() > WAITING_PEERS_MAX {
                    return Err(Malformed::too_long("waiting.peers"));
                }
                // Each is a hint: what is no pod's address, which a pod may have put there, costs the
                // hint and not the stream.
                let peers = peers
                    .iter()
                    .filter_map(|ip| parse_ip(ip, "waiting.peers").ok());
                Ok(Self::Waiting(peers.collect()))
            }
            Message::Report(report) => Report::try_from(report).map(Self::Report),
        }
    }
}

impl TryFrom<proto::Hello> for Hello {
    type Error = Malformed;

    fn try_from(message: proto::Hello) -> Result<Self, Malformed> {
        let proto::Hello {
            node_name,
            agent_version,
            holds,
            held,
        } = message;
        token(&node_name, "hello.node_name", NAME_BYTES_MAX)?;
        token(&agent_version, "hello.agent_version", NAME_BYTES_MAX)?;
        if held.len() > CREDENTIALS_MAX {
            return Err(Malformed::too_long("hello.held"));
        }
        let held = held.into_iter().map(|held| {
            Ok(HeldCredential {
                id: CredentialId::parse(&held.credential_id, "hello.held.credential_id")?,
                expires_at: UnixSeconds::new(held.expires_at_unix_s),
            })
        });
        Ok(Self {
            node_name,
            agent_version,
            holds: holds
                .map(|holds| Revision::parse(Some(holds), "hello.holds"))
                .transpose()?,
            held: held.collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<proto::Report> for Report {
    type Error = Malformed;

    fn try_from(message: proto::Report) -> Result<Self, Malformed> {
        let interception = match message.interception() {
            proto::Interception::Off => Interception::Off,
            proto::Interception::Unverified => Interception::Unverified,
            proto::Interception::Verified => Interception::Verified,
            proto::Interception::Unspecified => {
                return Err(Malformed::missing("report.interception"));
            }
        };
        token(&message.driver, "report.driver", NAME_BYTES_MAX)?;
        Ok(Self {
            serving: message.serving,
            interception,
            driver: message.driver,
        })
    }
}

impl From<AgentMessage> for proto::AgentMessage {
    fn from(message: AgentMessage) -> Self {
        use proto::agent_message::Message;
        let message = match message {
            AgentMessage::Hello(hello) => Message::Hello(proto::Hello {
                node_name: hello.node_name,
                agent_version: hello.agent_version,
                holds: hello.holds.map(proto::Revision::from),
                held: hello
                    .held
                    .into_iter()
                    .map(|held| proto::HeldCredential {
                        credential_id: held.id.as_bytes().to_vec(),
                        expires_at_unix_s: held.expires_at.get(),
                    })
                    .collect(),
            }),
            AgentMessage::Applied(revision) => Message::Applied(revision.into()),
            AgentMessage::Waiting(peers) => Message::Waiting(proto::Waiting {
                peers: peers.into_iter().map(ip_bytes).collect(),
            }),
            AgentMessage::Report(report) => Message::Report(proto::Report {
                serving: report.serving,
                interception: proto::Interception::from(report.interception).into(),
                driver: report.driver,
            }),
        };
        Self {
            message: Some(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn round_trip(message: AgentMessage) {
        let back = AgentMessage::try_from(proto::AgentMessage::from(message.clone()));
        assert_eq!(back, Ok(message));
    }

    #[test]
    fn what_an_agent_says_is_what_a_server_hears() {
        let revision = Revision {
            epoch: 1,
            number: 2,
        };
        let held = HeldCredential {
            id: CredentialId::new([3; 32]),
            expires_at: UnixSeconds::new(4),
        };
        round_trip(AgentMessage::Hello(Hello {
            node_name: "node-a".into(),
            agent_version: "0.1.0".into(),
            holds: Some(revision),
            held: vec![held],
        }));
        round_trip(AgentMessage::Applied(revision));
        round_trip(AgentMessage::Waiting(vec![
            "10.0.0.1".parse().unwrap(),
            "fd00::1".parse().unwrap(),
        ]));
        round_trip(AgentMessage::Report(Report {
            serving: true,
            interception: Interception::Verified,
            driver: "io_uring".into(),
        }));
    }

    #[test]
    fn a_peer_that_is_no_pod_costs_the_others_nothing() {
        let pod: IpAddr = "10.0.0.1".parse().unwrap();
        let peers = ["0.0.0.0", "224.0.0.1", "::", "ff02::1", "10.0.0.1"];
        let peers = peers.map(|peer| ip_bytes(peer.parse().unwrap()));
        let peers = [&peers[..], &[vec![1], vec![]]].concat();
        let waiting = proto::agent_message::Message::Waiting(proto::Waiting { peers });
        let message = proto::AgentMessage {
            message: Some(waiting),
        };
        let heard = AgentMessage::try_from(message);
        assert_eq!(heard, Ok(AgentMessage::Waiting(vec![pod])));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let hello = |node_name: &str| proto::AgentMessage {
            message: Some(proto::agent_message::Message::Hello(proto::Hello {
                node_name: node_name.into(),
                agent_version: "1".into(),
                ..Default::default()
            })),
        };
        let refused =
            |message: proto::AgentMessage| AgentMessage::try_from(message).unwrap_err().to_string();
        assert_eq!(refused(hello("")), "hello.node_name is missing");
        assert_eq!(
            refused(proto::AgentMessage::default()),
            "agent_message.message is missing"
        );
        let peers = vec![vec![10, 0, 0, 1]; WAITING_PEERS_MAX + 1];
        let waiting = proto::agent_message::Message::Waiting(proto::Waiting { peers });
        assert_eq!(
            refused(proto::AgentMessage {
                message: Some(waiting)
            }),
            "waiting.peers is too long"
        );
    }
}
