//! What must hold, whatever has happened.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kiam_wire::UnixSeconds;

use super::{World, name};
use crate::node::{Answer, address};
use crate::server::SESSION;
use crate::sts::START;
use crate::{IPS, NODES};

/// Longer than the longest backoff.
const WELL_FOR: Duration = Duration::from_mins(10);

impl World {
    /// After everything that happens.
    pub(super) fn checks(&mut self) -> Result<(), String> {
        if let Some(broken) = self.sts.broken() {
            return Err(broken);
        }
        for node in 0..NODES {
            self.checks_table(node)?;
            let this = &self.nodes[usize::from(node)];
            for role in this.roles_held() {
                let allowed = &this.allowed.roles;
                if !allowed.iter().any(|one| role == format!("role-{one}")) {
                    return Err(format!(
                        "node-{node}'s agent holds {role}, which no pod of it may have"
                    ));
                }
            }
            for ip in 0..IPS {
                self.asks(node, ip)?;
            }
        }
        Ok(())
    }

    fn checks_table(&self, node: u8) -> Result<(), String> {
        let allowed = self.reference.allowed(node);
        // The server looks at its clock every ten seconds, and when something happens.
        let now = self.clock.now();
        let ended_by = [("its clock", now.wall), ("the right clock", self.right())];
        let checked = self.server.nodes.look(&name(node), |table| {
            let mut seen = BTreeSet::new();
            for id in table.wanted() {
                let Some(credentials) = table.credentials(id) else {
                    continue;
                };
                let role = credentials.role_name();
                seen.insert(role.to_owned());
                if !allowed
                    .roles
                    .iter()
                    .any(|one| role == format!("role-{one}"))
                {
                    return Err(format!(
                        "the server's table of node-{node} has {role}, which no pod of it may have"
                    ));
                }
                let ended_s = |wall: UnixSeconds| wall.get() - credentials.expires_at().get();
                let ended = ended_by.iter().find(|(_, wall)| ended_s(*wall) >= 12);
                if let Some((whose, wall)) = ended {
                    return Err(format!(
                        "the server's table of node-{node} has {role}, which by {whose} ended {} s ago",
                        ended_s(*wall)
                    ));
                }
            }
            Ok(())
        });
        checked.unwrap_or(Ok(()))
    }

    fn right(&self) -> UnixSeconds {
        START.after(self.clock.now().monotonic.since_origin())
    }

    /// Nothing has kept the server from renewing for a while; then how much must be left at least.
    fn left_min(&self) -> Option<Duration> {
        let session = self.session_by_clock();
        let well_since = self.well_since.filter(|_| session >= SESSION / 2)?;
        let well_for = self.clock.now().monotonic.since(well_since);
        (well_for >= WELL_FOR).then_some(session / 2)
    }

    /// What the server has is renewed in time, by its own clock and by the right one.
    pub(super) fn checks_renewal(&self) -> Result<(), String> {
        let Some(left_min) = self.left_min() else {
            return Ok(());
        };
        let wall = self.clock.now().wall.max(self.right());
        for node in 0..NODES {
            let left = self.server.nodes.look(&name(node), |table| {
                let held = table.wanted().filter_map(|id| table.credentials(id));
                held.map(|one| (one.expires_at().since(wall), one.role_name().to_owned()))
                    .min()
            });
            if let Some((left, role)) = left.flatten()
                && left < left_min
            {
                return Err(late(
                    &format!("the server's table of node-{node} has {role}"),
                    left,
                ));
            }
        }
        Ok(())
    }

    /// And so is what a node's pods are served. By a clock that is behind, what an earlier server
    /// gave them has longer than it truly has; and an agent whose clock was wrong may have taken the
    /// next credentials for ended.
    pub(super) fn checks_renewal_of(&mut self, node: u8) -> Result<(), String> {
        let right = self.right();
        let left_min = self.left_min();
        let this = &mut self.nodes[usize::from(node)];
        let is_behind = self.wrong_by_s.load(Ordering::Relaxed) < 0;
        let Some(left_min) = left_min.filter(|_| !is_behind && !this.doubts) else {
            return Ok(());
        };
        for ip in 0..IPS {
            if let Answer::Given(role, _key, expiry) = this.asked(ip) {
                let left = expiry.since(right);
                if left < left_min {
                    let what = format!("node-{node}, {}: given {role}", address(ip));
                    return Err(late(&what, left));
                }
            }
        }
        Ok(())
    }
}

fn late(what: &str, left: Duration) -> String {
    format!(
        "{what} with {} s left, and nothing has kept the server from renewing it for {} s",
        left.as_secs(),
        WELL_FOR.as_secs()
    )
}
