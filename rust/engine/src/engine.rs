//! The engine's handle: owns the runtime, takes tasks in and gives finished ones out.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::api::{EngineError, Finished, Stats, Submission};
use crate::config::EngineConfig;
use crate::core::Core;
use crate::done::Done;
use crate::fetch::transfer::Memory;
use crate::metrics::Metrics;
use crate::net::pool::Pool;
use crate::profile::Profiles;
use crate::proxy::Pools;
use crate::schedule::Scheduler;
use crate::store::Stores;
use crate::store::remote::Cleanups;
use crate::sync::lock;

/// Threads that write large files.
const WRITERS: usize = 4;

/// A running engine. Its methods never block for long and may be called from any thread.
pub struct Engine {
    core: Arc<Core>,
    cleanups: Cleanups,
    runtime: Option<Runtime>,
}

impl Engine {
    /// Starts the engine with a runtime of its own. `store` overrides `config.storage`'s URL; `wake` is called when
    /// there is something to drain, and again only after everything was drained; while other work is under way it may come a millisecond late.
    pub fn start(
        config: EngineConfig,
        store: Option<Arc<dyn ObjectStore>>,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Self, EngineError> {
        let threads = match config.runtime_threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from).min(4),
            threads => threads,
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .max_blocking_threads(WRITERS)
            .thread_name("fetchbox-engine")
            .enable_all()
            .build()
            .map_err(|source| EngineError::System { what: "the engine's runtime", source })?;
        let handle = runtime.handle().clone();
        let cleanups = Cleanups::new(handle.clone());
        let entered = handle.enter();
        let core = Arc::new(Core {
            profiles: Profiles::new(&config)?,
            proxies: Pools::new(&config.proxy_pools)?,
            stores: Stores::open(&config, store, &cleanups)?,
            pool: Pool::new(config.concurrency.max(64)),
            memory: Memory::new(config.memory_budget),
            metrics: Metrics::new(),
            handle: handle.clone(),
            scheduler: Mutex::new(Scheduler::new(config.concurrency)),
            done: Done::new(wake),
            running: Mutex::default(),
            next_run: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            armed: Mutex::default(),
            rearm: Notify::new(),
        });
        drop(entered);
        handle.spawn(core.clone().keep_time());
        let telling = core.clone();
        handle.spawn(async move { telling.done.keep_telling().await });
        Ok(Self { core, cleanups, runtime: Some(runtime) })
    }

    /// Queues tasks.
    pub fn submit(&self, tasks: Vec<Submission>) {
        self.core.submit(tasks);
    }

    /// Takes up to `max` finished tasks, in the order in which they finished.
    pub fn drain(&self, max: usize) -> Vec<Finished> {
        self.core.done.drain(max)
    }

    /// Ends the queued and running tasks of a job as dropped.
    pub fn cancel(&self, job_id: &str) {
        let mut scheduler = lock(&self.core.scheduler);
        let waiting = scheduler.remove_job(job_id, Instant::now());
        for (job, handle) in lock(&self.core.running).values() {
            if **job == *job_id {
                handle.abort();
            }
        }
        drop(scheduler);
        self.core.drop_items(waiting);
    }

    /// Takes nothing new off the queues; what waits ends as dropped. Running downloads go on.
    pub fn begin_close(&self) {
        self.core.closing.store(true, Ordering::Release);
        let waiting = lock(&self.core.scheduler).remove_all(Instant::now());
        self.core.drop_items(waiting);
    }

    /// Stops everything within `timeout`, aborts unfinished uploads and ends the runtime.
    pub fn close(mut self, timeout: Duration) {
        self.begin_close();
        let until = Instant::now() + timeout;
        for (_, handle) in lock(&self.core.running).values() {
            handle.abort();
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.block_on(async {
                while Instant::now() < until && (!lock(&self.core.running).is_empty() || self.cleanups.running() > 0) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
            runtime.shutdown_timeout(until.saturating_duration_since(Instant::now()));
        }
        self.core.stores.sweep();
    }

    /// Counts at this moment.
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// The `fetchbox_worker_*` metrics as Prometheus text.
    pub fn metrics_text(&self) -> String {
        self.core.metrics.text()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            self.core.closing.store(true, Ordering::Release);
            runtime.shutdown_background();
        }
    }
}
