//! What connections of agents count.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{label, words};

words! {
    /// Why a connection was closed before anybody was known to be on it.
    TurnedAway {
        /// There are as many as the limit of open files allows.
        Full = "full",
        /// Its address has enough of them that have not shown who they are.
        Address = "address",
        /// It made room for an address without any.
        Evicted = "evicted",
        /// Nobody on it had shown in time who they are.
        Silent = "silent",
    }
}

label!(ByReason { reason: TurnedAway });

/// Connections of agents.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    turned_away: Family<ByReason, Counter>,
}

impl ConnectionMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let turned_away = Family::<ByReason, Counter>::default();
        for reason in TurnedAway::ALL {
            drop(turned_away.get_or_create(&ByReason { reason: *reason }));
        }
        registry.register(
            "kiam_server_connections_turned_away",
            "Connections that were closed before anybody was known to be on them, by reason",
            turned_away.clone(),
        );
        Self { turned_away }
    }

    /// One was.
    pub fn turned_away(&self, reason: TurnedAway) {
        self.turned_away.get_or_create(&ByReason { reason }).inc();
    }
}
