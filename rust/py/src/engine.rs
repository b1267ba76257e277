//! `Engine`: the download engine with the window over the partitions that it works on.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fetchbox_engine::report::{self, Context, Entry};
use fetchbox_engine::window::{Malformed, Placed, Window};
use fetchbox_engine::{AddressPolicy, EngineConfig, EngineError, FetchConfig, FinishedKind, News, Reuse, Submission};
use fetchbox_hub::Assignment;
use fetchbox_model::failure::Code;
use fetchbox_model::reuse::Remembered;
use prost::Message;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use pyo3_object_store::AnyObjectStore;

use crate::broker::Posted;
use crate::carry;
use crate::completion::{Wakeup, lock};
use crate::curl::CurlCall;
use crate::delivery::{self, Delivery, Settled};
use crate::error::CoreError;
use crate::fork::Guard;
use crate::hooks::{self, Hooks};
use crate::idle::Idle;
use crate::library;
use crate::outcome::OutcomeBatch;

/// What a worker publishes in one durable step.
#[pyclass(frozen, module = "fetchbox._core")]
pub struct Report {
    pub entries: Vec<Entry>,
    /// Per partition of `jobs.tasks`, the offset to commit.
    pub commits: Vec<(u32, u64)>,
}

#[pymethods]
impl Report {
    fn __len__(&self) -> usize {
        self.entries.len() + self.commits.len()
    }

    /// Its messages by topic and partition, in the order in which they are to be published.
    fn messages<'py>(&self, py: Python<'py>) -> PyResult<Vec<(&'static str, u32, Bound<'py, PyList>)>> {
        let posted = |entry: &Entry| Posted::unpack(entry.topic, entry.partition, &entry.bytes).map_err(CoreError::from)?.object(py);
        self.entries.iter().map(posted).collect()
    }

    /// Per partition of `jobs.tasks` the offset below which everything is settled or handed on.
    fn commits(&self) -> Vec<(u32, u64)> {
        self.commits.clone()
    }
}

