//! Tasks that a job type's own Python code looks at before they are fetched.

use std::collections::{HashMap, HashSet};

use fetchbox_engine::window::Placed;
use fetchbox_model::failure::Code;
use fetchbox_model::manifest::{Change, Limits};
use fetchbox_model::message::DownloadTask;
use serde_json::{Map, Value, json};

/// A task that may go on; or one that may not, and why.
pub type Released = Result<Box<DownloadTask>, (Box<DownloadTask>, String)>;

/// Tasks between their delivery and the engine, by their place.
#[derive(Default)]
pub struct Hooks {
    job_types: HashSet<String>,
    limits: Limits,
    waiting: HashMap<u64, Box<DownloadTask>>,
    /// Those that Python has not been told of.
    fresh: Vec<u64>,
}

impl Hooks {
    /// From now on tasks of these job types wait here; `limits` are those of headers.
    pub fn set(&mut self, job_types: HashSet<String>, limits: Limits) {
        self.job_types = job_types;
        self.limits = limits;
    }

    /// Whether a task has to wait.
    pub fn wants(&self, task: &DownloadTask) -> bool {
        !self.job_types.is_empty() && self.job_types.contains(&task.job_type)
    }

    /// Takes a task in; false when it waits already, because its partition went and came back.
    pub fn add(&mut self, placed: Placed) -> bool {
        let is_new = self.waiting.insert(placed.token, placed.task).is_none();
        if is_new {
            self.fresh.push(placed.token);
        }
        is_new
    }

    /// What came since the last call: place, job type and the task as JSON.
    pub fn take_fresh(&mut self) -> Vec<(u64, String, Vec<u8>)> {
        let fresh = std::mem::take(&mut self.fresh);
        let told = |place| {
            let task: &DownloadTask = self.waiting.get(&place)?;
            Some((place, task.job_type.clone(), plain(task).to_string().into_bytes()))
        };
        fresh.into_iter().filter_map(told).collect()
    }

    /// Lets a task go on with these headers changed (null takes one away). `None` when it does not wait any more.
    ///
    /// Errors: the task, and what is wrong with the headers.
    pub fn release(&mut self, place: u64, headers: Map<String, Value>) -> Option<Released> {
        let mut task = self.waiting.remove(&place)?;
        let order = Map::from_iter([("headers".to_owned(), Value::Object(headers))]);
        let changed = Change::read(&order, &self.limits)
            .map_err(|faults| faults.iter().map(|fault| format!("{}: {}", fault.pointer, fault.message)).collect::<Vec<_>>().join("; "))
            .and_then(|change| change.apply(&mut task, &[]));
        Some(match changed {
            Ok(()) => Ok(task),
            Err(fault) => Err((task, fault)),
        })
    }

    /// Takes a task out.
    pub fn remove(&mut self, place: u64) -> Option<Box<DownloadTask>> {
        self.waiting.remove(&place)
    }

    /// Forgets everything that waits, to be delivered again; how many that were.
    pub fn clear(&mut self) -> usize {
        self.fresh.clear();
        std::mem::take(&mut self.waiting).len()
    }
}

/// A code of a handler's own, and what it is to the retry decision and the metrics.
pub fn code_of(name: &str) -> Code {
    name.parse().unwrap_or(Code::HandlerError)
}

/// The task as `fetchbox.DownloadTask` holds it.
fn plain(task: &DownloadTask) -> Value {
    let headers: Map<String, Value> = task.headers.iter().map(|header| (header.name.clone(), header.value.clone().into())).collect();
    let storage = task.storage_hint.clone().unwrap_or_default();
    let some = |text: String| (!text.is_empty()).then_some(text);
    json!({
        "url": task.url,
        "id": task.resource_id,
        "headers": headers,
        "tags": task.attributes.as_ref().map(|attributes| attributes.tags.clone()).unwrap_or_default(),
        "proxy": task.proxy_hint.as_ref().and_then(|hint| some(hint.primary_pool.clone())),
        "key": some(storage.key),
        "bucket": some(storage.bucket),
        "key_prefix": some(storage.key_prefix),
        "metadata": storage.metadata,
        "deadline": (task.deadline_ms > 0).then(|| task.deadline_ms as f64 / 1000.0),
    })
}
