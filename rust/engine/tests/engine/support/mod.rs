//! An engine with a store of its own, and the tasks it is given.

pub mod origin;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use fetchbox_engine::{Engine, EngineConfig, Finished, FinishedKind, Reuse, Submission};
use fetchbox_model::message::{DownloadTask, HttpHeader, ResourceOutcome, ResourceState};
use fetchbox_model::reuse::Remembered;
use object_store::ObjectStore;

/// Longest time a test waits for anything.
pub const LIMIT: Duration = Duration::from_secs(30);

pub struct Fetcher {
    pub engine: Option<Engine>,
    pub root: tempfile::TempDir,
    woken: Receiver<()>,
    next: u64,
}

/// Fast and local: short time-outs, hardly any back-off, loopback allowed.
pub fn config() -> EngineConfig {
    let mut config = EngineConfig { runtime_threads: 2, concurrency: 32, ..EngineConfig::default() };
    config.fetch.allow_networks = vec!["127.0.0.0/8".parse().unwrap()];
    config.fetch.connect_timeout = 5.0;
    config.fetch.read_timeout = 5.0;
    config.fetch.total_timeout = 20.0;
    config.fetch.max_attempts = 1;
    config.fetch.backoff_base = 0.01;
    config.fetch.backoff_max = 0.02;
    config
}

impl Fetcher {
    pub fn new(change: impl FnOnce(&mut EngineConfig)) -> Self {
        Self::with_store(None, change)
    }

    pub fn with_store(store: Option<Arc<dyn ObjectStore>>, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut config = config();
        config.storage.url = format!("file://{}", root.path().display());
        change(&mut config);
        let (wake, woken) = sync_channel(1);
        let engine = Engine::start(config, store, Arc::new(move || wake.try_send(()).unwrap_or_default())).unwrap();
        Self { engine: Some(engine), root, woken, next: 0 }
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    pub fn submit(&mut self, task: DownloadTask) {
        self.next += 1;
        self.engine().submit(vec![Submission::new(task, self.next)]);
    }

    /// Fetches a task to its end with what is remembered of it.
    pub fn run_known(&mut self, task: DownloadTask, known: Option<Remembered>) -> ResourceOutcome {
        self.submit_known(task, known.map(Arc::new));
        outcome(self.drain(1).remove(0))
    }

    pub fn submit_known(&mut self, task: DownloadTask, known: Option<Arc<Remembered>>) {
        self.next += 1;
        let reuse = self.engine().reuse_key(&task).map(|key| Box::new(Reuse { key, known }));
        self.engine().submit(vec![Submission { task: Box::new(task), token: self.next, reuse }]);
    }

    /// Waits for so many tasks.
    pub fn drain(&self, count: usize) -> Vec<Finished> {
        let until = Instant::now() + LIMIT;
        let mut all = Vec::new();
        loop {
            all.extend(self.engine().drain(usize::MAX));
            if all.len() >= count {
                return all;
            }
            let left = until.checked_duration_since(Instant::now()).unwrap_or_else(|| panic!("{} of {count} came", all.len()));
            // A time-out shows at the next turn.
            let _ = self.woken.recv_timeout(left);
        }
    }

    /// Fetches one task to its end.
    pub fn run(&mut self, task: DownloadTask) -> Finished {
        self.submit(task);
        self.drain(1).remove(0)
    }

    pub fn outcome(&mut self, task: DownloadTask) -> ResourceOutcome {
        outcome(self.run(task))
    }

    /// Fetches one URL with a plain task.
    pub fn get(&mut self, url: &str) -> ResourceOutcome {
        self.outcome(task(url))
    }

    /// Files in the store, with their contents.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut dirs: Vec<PathBuf> = vec![self.root.path().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    let name = path.strip_prefix(self.root.path()).unwrap().to_str().unwrap().to_owned();
                    files.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
        files
    }

    /// The one file of the store.
    pub fn only_file(&self) -> Vec<u8> {
        let files = self.files();
        assert_eq!(files.len(), 1, "{:?}", files.keys());
        files.into_values().next().unwrap()
    }
}

pub fn task(url: &str) -> DownloadTask {
    DownloadTask { job_id: "job".into(), job_type: "default".into(), resource_id: "r".into(), url: url.into(), ..DownloadTask::default() }
}

pub fn header(name: &str, value: &str) -> HttpHeader {
    HttpHeader { name: name.into(), value: value.into() }
}

pub fn outcome(finished: Finished) -> ResourceOutcome {
    match finished.result {
        FinishedKind::Outcome(outcome) => *outcome,
        other => panic!("no outcome: {other:?}"),
    }
}

#[track_caller]
pub fn assert_failed(outcome: &ResourceOutcome, code: &str) {
    assert_eq!(outcome.code, code, "{}", outcome.message);
    assert_eq!(outcome.state(), ResourceState::Failed);
    assert!(outcome.task.is_some(), "a failed outcome holds its task");
}

#[track_caller]
pub fn assert_stored(outcome: &ResourceOutcome) {
    assert_eq!(outcome.state(), ResourceState::Stored, "{}: {}", outcome.code, outcome.message);
}

/// Whether the retry decision would try the code again.
pub fn is_retryable(code: &str) -> bool {
    code.parse::<fetchbox_model::failure::Code>().unwrap().is_retryable()
}