#[pyclass(frozen, module = "fetchbox._core")]
pub struct Engine {
    guard: Guard,
    /// Taken out by `close`, which waits for calls that are inside.
    engine: RwLock<Option<fetchbox_engine::Engine>>,
    /// Takes the engine's place in benches.
    idle: Option<Idle>,
    pub window: Mutex<Window>,
    malformed: Mutex<Vec<Malformed>>,
    wakeup: Arc<Wakeup>,
    /// Tasks under way in several deaths of workers, and those of them that were delivered and not taken yet.
    suspects: Mutex<HashSet<u64>>,
    aside: Mutex<Vec<Placed>>,
    hooks: Mutex<Hooks>,
    /// Tasks of a library call, between the names that they are given and the answer to what is remembered under these.
    prepared: Mutex<Vec<Submission>>,
    backlog: AtomicUsize,
    closing: AtomicBool,
    log_stored: bool,
    /// Readable while the curl transport has news to take.
    curl: Arc<Wakeup>,
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (options, store = None, log_stored = false, idle = false))]
    fn new(py: Python<'_>, options: &[u8], store: Option<Bound<'_, PyAny>>, log_stored: bool, idle: bool) -> PyResult<Self> {
        let config: EngineConfig =
            serde_json::from_slice(options).map_err(|error| CoreError::new("config", "engine", error.to_string()))?;
        let wakeup = Arc::new(Wakeup::new()?);
        let wake = Arc::clone(&wakeup);
        let store = store.map(object_store).transpose()?;
        let engine = py.detach(|| fetchbox_engine::Engine::start(config, store, Arc::new(move || wake.notify()))).map_err(engine_error)?;
        Ok(Self {
            guard: Guard::new(),
            engine: RwLock::new(Some(engine)),
            idle: idle.then(Idle::default),
            window: Mutex::default(),
            malformed: Mutex::default(),
            wakeup,
            suspects: Mutex::default(),
            aside: Mutex::default(),
            hooks: Mutex::default(),
            prepared: Mutex::default(),
            backlog: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            log_stored,
            curl: Arc::new(Wakeup::new()?),
        })
    }

    fn fileno(&self) -> RawFd {
        self.wakeup.fd()
    }

    fn admit(&self, py: Python<'_>, delivery: &Delivery) -> usize {
        let admitted = py.detach(|| delivery.admit(&mut lock(&self.window)));
        // A closed engine starts nothing of it: then it needs no names.
        let _ = self.with(py, |engine| {
            if engine.reuses() {
                delivery.name(|task| engine.reuse_key(task));
            }
        });
        admitted
    }

    fn submit(&self, py: Python<'_>, delivery: &Delivery, settled: &Settled) -> PyResult<usize> {
        if lock(&self.window).take_gained() {
            // Whose partitions these were may have died of them.
            *lock(&self.suspects) = self.with(py, fetchbox_engine::Engine::suspects)?;
        }
        let submissions = py.detach(|| {
            let (mut intake, names) = delivery.take();
            let mut submissions = Vec::with_capacity(intake.tasks.len());
            {
                let suspects = lock(&self.suspects);
                let mut hooks = lock(&self.hooks);
                let mut window = lock(&self.window);
                for (placed, name) in std::mem::take(&mut intake.tasks).into_iter().zip(names.into_iter().chain(std::iter::repeat(None))) {
                    if let Some(reason) = settled.objection(&placed.task) {
                        let raw = placed.task.encode_to_vec().into();
                        intake.malformed.push(Malformed { token: placed.token, reason: reason.to_owned(), raw });
                    } else if settled.covers(&placed.task) {
                        window.settle(placed.token);
                    } else if !window.wants(placed.token) {
                        // Its partition is asked for, or went, since it was polled.
                        window.abandon(placed.token);
                    } else if hooks.wants(&placed.task) {
                        if self.closing.load(Ordering::Relaxed) {
                            continue; // delivered again, elsewhere
                        }
                        self.backlog.fetch_add(usize::from(hooks.add(placed)), Ordering::Relaxed);
                    } else if !suspects.is_empty() && suspects.contains(&fetchbox_engine::digest(&placed.task)) {
                        lock(&self.aside).push(placed);
                    } else {
                        let reuse = name.map(|key| Box::new(Reuse { known: settled.known(&key), key }));
                        submissions.push(Submission { task: placed.task, token: placed.token, reuse });
                    }
                }
            }
            lock(&self.malformed).extend(intake.malformed);
            submissions
        });
        self.start(py, submissions)
    }

    fn submit_tasks(&self, py: Python<'_>, tasks: &[u8], first_index: u32, named: bool) -> PyResult<usize> {
        let submissions = py.detach(|| library::submissions(tasks, first_index, named)).map_err(CoreError::invalid)?;
        self.start(py, submissions)
    }

    fn submit_urls(&self, py: Python<'_>, urls: Vec<String>, first_index: u32, named: bool) -> PyResult<usize> {
        let submissions = py.detach(|| library::of_urls(urls, first_index, named));
        self.start(py, submissions)
    }

    fn prepare_tasks<'py>(
        &self,
        py: Python<'py>,
        tasks: &[u8],
        first_index: u32,
        named: bool,
    ) -> PyResult<Vec<Option<Bound<'py, PyBytes>>>> {
        let submissions = py.detach(|| library::submissions(tasks, first_index, named)).map_err(CoreError::invalid)?;
        let prepared: Vec<Submission> = self.with(py, |engine| {
            let name = |submission: Submission| {
                let reuse = engine.reuse_key(&submission.task).map(|key| Box::new(Reuse { key, known: None }));
                Submission { reuse, ..submission }
            };
            submissions.into_iter().map(name).collect()
        })?;
        let names = prepared.iter().map(|item| item.reuse.as_ref().map(|reuse| PyBytes::new(py, &reuse.key))).collect();
        // What was prepared and never started belongs to a run that is over.
        *lock(&self.prepared) = prepared;
        Ok(names)
    }

    fn submit_prepared(&self, py: Python<'_>, known: HashMap<Vec<u8>, (Vec<u8>, u64)>) -> PyResult<usize> {
        let mut submissions = std::mem::take(&mut *lock(&self.prepared));
        for reuse in submissions.iter_mut().filter_map(|submission| submission.reuse.as_mut()) {
            // What cannot be read is as good as forgotten.
            let remembered = known.get(&reuse.key[..]).and_then(|(value, age_ms)| {
                Remembered::decode(&value[..]).ok().map(|remembered| Remembered { age_ms: *age_ms, ..remembered })
            });
            reuse.known = remembered.map(Arc::new);
        }
        self.start(py, submissions)
    }

    fn set_aside<'py>(&self, py: Python<'py>) -> Vec<(u64, Bound<'py, PyBytes>)> {
        let aside = std::mem::take(&mut *lock(&self.aside));
        aside.iter().map(|placed| (placed.token, PyBytes::new(py, &placed.task.encode_to_vec()))).collect()
    }

    fn hook(&self, job_types: HashSet<String>, limits: &[u8]) -> PyResult<()> {
        let limits = serde_json::from_slice(limits).map_err(CoreError::invalid)?;
        lock(&self.hooks).set(job_types, limits);
        Ok(())
    }

    fn take_hooked<'py>(&self, py: Python<'py>) -> Vec<(u64, String, Bound<'py, PyBytes>)> {
        let fresh = py.detach(|| lock(&self.hooks).take_fresh());
        fresh.into_iter().map(|(place, job_type, task)| (place, job_type, PyBytes::new(py, &task))).collect()
    }

    fn release_hooked(&self, py: Python<'_>, place: u64, headers: &[u8]) -> PyResult<()> {
        let headers = serde_json::from_slice(headers).map_err(CoreError::invalid)?;
        let released = lock(&self.hooks).release(place, headers);
        match released {
            None => Ok(()),
            Some(Ok(task)) if lock(&self.suspects).contains(&fetchbox_engine::digest(&task)) => {
                self.backlog.fetch_sub(1, Ordering::Relaxed);
                lock(&self.aside).push(Placed { token: place, task });
                Ok(())
            }
            // It was counted when it came.
            Some(Ok(task)) => self.begin(py, vec![Submission::new(task, place)]),
            Some(Err((task, fault))) => {
                let message = format!("before_fetch set headers that cannot be sent: {fault}");
                self.with(py, |engine| engine.refuse(place, task, Code::HandlerBadTask, Code::HandlerBadTask.as_str(), &message))
            }
        }
    }

    fn refuse_hooked(&self, py: Python<'_>, place: u64, code: &str, message: &str) -> PyResult<()> {
        let Some(task) = lock(&self.hooks).remove(place) else { return Ok(()) };
        self.with(py, |engine| engine.refuse(place, task, hooks::code_of(code), code, message))
    }

    fn serve_curl(&self, py: Python<'_>) -> PyResult<RawFd> {
        let wake = Arc::clone(&self.curl);
        self.with(py, |engine| engine.serve_curl(Box::new(move || wake.notify())))?;
        Ok(self.curl.fd())
    }

    fn curl_news(&self, py: Python<'_>) -> PyResult<Vec<(u64, u8, Option<CurlCall>)>> {
        let news = self.with(py, |engine| {
            self.curl.reset();
            engine.curl_news()
        })?;
        let told = |news| match news {
            News::Begin(call) => (call.id, 0, Some(CurlCall(call))),
            News::Resume(id) => (id, 1, None),
            News::Drop(id) => (id, 2, None),
        };
        Ok(news.into_iter().map(told).collect())
    }

    fn submit_apart(&self, py: Python<'_>, place: u64, task: &[u8]) -> PyResult<usize> {
        self.start(py, vec![Submission::new(carry::task(task)?, place)])
    }

    fn poison(&self, py: Python<'_>, place: u64, task: &[u8], message: &str) -> PyResult<OutcomeBatch> {
        let task = carry::task(task)?;
        Ok(OutcomeBatch { finished: vec![self.with(py, |engine| engine.poison(place, task, message))?] })
    }

    fn unguarded(&self, py: Python<'_>) -> PyResult<Option<String>> {
        self.with(py, |engine| engine.unguarded().map(str::to_owned))
    }

    fn drain(&self, py: Python<'_>, limit: usize) -> PyResult<OutcomeBatch> {
        let finished = self.with(py, |engine| {
            self.wakeup.reset();
            let Some(idle) = &self.idle else { return engine.drain(limit) };
            let (finished, more) = idle.drain(limit);
            if more {
                self.wakeup.notify();
            }
            finished
        })?;
        self.backlog.fetch_sub(finished.len(), Ordering::Relaxed);
        Ok(OutcomeBatch { finished })
    }

    fn settle(&self, py: Python<'_>, outcomes: &OutcomeBatch) -> Report {
        let now_ms = now_ms();
        // A closed engine waits for nothing any more.
        let steady_ms = self.with(py, fetchbox_engine::Engine::steady_ms).unwrap_or(now_ms);
        let context = Context { now_ms, steady_ms, log_stored: self.log_stored };
        py.detach(|| {
            let malformed = std::mem::take(&mut *lock(&self.malformed));
            let entries = report::build(&outcomes.finished, &malformed, context);
            let mut window = lock(&self.window);
            let closing = self.closing.load(Ordering::Relaxed);
            for item in &outcomes.finished {
                // What a closing engine dropped is delivered again; what it dropped before was cancelled in the ledger.
                if !(closing && matches!(item.result, FinishedKind::Dropped)) {
                    window.settle(item.token);
                }
            }
            for bad in &malformed {
                window.settle(bad.token);
            }
            Report { entries, commits: window.take_commits() }
        })
    }

    /// Partitions that have room, with their next offset.
    fn positions(&self) -> Vec<(u32, u64)> {
        lock(&self.window).positions()
    }

    fn unload(&self) {
        lock(&self.window).assign(&[], &[]);
    }

    fn to_release(&self) -> usize {
        lock(&self.window).released().len()
    }

    fn has_room(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, fetchbox_engine::Engine::has_room)
    }

    fn backlog(&self) -> usize {
        self.backlog.load(Ordering::Relaxed)
    }

    fn standing(&self, py: Python<'_>) -> PyResult<(u64, Vec<String>)> {
        self.with(py, |engine| (engine.running(), engine.pools_out()))
    }

    fn cancel(&self, py: Python<'_>, job_id: &str) -> PyResult<()> {
        self.with(py, |engine| engine.cancel(job_id))
    }

    fn reload(&self, py: Python<'_>, options: &[u8]) -> PyResult<()> {
        let config: EngineConfig =
            serde_json::from_slice(options).map_err(|error| CoreError::new("config", "engine", error.to_string()))?;
        self.with(py, |engine| engine.reload(&config))?.map_err(engine_error)?;
        Ok(())
    }

    fn begin_close(&self, py: Python<'_>) -> PyResult<()> {
        self.closing.store(true, Ordering::Relaxed);
        self.backlog.fetch_sub(lock(&self.hooks).clear(), Ordering::Relaxed);
        self.with(py, fetchbox_engine::Engine::begin_close)
    }

    fn close(&self, py: Python<'_>, timeout: f64) {
        self.closing.store(true, Ordering::Relaxed);
        let timeout = Duration::try_from_secs_f64(timeout).unwrap_or(Duration::from_secs(5));
        py.detach(|| {
            let taken = self.engine.write().unwrap_or_else(PoisonError::into_inner).take();
            if self.guard.is_foreign() {
                std::mem::forget(taken);
            } else if let Some(engine) = taken {
                engine.begin_close();
                engine.close(timeout);
            }
        });
    }

    fn metrics(&self, py: Python<'_>) -> String {
        // A closed engine has nothing to tell.
        self.with(py, fetchbox_engine::Engine::metrics_text).unwrap_or_default()
    }
}

