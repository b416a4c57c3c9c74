//! Why a pod gets what it gets, in words that its developer understands.
//!
//! Pure. The way from annotation to credentials, step by step, each with what was found there; the
//! first step that stops is the answer. No secret is in it: the admin port has no lock.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use kiam_wire::report::Interception;
use kiam_wire::{PodState, UnixSeconds};
use serde::Serialize;

use crate::push::StreamStatus;

/// What is known of a pod and of everything on its way to credentials.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The pod's namespace and name.
    pub pod: (String, String),
    /// `None`: the watch has not shown such a pod.
    pub known: Option<Known>,
    /// The caches have been filled.
    pub synced: bool,
}

/// What is known of a pod that exists.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its uid.
    pub uid: String,
    /// Where it runs, once it is bound.
    pub node: Option<String>,
    /// The addresses it owns.
    pub ips: Vec<String>,
    /// The addresses that it and other running pods show, so that they are nobody's, and the names
    /// of those others.
    pub contested: Vec<(IpAddr, Vec<String>)>,
    /// It shares the node's addresses.
    pub host_network: bool,
    /// Its `ServiceAccount`.
    pub service_account: String,
    /// The role it asks for, as written, and on what.
    pub asks: Option<(String, &'static str)>,
    /// The namespace's rule; `None` without one.
    pub permitted: Option<String>,
    /// What the namespace says of `IMDSv2`, if that had to be guessed.
    pub odd_imds_v2: Option<String>,
    /// The role it resolves to, and the session's name, when it is allowed.
    pub session: Option<(String, String)>,
    /// What its node is told; `None` while nothing is.
    pub state: Option<PodState>,
    /// The last answer of STS.
    pub last_answer: Option<LastAnswer>,
    /// When its credentials end.
    pub expires_at: Option<UnixSeconds>,
    /// Its node's streams.
    pub streams: Vec<StreamStatus>,
    /// The time.
    pub now: UnixSeconds,
}

/// What STS said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastAnswer {
    /// When.
    pub at: UnixSeconds,
    /// Why not; `None` when it gave credentials.
    pub error: Option<Arc<str>>,
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Not there yet; nothing to do but wait.
    Waiting,
    /// It ends here.
    Stopped,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was looked at.
    #[serde(rename = "step")]
    pub looked_at: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub text: String,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    /// `namespace/name`.
    pub pod: String,
    /// In one sentence.
    pub answer: String,
    /// Step by step, as far as it goes.
    pub steps: Vec<Step>,
}

impl Why {
    /// Explains.
    pub fn of(facts: &Facts) -> Self {
        let (namespace, name) = &facts.pod;
        let mut steps = Vec::new();
        explain(facts, &mut steps);
        let stopped = steps.iter().find(|step| step.verdict != Verdict::Ok);
        let answer = stopped.map_or_else(
            || "the pod is being served its credentials".to_owned(),
            |step| step.text.clone(),
        );
        Self {
            pod: format!("{namespace}/{name}"),
            answer,
            steps,
        }
    }

    /// As text for people.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}\n\n", self.pod, self.answer);
        for step in &self.steps {
            let mark = match step.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Waiting => "wait",
                Verdict::Stopped => "STOP",
            };
            // Writing to a String cannot fail.
            let _infallible =
                writeln!(text, "  {mark}  {:<12} {}", step.looked_at, step.text).is_ok();
        }
        text
    }
}

fn explain(facts: &Facts, steps: &mut Vec<Step>) {
    let mut say = |looked_at, verdict, text: String| {
        steps.push(Step {
            looked_at,
            verdict,
            text,
        });
        verdict == Verdict::Ok
    };
    let Some(pod) = &facts.known else {
        let text = if facts.synced {
            "there is no such pod, or it has run to its end".to_owned()
        } else {
            "this server is still reading the cluster; ask again in a moment".to_owned()
        };
        let verdict = if facts.synced {
            Verdict::Stopped
        } else {
            Verdict::Waiting
        };
        say("pod", verdict, text);
        return;
    };
    let kind = if pod.host_network {
        "hostNetwork pod"
    } else {
        "pod"
    };
    say(
        "pod",
        Verdict::Ok,
        format!(
            "{kind} {} as ServiceAccount {:?}",
            pod.uid, pod.service_account
        ),
    );
    let Some((role, on)) = &pod.asks else {
        let text = "it asks for no role: it has no annotation iam.amazonaws.com/role";
        say("annotation", Verdict::Stopped, text.to_owned());
        return;
    };
    let text = format!("the {on} asks for role {role:?}");
    say("annotation", Verdict::Ok, text);
    rule(pod, &mut say);
    let Some(node) = &pod.node else {
        say(
            "node",
            Verdict::Waiting,
            "it has not been bound to a node yet".to_owned(),
        );
        return;
    };
    if !credentials(pod, &mut say) {
        return;
    }
    for (ip, others) in &pod.contested {
        let text = format!(
            "its address {ip} is shown by {} as well, so that requests from it could be either's: \
             none of them is answered by this address until the others give it up",
            others.join(", ")
        );
        say("address", Verdict::Stopped, text);
    }
    served(pod, node, &mut say);
}

