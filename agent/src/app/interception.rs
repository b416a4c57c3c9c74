//! Keeps pods' requests coming here, and says whether they do.

use std::sync::Arc;
use std::time::Duration;

use kiam_wire::report::{Interception as Reported, Report};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info};

use crate::clock::Now;
use crate::config::{Intercept, Interceptor};
use crate::intercept::oversee::{Metrics, Oversight};
use crate::intercept::record::Record;
use crate::intercept::rules::Rules;
use crate::intercept::verdict::Verdict;
use crate::intercept::witness::Witness;
use crate::intercept::{Backend, choose};
use crate::readiness::{NotYet, Readiness, Reason};

/// Between looks for a way to install rules, while there is none.
const RETRY: Duration = Duration::from_secs(5);

/// What is to be kept in place.
#[derive(Debug)]
pub(super) struct Interception {
    with: Interceptor,
    rules: Rules,
    started_at: Now,
    metrics: Metrics,
    witness: Arc<Witness>,
    vouched: Option<Record>,
    readiness: Readiness,
    not_yet: Option<NotYet>,
}

impl Interception {
    /// `None` when someone else sees to it. `witness` sees what arrives, `vouched` says what an installer left about the rules.
    pub(super) fn new(
        intercept: Intercept,
        witness: Option<Arc<Witness>>,
        registry: &mut Registry,
        readiness: &Readiness,
        started_at: Now,
        vouched: impl FnOnce(&Rules) -> Option<Record>,
    ) -> Option<Self> {
        let Intercept {
            with,
            remove_at_exit: _,
            rules,
        } = intercept;
        let (with, rules, witness) = (with?, rules?, witness?);
        Some(Self {
            with,
            vouched: vouched(&rules),
            rules,
            started_at,
            metrics: Metrics::new(registry),
            witness,
            readiness: readiness.clone(),
            not_yet: Some(readiness.not_yet(Reason::NotIntercepting)),
        })
    }

    /// Installs and oversees, for ever.
    pub(super) async fn run(self, report: Arc<watch::Sender<Report>>) {
        let Self {
            with,
            rules,
            started_at,
            metrics,
            witness,
            vouched,
            readiness,
            mut not_yet,
        } = self;
        let oversight = Oversight {
            backend: backend(with).await,
            rules,
            started_at: started_at.wall,
            witness,
            metrics,
            vouched,
        };
        let (verdicts, mut verdict) = watch::channel(Verdict {
            interception: Reported::Unverified,
            ready: false,
            reason: "the rules have not been looked at yet".to_owned(),
        });
        let judge = async {
            // Ends only with the oversight.
            while verdict.changed().await.is_ok() {
                let Verdict {
                    interception,
                    ready,
                    reason: _,
                } = verdict.borrow_and_update().clone();
                not_yet = match not_yet.take() {
                    _ if ready => None,
                    Some(not_yet) => Some(not_yet),
                    None => Some(readiness.not_yet(Reason::NotIntercepting)),
                };
                report.send_if_modified(|report| {
                    let changed = report.interception != interception;
                    report.interception = interception;
                    changed
                });
            }
        };
        tokio::join!(Box::pin(oversight.run(verdicts)), judge);
    }
}

async fn backend(with: Interceptor) -> Backend {
    match with {
        Interceptor::Nftables => Backend::Nftables,
        Interceptor::Iptables => Backend::Iptables,
        Interceptor::Auto => loop {
            match choose().await {
                Ok(backend) => return backend,
                // Who may not install may still look at what an installer left.
                Err(error) if error.is_not_permitted() => {
                    info!(%error, "rules are left to an installer");
                    return Backend::Nftables;
                }
                Err(error) => {
                    error!(%error, "neither nftables nor iptables can be used here");
                    sleep(RETRY).await;
                }
            }
        },
    }
}
