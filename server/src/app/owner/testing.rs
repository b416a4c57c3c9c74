//! An owner for tests.

use std::sync::Arc;
use std::time::Duration;

use kiam_wire::UnixSeconds;
use tokio::sync::watch;

use super::{Owner, OwnerMetrics, Parts};
use crate::arn::BaseArn;
use crate::clock::Clock;
use crate::events::Notes;
use crate::ledger::Pace;
use crate::metrics::Metrics;
use crate::nodes::Kind;
use crate::policy::{Matching, Policy, Rules};
use crate::push::Nodes;
use crate::readiness::Readiness;

/// One that asks nobody for anything.
pub(crate) fn owner() -> Owner {
    owner_telling(watch::channel(()).0)
}

/// The same, and `turned` moves when it changes something.
pub(crate) fn owner_telling(turned: watch::Sender<()>) -> Owner {
    let metrics = Metrics::new();
    Owner::new(Parts {
        policy: Policy {
            base: BaseArn::parse("arn:aws:iam::123456789012:role/").unwrap(),
            session_name: "kiam".into(),
            session_duration: Duration::from_hours(1),
            service_account_roles: false,
            session_tags: None,
            source_identity: None,
        },
        rules: Rules::new(Matching::Whole),
        pace: Pace::default(),
        kinds: vec![Kind::Pods, Kind::Namespaces],
        nodes: Arc::new(Nodes::new(1)),
        orders: None,
        notes: Notes::unread(metrics.writes.clone()),
        synced: watch::channel(false).0,
        not_yet: Readiness::default().wait_for("test"),
        turned,
        clock: Clock::starting_at(UnixSeconds::new(1_800_000_000)),
        metrics: OwnerMetrics {
            watch: metrics.watch.clone(),
            decisions: metrics.decisions.clone(),
            sts: metrics.sts.clone(),
        },
    })
}
