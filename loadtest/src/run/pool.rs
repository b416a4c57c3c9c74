//! All slices of one kind together.

use std::collections::BTreeMap;
use std::time::Duration;

use super::slices::{Kind, Round, Slice};
use crate::measure::Figures;
use crate::numbers::ratio;
use crate::report;

/// The slices of one kind, over all rounds.
#[derive(Debug)]
pub(crate) struct Pool {
    /// What was seen.
    pub figures: Figures,
    /// CPU time where it could be read, and the requests of those slices.
    pub cpu: (Duration, u64),
    /// Requests that had to wait and all, where the agent said so.
    pub parked: (f64, f64),
}

/// By kind; only those that took part.
pub(crate) type Pools = BTreeMap<Kind, Pool>;

/// The slices of all rounds, by kind.
pub(crate) fn of(rounds: &[Round]) -> Pools {
    let mut pools = Pools::new();
    for (kind, slice) in rounds.iter().flatten() {
        pools.entry(*kind).or_insert_with(Pool::new).take(slice);
    }
    pools
}

/// What slices of these kinds saw.
pub(crate) fn all(pools: &Pools, kinds: &[Kind]) -> Figures {
    let mut all = Figures::new();
    for pool in kinds.iter().filter_map(|kind| pools.get(kind)) {
        all.add(&pool.figures);
    }
    all
}

impl Pool {
    fn new() -> Self {
        Self {
            figures: Figures::new(),
            cpu: (Duration::ZERO, 0),
            parked: (0.0, 0.0),
        }
    }

    fn take(&mut self, slice: &Slice) {
        self.figures.add(&slice.figures);
        if let Some(cpu) = slice.cpu {
            self.cpu.0 += cpu;
            self.cpu.1 += slice.figures.requests.count();
        }
        if let Some(counted) = slice.counted {
            self.parked.0 += counted.parked;
            self.parked.1 += counted.served;
        }
    }

    /// CPU time of whoever was asked, for each request.
    pub(crate) fn cpu_per_request(&self) -> Option<Duration> {
        let (cpu, requests) = self.cpu;
        report::each(Some(cpu), requests)
    }

    /// The share of its requests, from 0 to 1, that the agent could not answer at once.
    pub(crate) fn parked_share(&self) -> Option<f64> {
        ratio(self.parked.0, self.parked.1)
    }
}
