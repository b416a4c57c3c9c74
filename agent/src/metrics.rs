//! The registry of everything that is counted, and the process's own numbers.
//!
//! Names are kiam's where the meaning is. Labels are closed sets: no pod, address or role is ever
//! one. Each room registers its own metrics; nothing is global.

use kiam_wire::process::numbers::Numbers;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub mod ready;

use crate::clock::Now;
use crate::data::DriverReport;
use crate::readiness::Readiness;

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// What moves the workers' bytes, and why.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Driver {
    driver: &'static str,
    reason: String,
}

/// A registry with the process in it, which started at `started_at`, and whether it is ready.
pub fn registry(started_at: Now, readiness: &Readiness) -> Registry {
    let mut registry = Registry::default();
    registry.register(
        "kiam_agent_build",
        "What was built",
        Info::new(Build {
            version: env!("CARGO_PKG_VERSION"),
        }),
    );
    registry.register_collector(Box::new(Numbers::new(started_at.wall)));
    registry.register_collector(Box::new(ready::Ready::new(readiness.clone())));
    registry
}

/// Says which driver runs.
pub fn driver(registry: &mut Registry, report: &DriverReport) {
    registry.register(
        "kiam_agent_driver_reason",
        "How workers wait for the network, and why so",
        Info::new(Driver {
            driver: report.name,
            reason: report.reason.clone(),
        }),
    );
}
