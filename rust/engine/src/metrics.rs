//! The engine's Prometheus metrics. No label holds a job, URL or host.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::reuse::How;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCode {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPool {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByHow {
    how: &'static str,
}

/// The metrics and their registry.
pub struct Metrics {
    registry: Registry,
    inflight: Gauge,
    duration: Histogram,
    bytes: Counter<u64, AtomicU64>,
    failures: Family<ByCode, Counter>,
    retries: Family<ByCode, Counter>,
    storage: Family<ByCode, Counter>,
    reused: Family<ByHow, Counter>,
    proxies: Family<ByPool, Counter>,
    dead_letters: Counter,
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];
        let mut metrics = Self {
            registry: Registry::default(),
            inflight: Gauge::default(),
            duration: Histogram::new(seconds),
            bytes: Counter::default(),
            failures: Family::default(),
            retries: Family::default(),
            storage: Family::default(),
            reused: Family::default(),
            proxies: Family::default(),
            dead_letters: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("fetchbox_worker_tasks_inflight", "Downloads under way", metrics.inflight.clone());
        registry.register(
            "fetchbox_worker_download_duration_seconds",
            "Time of a stored download, its last attempt",
            metrics.duration.clone(),
        );
        registry.register("fetchbox_worker_download_bytes", "Bytes of whole bodies that came", metrics.bytes.clone());
        registry.register("fetchbox_worker_download_failures", "Failed attempts", metrics.failures.clone());
        registry.register("fetchbox_worker_download_retries", "Attempts that were followed by another", metrics.retries.clone());
        registry.register("fetchbox_worker_storage_failures", "Attempts that failed at the store", metrics.storage.clone());
        registry.register("fetchbox_worker_reused", "Objects reused instead of stored again", metrics.reused.clone());
        registry.register("fetchbox_proxy_failures", "Failures of proxy endpoints", metrics.proxies.clone());
        registry.register("fetchbox_worker_dead_letters", "Tasks that failed for good", metrics.dead_letters.clone());
        metrics
    }

    /// A download began.
    pub fn started(&self) {
        self.inflight.inc();
    }

    /// A download ended, one way or another.
    pub fn ended(&self) {
        self.inflight.dec();
    }

    /// Downloads under way.
    pub fn inflight(&self) -> u64 {
        self.inflight.get().max(0).unsigned_abs()
    }

    /// A body was stored.
    pub fn stored(&self, bytes: u64, seconds: f64) {
        self.bytes.inc_by(bytes);
        self.duration.observe(seconds);
    }

    /// An object of before took the place of a body of `bytes`.
    pub fn reused(&self, how: How, bytes: u64) {
        self.reused.get_or_create(&ByHow { how: how.as_str() }).inc();
        if how == How::SameBody {
            self.bytes.inc_by(bytes);
        }
    }

    /// An attempt failed.
    pub fn failed(&self, code: fetchbox_model::failure::Code) {
        use fetchbox_model::failure::Family as Of;
        let label = ByCode { code: code.as_str() };
        if matches!(code.family(), Of::Upload | Of::Storage) {
            self.storage.get_or_create(&label).inc();
        }
        self.failures.get_or_create(&label).inc();
    }

    /// A failed attempt is followed by another.
    pub fn retried(&self, code: fetchbox_model::failure::Code) {
        self.retries.get_or_create(&ByCode { code: code.as_str() }).inc();
    }

    /// A proxy endpoint failed.
    pub fn proxy_failed(&self, pool: &str) {
        self.proxies.get_or_create(&ByPool { pool: pool.to_owned() }).inc();
    }

    /// A task failed for good.
    pub fn dead_letter(&self) {
        self.dead_letters.inc();
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fetchbox_model::failure::Code;

    #[test]
    fn the_names_are_those_of_the_contract() {
        let metrics = Metrics::new();
        metrics.started();
        metrics.failed(Code::UploadFailed);
        metrics.retried(Code::UploadFailed);
        metrics.proxy_failed("p");
        metrics.dead_letter();
        metrics.stored(7, 0.1);
        metrics.reused(How::NotModified, 100);
        metrics.reused(How::SameBody, 3);
        let text = metrics.text();
        for line in [
            "fetchbox_worker_tasks_inflight 1",
            "fetchbox_worker_download_duration_seconds_count 1",
            "fetchbox_worker_download_bytes_total 10",
            "fetchbox_worker_download_failures_total{code=\"UPLOAD_FAILED\"} 1",
            "fetchbox_worker_download_retries_total{code=\"UPLOAD_FAILED\"} 1",
            "fetchbox_worker_storage_failures_total{code=\"UPLOAD_FAILED\"} 1",
            "fetchbox_proxy_failures_total{pool=\"p\"} 1",
            "fetchbox_worker_dead_letters_total 1",
            "fetchbox_worker_reused_total{how=\"not_modified\"} 1",
            "fetchbox_worker_reused_total{how=\"same_body\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
    }
}