/// The engine's own defaults of `[fetch]`, as JSON.
#[pyfunction]
pub fn fetch_defaults(py: Python<'_>) -> PyResult<Bound<'_, PyBytes>> {
    let json = serde_json::to_vec(&FetchConfig::default()).map_err(CoreError::invalid)?;
    Ok(PyBytes::new(py, &json))
}

/// Why none of these addresses may be connected to, because one of them may not; `None` when all may.
#[pyfunction]
pub fn refused_address(addresses: Vec<String>, allow_networks: Vec<String>, blocked: Vec<String>) -> PyResult<Option<String>> {
    let policy = AddressPolicy::parse(&allow_networks, &blocked).map_err(CoreError::invalid)?;
    let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(CoreError::invalid)?;
    Ok(policy.check_all(&addresses).err().map(|(address, reason)| format!("{} is {reason}", address.ip())))
}

impl Drop for Engine {
    fn drop(&mut self) {
        // After a fork its threads are the parent's: waiting for them would never end.
        if self.guard.is_foreign() {
            std::mem::forget(self.engine.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        }
    }
}

/// An obstore store, made again inside this module from its own settings.
fn object_store(store: Bound<'_, PyAny>) -> Result<Arc<dyn object_store::ObjectStore>, CoreError> {
    store.extract::<AnyObjectStore>().map(AnyObjectStore::into_dyn).map_err(|error| {
        let message =
            format!("a directory, a URL or obstore's S3Store, GCSStore, AzureStore, HTTPStore or LocalStore is taken as store: {error}");
        CoreError::new("store", "store", message)
    })
}

impl Engine {
    /// Takes over an assignment. What waits of partitions that go is somebody else's: done here as well, it would be done twice.
    pub fn assign(&self, assignment: &Assignment) {
        let leaving = delivery::assign(&mut lock(&self.window), assignment);
        if leaving.is_empty() {
            return;
        }
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        let Some(engine) = engine.as_ref() else { return };
        let tokens = engine.give_up(&leaving);
        self.backlog.fetch_sub(tokens.len(), Ordering::Relaxed);
        let mut window = lock(&self.window);
        tokens.into_iter().for_each(|token| window.abandon(token));
    }

    /// Runs a call on the engine without the GIL. Raises when the engine is closed or was made before a fork.
    fn with<T: Send>(&self, py: Python<'_>, call: impl FnOnce(&fetchbox_engine::Engine) -> T + Send) -> PyResult<T> {
        self.guard.check("Engine")?;
        let result = py.detach(|| self.engine.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(call));
        Ok(result.ok_or_else(|| CoreError::new("closed", "CLOSED", "the engine is closed"))?)
    }

    fn start(&self, py: Python<'_>, submissions: Vec<Submission>) -> PyResult<usize> {
        let started = submissions.len();
        self.backlog.fetch_add(started, Ordering::Relaxed);
        self.begin(py, submissions)?;
        Ok(started)
    }

    /// Hands tasks to the engine that the backlog counts already.
    fn begin(&self, py: Python<'_>, submissions: Vec<Submission>) -> PyResult<()> {
        self.with(py, |engine| match &self.idle {
            None => engine.submit(submissions),
            Some(idle) => {
                idle.submit(submissions, now_ms());
                self.wakeup.notify();
            }
        })
    }
}

pub fn engine_error(error: EngineError) -> CoreError {
    match error {
        EngineError::Store(message) => CoreError::new("store", "storage.url", message),
        other => CoreError::new("config", "engine", other.to_string()),
    }
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