fn rule(pod: &Known, say: &mut impl FnMut(&'static str, Verdict, String) -> bool) {
    match &pod.permitted {
        Some(rule) => say(
            "namespace",
            Verdict::Ok,
            format!("its namespace permits {rule:?}"),
        ),
        None => say(
            "namespace",
            Verdict::Ok,
            "its namespace has no annotation iam.amazonaws.com/permitted".to_owned(),
        ),
    };
    if let Some(value) = &pod.odd_imds_v2 {
        say(
            "imds-v2",
            Verdict::Ok,
            format!(
                "its namespace has the annotation iam.amazonaws.com/imds-v2: {value:?}, which is \
                 taken for \"required\": requests without a token are refused"
            ),
        );
    }
    if let Some((role, session)) = &pod.session {
        say(
            "role",
            Verdict::Ok,
            format!("allowed: {role} as session {session}"),
        );
    }
}

/// What its node is told; true when that is credentials.
fn credentials(pod: &Known, say: &mut impl FnMut(&'static str, Verdict, String) -> bool) -> bool {
    let answer = |nothing: &str| match &pod.last_answer {
        Some(LastAnswer {
            at,
            error: Some(error),
        }) => format!("STS said at {at}: {error}"),
        Some(LastAnswer { at, error: None }) => format!("STS gave credentials at {at}"),
        None => nothing.to_owned(),
    };
    match &pod.state {
        None => say(
            "decision",
            Verdict::Waiting,
            "its namespace or ServiceAccount has not been seen yet".to_owned(),
        ),
        Some(PodState::NoRole) => say("decision", Verdict::Stopped, "it gets no role".to_owned()),
        Some(PodState::Refused(refused)) => say(
            "decision",
            Verdict::Stopped,
            format!("refused: {}", refused.text()),
        ),
        Some(PodState::Pending(_)) => {
            let text = answer("STS has been asked and has not answered yet");
            say(
                "credentials",
                Verdict::Waiting,
                format!("not there yet: {text}"),
            )
        }
        Some(PodState::Granted(_)) => {
            let until = pod.expires_at.map_or(String::new(), |end| {
                let left = end.since(pod.now).as_secs() / 60;
                format!(", valid until {end} ({left} minutes left)")
            });
            let text = answer("STS gave credentials");
            say("credentials", Verdict::Ok, format!("{text}{until}"))
        }
    }
}

fn served(pod: &Known, node: &str, say: &mut impl FnMut(&'static str, Verdict, String) -> bool) {
    let Some(stream) = pod.streams.last() else {
        let text = format!(
            "no agent of node {node} follows this server; it may follow another replica, whose \
             /why says more"
        );
        say("agent", Verdict::Waiting, text);
        return;
    };
    let version = &stream.agent_version;
    if stream.applied == Some(stream.sent) {
        let text = format!(
            "the agent ({version}) on node {node} serves revision {}",
            stream.sent
        );
        say("agent", Verdict::Ok, text);
    } else {
        let text = format!(
            "the agent ({version}) on node {node} was sent revision {} and has not applied it yet",
            stream.sent
        );
        say("agent", Verdict::Waiting, text);
    }
    match stream.report.as_ref().map(|report| report.interception) {
        Some(Interception::Verified) => say(
            "interception",
            Verdict::Ok,
            "requests of pods reach the agent".to_owned(),
        ),
        Some(Interception::Unverified) => say(
            "interception",
            Verdict::Waiting,
            "no request of a pod has been seen to reach the agent; check its --host-interface"
                .to_owned(),
        ),
        Some(Interception::Off) => say(
            "interception",
            Verdict::Ok,
            "the agent was told not to intercept".to_owned(),
        ),
        None => true,
    };
    if pod.ips.is_empty() && !pod.contested.is_empty() {
        // Said above.
    } else if pod.ips.is_empty() && !pod.host_network {
        say(
            "address",
            Verdict::Waiting,
            "it has no address yet".to_owned(),
        );
    } else if pod.host_network {
        let text = "it shares the node's address: only its ServiceAccount token identifies it, \
                    through AWS_CONTAINER_CREDENTIALS_FULL_URI";
        say("address", Verdict::Ok, text.to_owned());
    } else {
        say(
            "address",
            Verdict::Ok,
            format!("requests from {}", pod.ips.join(", ")),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiam_wire::report::Report;
    use kiam_wire::{CredentialId, Refusal, Refused, Revision};

    fn known() -> Known {
        let revision = Revision {
            epoch: 1,
            number: 7,
        };
        Known {
            uid: "u".into(),
            node: Some("node-a".into()),
            ips: vec!["10.0.0.1".into()],
            contested: vec![],
            host_network: false,
            service_account: "web".into(),
            asks: Some(("reader".into(), "pod")),
            permitted: Some(".*reader".into()),
            odd_imds_v2: None,
            session: Some((
                "arn:aws:iam::123456789012:role/reader".into(),
                "kiam-kiam".into(),
            )),
            state: Some(PodState::Granted(CredentialId::new([1; 32]))),
            last_answer: Some(LastAnswer {
                at: UnixSeconds::new(0),
                error: None,
            }),
            expires_at: Some(UnixSeconds::new(3600)),
            streams: vec![StreamStatus {
                agent_version: "0.1".into(),
                sent: revision,
                applied: Some(revision),
                report: Some(Report {
                    serving: true,
                    interception: Interception::Verified,
                    driver: "epoll".into(),
                }),
            }],
            now: UnixSeconds::new(600),
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Known), expected: &str) {
        let mut known = known();
        change(&mut known);
        let facts = Facts {
            pod: ("default".into(), "web-0".into()),
            known: Some(known),
            synced: true,
        };
        let why = Why::of(&facts);
        assert!(why.answer.contains(expected), "{}", why.text());
    }

    #[test]
    fn the_first_step_that_stops_is_the_answer() {
        check(|_| {}, "is being served");
        check(|pod| pod.asks = None, "it asks for no role");
        check(|pod| pod.node = None, "not been bound to a node");
        check(|pod| pod.state = None, "has not been seen yet");
        check(
            |pod| {
                let refused = Refused::new(Refusal::NamespaceForbids, "the rule says no");
                pod.state = Some(PodState::Refused(refused));
            },
            "refused: the rule says no",
        );
        check(
            |pod| {
                pod.state = Some(PodState::Pending(CredentialId::new([1; 32])));
                pod.last_answer = Some(LastAnswer {
                    at: UnixSeconds::new(0),
                    error: Some("Throttling".into()),
                });
            },
            "STS said at 1970-01-01T00:00:00Z: Throttling",
        );
        check(|pod| pod.streams.clear(), "no agent of node node-a");
        check(
            |pod| pod.streams[0].applied = None,
            "has not applied it yet",
        );
        check(|pod| pod.ips.clear(), "no address yet");
        check(
            |pod| {
                pod.ips.clear();
                pod.contested = vec![("10.0.0.1".parse().unwrap(), vec!["team/other".into()])];
            },
            "its address 10.0.0.1 is shown by team/other as well",
        );
    }

    #[test]
    fn a_guess_about_imds_v2_is_shown() {
        let facts = Facts {
            pod: ("default".into(), "web-0".into()),
            known: Some(Known {
                odd_imds_v2: Some("true".into()),
                ..known()
            }),
            synced: true,
        };
        let text = Why::of(&facts).text();
        assert!(text.contains("imds-v2: \"true\""), "{text}");
    }

    #[test]
    fn unknown_pods_are_told_from_an_unknown_cluster() {
        let facts = |synced| Facts {
            pod: ("a".into(), "b".into()),
            known: None,
            synced,
        };
        assert!(Why::of(&facts(true)).answer.contains("no such pod"));
        assert!(Why::of(&facts(false)).answer.contains("still reading"));
    }

    #[test]
    fn the_text_shows_every_step() {
        let facts = Facts {
            pod: ("default".into(), "web-0".into()),
            known: Some(known()),
            synced: true,
        };
        let text = Why::of(&facts).text();
        for step in [
            "pod",
            "annotation",
            "namespace",
            "role",
            "credentials",
            "agent",
            "address",
        ] {
            assert!(text.contains(&format!("  ok    {step}")), "{step}: {text}");
        }
        assert!(text.contains("50 minutes left"));
    }
}
