//! Where credentials come from in this process: STS, or nowhere in a dry run.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::arn::BaseArn;
use crate::base_arn;
use crate::clock::Clock;
use crate::config::Config;
use crate::sts::aws::{self, Settings, Sts};
use crate::sts::fetchers::{Answer, Command, Fetchers};
use crate::sts::metrics::Metrics;
use crate::sts::schedule::Limits;

/// How soon, and how late, those are asked again who could not tell the base ARN.
const ASKED_AGAIN_MIN: Duration = Duration::from_secs(1);
const ASKED_AGAIN_MAX: Duration = Duration::from_secs(30);

/// The base ARN of the account that this runs in. Asks until somebody can tell; an answer that makes
/// no sense is an error.
pub(super) async fn detected(config: &Config, clock: Clock) -> anyhow::Result<BaseArn> {
    let settings = Settings {
        region: config.region.clone(),
        ..Settings::default()
    };
    // As ourselves: the role to assume first may have a short name, which needs the base.
    let ourselves = Sts::connect(aws::defaults(), &settings, clock).await;
    let mut longest = ASKED_AGAIN_MIN;
    loop {
        let metadata = base_arn::metadata_service();
        match base_arn::detect(&metadata, ourselves.caller()).await {
            Ok(base) => return Ok(base),
            Err(error) if error.is_final() => {
                return Err(error).context("--role-base-arn-autodetect");
            }
            Err(error) => warn!(%error, "not yet: --role-base-arn-autodetect"),
        }
        tokio::time::sleep(longest.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        longest = (longest * 2).min(ASKED_AGAIN_MAX);
    }
}

/// The way to STS; none in a dry run.
pub(super) async fn way(
    config: &Config,
    base: &BaseArn,
    clock: Clock,
) -> anyhow::Result<Option<Sts>> {
    if config.dry_run {
        return Ok(None);
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
    Ok(Some(Sts::connect(aws::defaults(), &settings, clock).await))
}

/// Starts the fetchers; they end when nobody gives orders any more.
pub(super) fn start(
    sts: Sts,
    limits: Limits,
    clock: Clock,
    metrics: Metrics,
    (commands, answers): (mpsc::Receiver<Command>, mpsc::Sender<Answer>),
) -> JoinHandle<()> {
    let fetchers = Fetchers::new(Arc::new(sts), limits, clock, metrics, answers);
    tokio::spawn(fetchers.run(commands))
}
