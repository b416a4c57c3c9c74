//! Whose an address is when several pods show it.
//!
//! A terminating pod keeps showing an address that the next pod already uses, so one that is not
//! stopping goes before all that are. Two that are not stopping cannot both be right, and nothing
//! here knows which is: whoever created the later pod could otherwise take the earlier one's
//! requests. So neither is believed until one lets go.

use std::collections::HashSet;
use std::slice;

use kiam_wire::PodUid;

use super::PodSeen;

/// The pods that show one address; at least one.
#[derive(Debug)]
pub(super) enum Claimants {
    /// In place: nearly every address is shown by one pod alone.
    One(PodUid),
    /// Several, for as long as there are.
    Several(Box<Several>),
}

/// Two or more.
#[derive(Debug)]
pub(super) struct Several(Vec<PodUid>);

impl Claimants {
    pub(super) const fn one(pod: PodUid) -> Self {
        Self::One(pod)
    }

    pub(super) fn iter(&self) -> slice::Iter<'_, PodUid> {
        match self {
            Self::One(pod) => slice::from_ref(pod).iter(),
            Self::Several(several) => several.0.iter(),
        }
    }

    /// One more, which does not show it yet.
    pub(super) fn add(&mut self, pod: PodUid) {
        match self {
            Self::One(first) => {
                let several = Several(vec![first.clone(), pod]);
                *self = Self::Several(Box::new(several));
            }
            Self::Several(several) => several.0.push(pod),
        }
    }

    /// One less; true when nobody is left.
    pub(super) fn remove(&mut self, pod: &PodUid) -> bool {
        match self {
            Self::One(only) => only == pod,
            Self::Several(several) => {
                several.0.retain(|claimant| claimant != pod);
                if let [last] = &*several.0 {
                    *self = Self::One(last.clone());
                }
                false
            }
        }
    }
}

/// Whose an address is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Claim<'a> {
    /// No pod shows it.
    Free,
    /// This pod's.
    Of(&'a PodSeen),
    /// Several pods show it and none of them is stopping.
    Contested,
}

/// Whether some node has two pods that show an address of which neither is stopping.
pub(super) fn contested_somewhere<'a>(claimants: impl Iterator<Item = &'a PodSeen>) -> bool {
    let mut nodes: HashSet<&'a str> = HashSet::new();
    claimants
        .filter(|pod| !pod.terminating)
        .filter_map(|pod| pod.node.as_deref())
        .any(|node| !nodes.insert(node))
}

/// Judges between pods that show one address.
pub(super) fn judge<'a>(claimants: impl Iterator<Item = &'a PodSeen>) -> Claim<'a> {
    let mut stopping: Option<&PodSeen> = None;
    let mut running: Option<&PodSeen> = None;
    for pod in claimants {
        if pod.terminating {
            if stopping.is_none_or(|other| other.age() < pod.age()) {
                stopping = Some(pod);
            }
        } else if running.replace(pod).is_some() {
            return Claim::Contested;
        }
    }
    running.or(stopping).map_or(Claim::Free, Claim::Of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claimants_come_and_go() {
        let [a, b, c] = ["a", "b", "c"].map(|uid| PodUid::try_new(uid).unwrap());
        let shown = |claimants: &Claimants| {
            let uids: Vec<&str> = claimants.iter().map(PodUid::as_str).collect();
            uids.join(" ")
        };
        let mut claimants = Claimants::one(a.clone());
        assert!(
            !claimants.remove(&b),
            "one that is not there takes nothing away"
        );
        claimants.add(b.clone());
        claimants.add(c.clone());
        assert_eq!(shown(&claimants), "a b c");
        assert!(!claimants.remove(&b));
        assert!(!claimants.remove(&a));
        assert_eq!(shown(&claimants), "c");
        assert!(matches!(claimants, Claimants::One(_)));
        assert!(claimants.remove(&c));
    }

    /// Every address of the cluster pays this.
    #[test]
    fn a_claim_is_no_larger_than_a_uid() {
        assert_eq!(size_of::<Claimants>(), size_of::<PodUid>());
    }
}
