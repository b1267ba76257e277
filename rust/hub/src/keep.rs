//! The thread that keeps ledger and store in order, and what it shares with operators who ask for it at once.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::background::Signal;
use crate::collect::{self, Collected, Places};
use crate::config::Keeping;
use crate::core::Core;
use crate::error::HubError;
use crate::metrics::Counter;
use crate::shelf::Shelf;
use crate::sweep::{Sweeper, Swept};

/// A sweep is made so many times within the time after which a job counts as quiet, but not more often than each second or less than each five minutes.
const SWEEPS: f64 = 4.0;
const SOONEST: f64 = 1.0;
const LATEST: f64 = 300.0;
/// How often the thread looks whether anything is due.
const TICK: Duration = Duration::from_secs(1);

/// What is shared.
#[derive(Default)]
pub struct Keep {
    /// Wakes and ends the thread.
    pub signal: Signal,
    /// Where objects lie.
    places: RwLock<Arc<Places>>,
    /// The store, once it is known.
    shelf: RwLock<Option<Arc<dyn Shelf>>>,
    /// Resources put back.
    pub swept: Counter,
    /// Lost resources of the last sweep that could not be put back.
    pub gone: AtomicU64,
    sweeper: Mutex<Sweeper>,
    /// One round at a time.
    round: Mutex<()>,
    sums: Mutex<Collected>,
    failures: Counter,
}

impl Keep {
    /// For a configuration; what is wrong with it, in words.
    pub fn new(keeping: &Keeping) -> Result<Self, String> {
        Ok(Self { places: RwLock::new(Arc::new(Places::new(keeping)?)), ..Self::default() })
    }

    /// Where objects lie.
    pub fn places(&self) -> Arc<Places> {
        self.places.read().clone()
    }

    /// The store, once it is known.
    pub fn shelf(&self) -> Option<Arc<dyn Shelf>> {
        self.shelf.read().clone()
    }

    /// From now on it is this one.
    pub fn set_shelf(&self, shelf: Arc<dyn Shelf>) {
        *self.shelf.write() = Some(shelf);
    }

    /// Objects lie where this says from now on; what is wrong with it, in words.
    pub fn set_places(&self, keeping: &Keeping) -> Result<(), String> {
        *self.places.write() = Arc::new(Places::new(keeping)?);
        Ok(())
    }

    /// Notes how a round of the collector went.
    pub fn collected(&self, round: &Collected, failed: bool) {
        let mut sums = self.sums.lock();
        sums.jobs += round.jobs;
        sums.objects += round.objects;
        sums.manifests += round.manifests;
        sums.files += round.files;
        sums.uploads += round.uploads;
        if failed {
            self.failures.add(1);
        }
    }

    /// The metrics as Prometheus text.
    pub fn metrics(&self) -> String {
        let sums = *self.sums.lock();
        let mut out = String::new();
        let mut metric = |name: &str, kind: &str, value: u64| {
            // Writing into a String cannot fail.
            let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {value}");
        };
        metric("fetchbox_ledger_swept_resources_total", "counter", self.swept.get());
        metric("fetchbox_ledger_gone_resources", "gauge", self.gone.load(Ordering::Relaxed));
        metric("fetchbox_collector_failures_total", "counter", self.failures.get());
        let _ = writeln!(out, "# TYPE fetchbox_collector_removed_total counter");
        for (kind, value) in [("object", sums.objects), ("manifest", sums.manifests), ("file", sums.files), ("upload", sums.uploads)] {
            let _ = writeln!(out, "fetchbox_collector_removed_total{{kind=\"{kind}\"}} {value}");
        }
        out
    }
}

/// Sweeps at once.
pub fn sweep(core: &Core, quiet_ms: u64) -> Result<Swept, HubError> {
    // One at a time: two that saw the same loss would put it back twice.
    core.keep.sweeper.lock().round(core, quiet_ms)
}

/// Collects at once; what waits is not waited for when `early`.
pub fn collect(core: &Core, early: bool) -> Result<Collected, HubError> {
    let shelf = core.keep.shelf().ok_or_else(|| HubError::refused("STORAGE_UNAVAILABLE", "this hub knows of no store"))?;
    let _one = core.keep.round.lock();
    collect::round(core, &shelf, early)
}

/// Sweeps and collects until told to end.
pub fn run(core: &Arc<Core>) {
    let keeping = &core.config.keeping;
    let mut sweeps = Due::every((keeping.sweep_after / SWEEPS).clamp(SOONEST, LATEST), keeping.sweep_after > 0.0);
    let mut rounds = Due::every(keeping.collect_every, keeping.collect_every > 0.0);
    let begun = core.clock.elapsed();
    (sweeps.last, rounds.last) = (begun, begun);
    while core.keep.signal.wait(TICK) {
        let now = core.clock.elapsed();
        // What failed is tried again next time; what is fatal the writer has noticed itself, what is wrong with the store the metrics say.
        if sweeps.is_due(now) {
            let _ = sweep(core, (keeping.sweep_after * 1000.0) as u64);
        }
        if core.keep.shelf().is_some() && rounds.is_due(now) {
            let _ = collect(core, false);
        }
    }
}

struct Due {
    every: Option<Duration>,
    last: Duration,
}

impl Due {
    fn every(seconds: f64, on: bool) -> Self {
        Self { every: Duration::try_from_secs_f64(seconds).ok().filter(|_| on), last: Duration::ZERO }
    }

    fn is_due(&mut self, now: Duration) -> bool {
        let due = self.every.is_some_and(|every| now.saturating_sub(self.last) >= every);
        if due {
            self.last = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_never_due() {
        let at = Duration::from_secs;
        let mut due = Due::every(10.0, true);
        assert!(!due.is_due(at(9)) && due.is_due(at(10)) && !due.is_due(at(19)) && due.is_due(at(20)));
        assert!(!Due::every(10.0, false).is_due(at(1000)) && !Due::every(f64::INFINITY, true).is_due(at(1000)));
    }
}
