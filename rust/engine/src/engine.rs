//! The engine's handle: owns the runtime, takes tasks in and gives finished ones out.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use fetchbox_model::failure::Code;
use fetchbox_model::message::DownloadTask;
use fetchbox_model::reuse::KEY_BYTES;
use object_store::ObjectStore;
use rustix::process::{Resource, getrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::api::{EngineError, Finished, Stats, Submission};
use crate::config::EngineConfig;
use crate::core::{Core, Settings};
use crate::curl::News;
use crate::done::Done;
use crate::fetch::transfer::Memory;
use crate::flight::Flight;
use crate::metrics::Metrics;
use crate::net::pool::Pool;
use crate::pair::Pairs;
use crate::profile::Profiles;
use crate::proxy::Pools;
use crate::robots::Sites;
use crate::schedule::Scheduler;
use crate::store::remote::Cleanups;
use crate::store::{Stores, is_remote};
use crate::sync::lock;
use crate::wall::Wall;
use crate::window::Leaving;

/// Threads that write large files.
const WRITERS: usize = 4;
/// Connections without an answer that are nothing to speak of.
const MOST_SILENT: usize = 1024;

/// Connections that nobody answers and that may be open at once: a quarter of the descriptors at most.
fn most_silent(concurrency: usize) -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let quarter = usize::try_from(descriptors / 4).unwrap_or(usize::MAX);
    concurrency.saturating_mul(4).max(MOST_SILENT).min(quarter).max(1)
}

/// Those with slots, those in silence, those not known to be silent yet, and lanes that end while others begin.
fn flight_slots(concurrency: usize, most_silent: usize) -> usize {
    concurrency.saturating_mul(2).saturating_add(most_silent).saturating_add(16)
}

/// A running engine. Its methods never block for long and may be called from any thread.
pub struct Engine {
    core: Arc<Core>,
    cleanups: Cleanups,
    runtime: Option<Runtime>,
    unguarded: Option<String>,
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
        let most_silent = most_silent(config.concurrency);
        let (flight, unguarded) =
            match config.flight_dir.as_deref().map(|dir| Flight::open(Path::new(dir), flight_slots(config.concurrency, most_silent))) {
                None => (None, None),
                Some(Ok(flight)) => (Some(flight), None),
                Some(Err(error)) => (None, Some(error.to_string())),
            };
        let core = Arc::new(Core {
            settings: RwLock::new(Arc::new(Settings {
                generation: 0,
                profiles: Profiles::new(&config, 0)?,
                proxies: Pools::new(&config.proxy_pools, 0)?,
                stores: Arc::new(Stores::open(&config, store, &cleanups)?),
            })),
            robots: Sites::default(),
            curl: Arc::default(),
            pool: Pool::new(config.concurrency.max(64)),
            memory: Memory::new(config.memory_budget),
            pairs: Pairs::default(),
            metrics: Metrics::new(),
            handle: handle.clone(),
            scheduler: Mutex::new(Scheduler::new(config.concurrency).with_silent(most_silent)),
            most_waiting: config.most_waiting,
            wall: Wall::new(),
            flight,
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
        Ok(Self { core, cleanups, runtime: Some(runtime), unguarded })
    }

    /// Takes job types, proxy pools and the store's credentials from another configuration. Attempts under way go on with what they began
    /// with, every later one has the new; after an error all is as before. What a local store is stays as it is, and so do all sizes.
    pub fn reload(&self, config: &EngineConfig) -> Result<(), EngineError> {
        let before = self.core.settings();
        let generation = before.generation + 1;
        let _entered = self.core.handle.enter();
        let stores =
            if is_remote(&config.storage.url) { Arc::new(Stores::open(config, None, &self.cleanups)?) } else { before.stores.clone() };
        let settings = Settings {
            generation,
            profiles: Profiles::new(config, generation)?,
            proxies: Pools::new(&config.proxy_pools, generation)?,
            stores,
        };
        *self.core.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        Ok(())
    }

    /// Queues tasks.
    pub fn submit(&self, tasks: Vec<Submission>) {
        self.core.submit(tasks);
    }

    /// From now on somebody works at the curl transport's desk; `wake` is called when there is news for [`Engine::curl_news`].
    pub fn serve_curl(&self, wake: Box<dyn Fn() + Send + Sync>) {
        self.core.curl.serve(wake);
    }

    /// What is new for the curl transport.
    pub fn curl_news(&self) -> Vec<News> {
        self.core.curl.take()
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

    /// Forgets what waits of partitions that go to somebody else, and gives back its tokens: see [`crate::window::Window::abandon`].
    pub fn give_up(&self, leaving: &Leaving) -> Vec<u64> {
        self.core.give_up(leaving)
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
        if let Some(flight) = &self.core.flight {
            flight.end();
        }
        self.core.settings().stores.sweep();
    }

    /// Why a crash would leave no trace of what was under way although `flight_dir` asked for it.
    pub fn unguarded(&self) -> Option<&str> {
        self.unguarded.as_deref()
    }

    /// Downloads under way.
    pub fn running(&self) -> u64 {
        self.core.metrics.inflight()
    }

    /// Names of the proxy pools of which no endpoint works at the moment.
    pub fn pools_out(&self) -> Vec<String> {
        self.core.settings().proxies.out(Instant::now())
    }

    /// Digests of the tasks that were under way in more than one death of a worker on this machine. Reads a directory.
    pub fn suspects(&self) -> HashSet<u64> {
        // A directory that cannot be read names nobody.
        self.core.flight.as_ref().and_then(|flight| flight.suspects().ok()).unwrap_or_default()
    }

    /// The end of a task that killed its process while it ran alone.
    pub fn poison(&self, token: u64, task: Box<DownloadTask>, message: &str) -> Finished {
        self.core.poison(token, task, message)
    }

    /// A task that its job type's own code would not let go ahead: it is tried again or fails, as `code` says, under the name `name`.
    pub fn refuse(&self, token: u64, task: Box<DownloadTask>, code: Code, name: &str, message: &str) {
        self.core.refuse(token, task, code, name, message);
    }

    /// Milliseconds since the epoch as they would be if nobody had set the clock since the engine started.
    pub fn steady_ms(&self) -> u64 {
        self.core.wall.steady_ms()
    }

    /// Whether any job type reuses anything.
    pub fn reuses(&self) -> bool {
        self.core.settings().profiles.all().any(|profile| profile.fetch.reuse)
    }

    /// The name under which the object of a task is remembered; `None` where nothing is reused.
    pub fn reuse_key(&self, task: &DownloadTask) -> Option<[u8; KEY_BYTES]> {
        let settings = self.core.settings();
        let profile = settings.profiles.of(&task.job_type);
        if profile.fetch.reuse { fetchbox_model::reuse::key(&profile.reuse_scope, task) } else { None }
    }

    /// Whether slots stand free although tasks may wait.
    pub fn has_room(&self) -> bool {
        lock(&self.core.scheduler).has_room()
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
