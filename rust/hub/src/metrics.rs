//! The hub's metrics, as Prometheus text.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::job::Counts;

/// Upper bounds of the commit histogram, seconds.
const BOUNDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// A counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the hub counts. Sums over jobs are those of the ledger and survive a restart.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Metrics {
    pub totals: Mutex<Counts>,
    pub commits: [Counter; BOUNDS.len() + 1],
    pub commit_nanos: Counter,
    pub duplicate: Counter,
    pub stale: Counter,
    pub unknown: Counter,
    pub pruned: Counter,
    pub moved: Counter,
    pub ignored_commits: Counter,
    pub refused_tls: Counter,
    pub refused_token: Counter,
    pub refused_greeting: Counter,
    pub disk_bytes: AtomicU64,
}

impl Metrics {
    /// Notes how long a commit took.
    pub fn committed(&self, took: Duration) {
        let bucket = BOUNDS.iter().position(|&bound| took.as_secs_f64() <= bound).unwrap_or(BOUNDS.len());
        self.commits[bucket].add(1);
        self.commit_nanos.add(took.as_nanos() as u64);
    }

    /// The metrics as text.
    pub fn text(&self) -> String {
        let totals = *self.totals.lock();
        let mut out = String::new();
        let mut counter = |name: &str, label: &str, value: u64| {
            // Writing into a String cannot fail.
            let _ = writeln!(out, "# TYPE {name} counter\n{name}{label} {value}");
        };
        counter("fetchbox_resources_accepted_total", "", totals.total);
        counter("fetchbox_ledger_pruned_jobs_total", "", self.pruned.get());
        counter("fetchbox_resources_replayed_total", "", totals.replayed);
        counter("fetchbox_hub_retries_moved_total", "", self.moved.get());
        counter("fetchbox_hub_commits_ignored_total", "", self.ignored_commits.get());
        let _ = writeln!(out, "# TYPE fetchbox_resources_settled_total counter");
        for (state, value) in [
            ("stored", totals.stored),
            ("reused", totals.reused),
            ("filtered", totals.filtered),
            // One that was replayed settled and will settle again.
            ("failed", totals.failed + totals.replayed),
            ("cancelled", totals.cancelled),
        ] {
            let _ = writeln!(out, "fetchbox_resources_settled_total{{state=\"{state}\"}} {value}");
        }
        let _ = writeln!(out, "# TYPE fetchbox_hub_outcomes_ignored_total counter");
        for (reason, counter) in [("duplicate", &self.duplicate), ("stale", &self.stale), ("unknown", &self.unknown)] {
            let _ = writeln!(out, "fetchbox_hub_outcomes_ignored_total{{reason=\"{reason}\"}} {}", counter.get());
        }
        let _ = writeln!(out, "# TYPE fetchbox_hub_connections_refused_total counter");
        for (reason, counter) in [("tls", &self.refused_tls), ("token", &self.refused_token), ("greeting", &self.refused_greeting)] {
            let _ = writeln!(out, "fetchbox_hub_connections_refused_total{{reason=\"{reason}\"}} {}", counter.get());
        }
        let _ = writeln!(out, "# TYPE fetchbox_resources_pending gauge\nfetchbox_resources_pending {}", totals.pending());
        let disk = self.disk_bytes.load(Ordering::Relaxed);
        let _ = writeln!(out, "# TYPE fetchbox_ledger_disk_bytes gauge\nfetchbox_ledger_disk_bytes {disk}");
        let name = "fetchbox_ledger_commit_duration_seconds";
        let _ = writeln!(out, "# TYPE {name} histogram");
        let mut sum = 0;
        for (i, counter) in self.commits.iter().enumerate() {
            sum += counter.get();
            let bound = BOUNDS.get(i).map_or("+Inf".to_owned(), f64::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {sum}", Duration::from_nanos(self.commit_nanos.get()).as_secs_f64());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_is_cumulative_and_pending_is_what_remains() {
        let metrics = Metrics::default();
        metrics.committed(Duration::from_micros(600));
        metrics.committed(Duration::from_secs(60));
        *metrics.totals.lock() = Counts { total: 5, stored: 2, ..Default::default() };
        let text = metrics.text();
        for line in [
            "fetchbox_ledger_commit_duration_seconds_bucket{le=\"0.0005\"} 0",
            "fetchbox_ledger_commit_duration_seconds_bucket{le=\"0.001\"} 1",
            "fetchbox_ledger_commit_duration_seconds_bucket{le=\"+Inf\"} 2",
            "fetchbox_resources_pending 3",
            "fetchbox_resources_settled_total{state=\"stored\"} 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
