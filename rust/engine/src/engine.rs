//! The engine's handle: owns the runtime, takes tasks in and gives finished ones out.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;

use crate::api::{EngineError, Finished, Stats, Submission};
use crate::config::EngineConfig;

/// A running engine. Its methods never block for long and may be called from any thread.
pub struct Engine {
    config: EngineConfig,
}

impl Engine {
    /// Starts the engine with a runtime of its own. `store` overrides `config.storage`'s URL; `wake` is called from an engine thread whenever the
    /// queue of finished tasks turns from empty to non-empty.
    pub fn start(config: EngineConfig, store: Option<Arc<dyn ObjectStore>>, wake: Arc<dyn Fn() + Send + Sync>) -> Result<Self, EngineError> {
        let _ = (store, wake);
        Ok(Self { config })
    }

    /// Queues tasks.
    pub fn submit(&self, tasks: Vec<Submission>) {
        let _ = (tasks, self.config.concurrency);
    }

    /// Takes up to `max` finished tasks, in the order in which they finished.
    pub fn drain(&self, max: usize) -> Vec<Finished> {
        Vec::with_capacity(max.min(0))
    }

    /// Ends the queued and running tasks of a job as dropped.
    pub fn cancel(&self, job_id: &str) {
        let _ = job_id;
    }

    /// Takes nothing new off the queues; what waits ends as dropped.
    pub fn begin_close(&self) {}

    /// Stops everything within `timeout`, aborts unfinished uploads and ends the runtime.
    pub fn close(self, timeout: Duration) {
        let _ = timeout;
    }

    /// Counts at this moment.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// The `fetchbox_worker_*` metrics as Prometheus text.
    pub fn metrics_text(&self) -> String {
        String::new()
    }
}
