//! Decides which call is made when.
use crate::clock::Moment;

/// How much a call matters; the lesser value goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// A pod's request is parked on its node at this moment.
    Waited,
    /// Some pod has nothing, and none has.
    New,
    /// Some of its pods are served by their agents from before; others may have nothing.
    Shared,
    /// Every pod is served; the new ones should be here by then.
    Renewal {
        /// The moment from which answers would have less life left than they should.
        by: Moment,
    },
}
