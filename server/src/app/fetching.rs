//! Where credentials come from in this process: STS, or nowhere in a dry run.

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::arn::BaseArn;
use crate::base_arn;
use crate::clock::Clock;
use crate::config::{Base, Config};
use crate::sts::aws::{self, Settings, Sts};
use crate::sts::fetchers::{Answer, Fetchers, Order};
use crate::sts::metrics::Metrics;
use crate::sts::schedule::Limits;

/// The base ARN, and the way to STS; no way in a dry run.
pub(super) async fn prepare(
    config: &Config,
    clock: Clock,
) -> anyhow::Result<(BaseArn, Option<Sts>)> {
    let base = match &config.base {
        Base::Given(base) => base.clone(),
        Base::Autodetect => {
            let settings = Settings {
                region: config.region.clone(),
                ..Settings::default()
            };
            // As ourselves: the role to assume first may have a short name, which needs the base.
            let ourselves = Sts::connect(aws::defaults(), &settings, clock).await;
            let metadata = base_arn::metadata_service();
            base_arn::detect(&metadata, ourselves.caller())
                .await
                .context("--role-base-arn-autodetect")?
        }
    };
    if config.dry_run {
        return Ok((base, None));
    }
    let assume_role = config
        .assume_role
        .as_deref()
        .map(|role| base.resolve(role))
        .transpose()
        .context("--assume-role-arn")?;
    let settings = Settings {
        region: config.region.clone(),
        partition: base.as_str().split(':').nth(1).map(str::to_owned),
        assume_role,
    };
    let sts = Sts::connect(aws::defaults(), &settings, clock).await;
    Ok((base, Some(sts)))
}

/// Starts the fetchers; they end when nobody gives orders any more.
pub(super) fn start(
    sts: Sts,
    limits: Limits,
    clock: Clock,
    metrics: Metrics,
    (orders, answers): (mpsc::Receiver<Order>, mpsc::Sender<Answer>),
) -> JoinHandle<()> {
    let fetchers = Fetchers::new(Arc::new(sts), limits, clock, metrics, answers);
    tokio::spawn(fetchers.run(orders))
}
