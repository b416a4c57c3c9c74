//! Whose an address is when several pods show it.
//!
//! A terminating pod keeps showing an address that the next pod already uses, so one that is not
//! stopping goes before all that are. Two that are not stopping cannot both be right, and nothing
//! here knows which is: whoever created the later pod could otherwise take the earlier one's
//! requests. So neither is believed until one lets go.

use super::PodSeen;

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

/// Judges between all pods that show one address.
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
