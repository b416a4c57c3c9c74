//! From what was seen, what is said about interception: on the wire, in `/readyz`, in a metric.
//!
//! Pure. The rule behind the table: *verified* is only said when a connection really arrived through
//! the rules, *ready* never when rules are known to be missing or a probe reached the node's own
//! metadata service.

use kiam_wire::report::Interception;

use super::Placement;
use super::probe::Outcome;

/// What is known about the rules themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The agent was told not to intercept.
    Off,
    /// Read from the kernel.
    Read(Placement),
    /// Without `NET_ADMIN` they cannot be read, but a connection of the agent's own went through
    /// them and came back to it.
    Felt,
    /// They cannot be read, and are not in place any more, or do not lead here; one sentence.
    Lost(String),
    /// They can neither be read nor felt; an installer vouched for the same rules in this boot.
    Vouched,
    /// They cannot be read and nobody vouched for them.
    Unreadable(String),
}

/// What a probe met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// Who answered.
    pub outcome: Outcome,
    /// The installer probed, usually while no agent listened.
    pub by_installer: bool,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// For the server.
    pub interception: Interception,
    /// Whether the node may be declared ready as far as interception goes.
    pub ready: bool,
    /// For people: one sentence, lower case.
    pub reason: String,
}

fn say(interception: Interception, ready: bool, reason: &str) -> Verdict {
    Verdict {
        interception,
        ready,
        reason: reason.to_owned(),
    }
}

/// `probed` is the last probe, `arrived` whether any pod's connection came through the
/// rules since the agent started.
pub fn verdict(seen: &Seen, probed: Option<Probed>, arrived: bool) -> Verdict {
    if *seen == Seen::Off {
        return say(Interception::Off, true, "interception is someone else's");
    }
    // What a probe saw beats what the rules look like.
    if probed.is_some_and(|probed| probed.outcome == Outcome::Leak) {
        return say(
            Interception::Unverified,
            false,
            "a probe reached the node's own metadata service: pods can get the node's credentials",
        );
    }
    match seen {
        Seen::Off | Seen::Read(Placement::InPlace) | Seen::Vouched | Seen::Felt => {}
        Seen::Lost(how) => return say(Interception::Unverified, false, how),
        Seen::Read(Placement::Absent) => {
            return say(Interception::Unverified, false, "the rules are not there");
        }
        Seen::Read(Placement::Altered(how)) => {
            let reason = format!("the rules are not as they should be: {how}");
            return say(Interception::Unverified, false, &reason);
        }
        Seen::Unreadable(_) if arrived => {}
        Seen::Unreadable(why) => {
            let reason = format!(
                "the rules cannot be read ({why}), no installer vouched for them, and no pod's \
                 request came through them yet"
            );
            return say(Interception::Unverified, false, &reason);
        }
    }
    from_probe(probed, arrived)
}

/// The rules are in place as far as anybody can tell; has anything come through them?
fn from_probe(probed: Option<Probed>, arrived: bool) -> Verdict {
    let by_installer = probed.is_some_and(|probed| probed.by_installer);
    match (arrived, probed.map(|probed| probed.outcome)) {
        (true, _) => say(
            Interception::Verified,
            true,
            "a pod's request came through the rules",
        ),
        (false, Some(Outcome::Agent)) => say(
            Interception::Verified,
            true,
            "a probe came through the rules",
        ),
        (false, Some(Outcome::Refused)) if by_installer => say(
            Interception::Verified,
            true,
            "the installer's probe was refused while no agent listened, as it should be",
        ),
        (false, Some(Outcome::Refused)) => say(
            Interception::Unverified,
            false,
            "a probe was refused although the agent listens: --host may not be this node's \
             address, or a firewall refuses pods",
        ),
        (false, Some(Outcome::Silent)) => say(
            Interception::Unverified,
            true,
            "the rules are in place, but a probe got no answer: the network may drop what comes \
             from interfaces it did not make",
        ),
        (false, Some(Outcome::Stranger)) => say(
            Interception::Unverified,
            false,
            "a probe was answered by something that is not this agent",
        ),
        (false, Some(Outcome::Leak) | None) => say(
            Interception::Unverified,
            true,
            "the rules are in place, nothing has come through them yet",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seen: &Seen, probed: Option<Outcome>, arrived: bool, expected: (Interception, bool)) {
        let by_installer = matches!(seen, Seen::Vouched | Seen::Felt);
        let probed = probed.map(|outcome| Probed {
            outcome,
            by_installer,
        });
        let got = verdict(seen, probed, arrived);
        assert_eq!((got.interception, got.ready), expected, "{got:?}");
    }

    const READY: (Interception, bool) = (Interception::Verified, true);
    const PROBABLY: (Interception, bool) = (Interception::Unverified, true);
    const NOT: (Interception, bool) = (Interception::Unverified, false);

    #[test]
    fn only_what_came_through_verifies() {
        let in_place = Seen::Read(Placement::InPlace);
        for seen in [&in_place, &Seen::Vouched, &Seen::Felt] {
            check(seen, None, false, PROBABLY);
            check(seen, None, true, READY);
            check(seen, Some(Outcome::Agent), false, READY);
            check(seen, Some(Outcome::Silent), false, PROBABLY);
            check(seen, Some(Outcome::Stranger), false, NOT);
            check(seen, Some(Outcome::Leak), true, NOT);
        }
        check(&Seen::Vouched, Some(Outcome::Refused), false, READY);
        check(&Seen::Felt, Some(Outcome::Refused), false, READY);
        check(&in_place, Some(Outcome::Refused), false, NOT);
    }

    #[test]
    fn missing_rules_are_never_ready() {
        for seen in [
            Seen::Read(Placement::Absent),
            Seen::Read(Placement::Altered("x".into())),
            Seen::Lost("x".into()),
        ] {
            check(&seen, Some(Outcome::Agent), true, NOT);
        }
    }

    #[test]
    fn an_agent_that_may_not_look_believes_pods_or_an_installer() {
        let blind = Seen::Unreadable("no NET_ADMIN".into());
        check(&blind, None, false, NOT);
        check(&blind, None, true, READY);
        check(&blind, Some(Outcome::Leak), true, NOT);
    }

    #[test]
    fn what_is_felt_is_no_proof_of_the_pods_way() {
        check(&Seen::Felt, None, false, PROBABLY);
        check(&Seen::Felt, None, true, READY);
    }

    #[test]
    fn off_is_off() {
        check(&Seen::Off, None, false, (Interception::Off, true));
    }
}
