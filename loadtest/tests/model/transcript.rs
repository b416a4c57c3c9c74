//! A case as somebody reads it who has never seen this test: what happened, in words, and below it
//! whatever is not as it was before.

use std::fmt;

use crate::node::address;
use crate::sts::Mood;
use crate::{BEGINNING, Event, World};

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asks_for = |role: Option<u8>| match role {
            Some(role) => format!("role-{role}"),
            None => "no role".into(),
        };
        match *self {
            Self::PodBound {
                pod,
                node,
                namespace,
                role,
                ip,
            } => {
                let role = asks_for(role);
                write!(
                    f,
                    "a new pod-{pod} of namespace-{namespace} is bound to node-{node}, "
                )?;
                match ip {
                    Some(ip) => write!(f, "has {} and asks for {role}", address(ip)),
                    None => write!(f, "has no address yet and asks for {role}"),
                }
            }
            Self::PodHasAddress { pod, ip } => write!(f, "pod-{pod} has {}", address(ip)),
            Self::PodStops { pod } => write!(f, "pod-{pod} is told to stop"),
            Self::PodGone { pod } => write!(f, "pod-{pod} is deleted"),
            Self::Annotated { pod, role } => write!(f, "pod-{pod} now asks for {}", asks_for(role)),
            Self::Permits { namespace, what } => {
                let what = ["nothing", "role-0 only", "every role"][usize::from(what)];
                write!(f, "namespace-{namespace} now permits {what}")
            }
            Self::Relisted => write!(f, "the server's watch breaks; everything is listed again"),
            Self::Sts(mood) => write!(f, "STS {mood}"),
            Self::Passes { seconds } => write!(f, "{seconds} s pass"),
            Self::ServersClockSet { ahead_s } => {
                write!(
                    f,
                    "the server's clock is set {}, and 15 s pass",
                    set(ahead_s)
                )
            }
            Self::AgentsClockSet { node, ahead_s } => {
                write!(f, "node-{node}'s clock is set {}", set(ahead_s))
            }
            Self::StreamBreaks { node } => write!(f, "node-{node}'s stream breaks, for now"),
            Self::StreamOpens { node } => write!(f, "node-{node} opens a stream"),
            Self::Delivered { node } => {
                write!(f, "node-{node} hears what the server has to say")
            }
            Self::Vanished { pod } => {
                write!(
                    f,
                    "the kernel says that nobody has pod-{pod}'s address any more"
                )
            }
            Self::Reappeared { pod } => {
                write!(f, "the kernel says that somebody has pod-{pod}'s address")
            }
            Self::Sealed { node } => {
                write!(f, "node-{node}'s agent writes down what it holds")
            }
            Self::AgentKilled { node } => {
                write!(f, "node-{node}'s agent is killed, and another takes over")
            }
            Self::ServerKilled => write!(f, "the server is killed, and another starts"),
            Self::Asked { node, ip } => {
                write!(f, "somebody on node-{node} asks from {}", address(ip))
            }
        }
    }
}

fn set(ahead_s: i32) -> String {
    match ahead_s {
        0 => "right".into(),
        1.. => format!("{ahead_s} s ahead"),
        _ => format!("{} s back", -ahead_s),
    }
}

impl fmt::Display for Mood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Well => "is well",
            Self::Slow => "takes 20 s for each call",
            Self::Down => "is down",
            Self::Throttling => "throttles every call",
            Self::Refusing => "refuses role-1",
        })
    }
}

/// Prints a case while it runs.
pub(crate) struct Transcript {
    standing: Vec<String>,
}

impl Transcript {
    /// Of a case that is about to begin.
    pub(crate) fn new(world: &World) -> Self {
        eprintln!("     {BEGINNING}");
        Self {
            standing: world.standing(),
        }
    }

    pub(crate) fn happened(&mut self, number: usize, event: &Event, world: &World) {
        eprintln!("{number:>3}  {event}");
        self.shows(world);
    }

    pub(crate) fn healed(&mut self, world: &World) {
        eprintln!("     everything is made well, and time passes");
        self.shows(world);
    }

    /// Whatever is not as it was.
    fn shows(&mut self, world: &World) {
        let now = world.standing();
        let before = std::mem::replace(&mut self.standing, now);
        for line in self.standing.iter().filter(|line| !before.contains(line)) {
            eprintln!("       {line}");
        }
    }
}
