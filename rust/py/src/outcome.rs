//! `Outcome` and `OutcomeBatch`: finished tasks on their way to Python.

use std::collections::BTreeMap;

use fetchbox_engine::{Finished, FinishedKind};
use fetchbox_model::message::{DownloadTask, ResourceOutcome, ResourceState, Timings};
use fetchbox_model::reuse::Remembered;
use fetchbox_model::state::resource_state_name;
use prost::Message;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use serde::{Deserialize, Serialize};

use crate::carry;
use crate::error::CoreError;

/// Finished tasks in completion order.
#[pyclass(frozen, module = "fetchbox._core")]
pub struct OutcomeBatch {
    pub finished: Vec<Finished>,
}

#[pymethods]
impl OutcomeBatch {
    fn __len__(&self) -> usize {
        self.finished.len()
    }

    fn outcomes(&self) -> Vec<Outcome> {
        self.finished.iter().map(Outcome::from).collect()
    }

    fn stored(&self) -> (usize, u64) {
        self.finished.iter().filter_map(|item| stored_size(&item.result)).fold((0, 0), |(count, bytes), size| (count + 1, bytes + size))
    }

    fn unstored(&self) -> Vec<Outcome> {
        self.finished.iter().filter(|item| stored_size(&item.result).is_none()).map(Outcome::from).collect()
    }

    /// What a tracer is told of: settled tasks whose trace context asks for it, with the context, job, job type and when they were finished.
    fn sampled(&self) -> Vec<(String, String, String, u64, Outcome)> {
        let settled = self.finished.iter().filter_map(|item| match &item.result {
            FinishedKind::Outcome(outcome) if is_sampled(&item.task.traceparent) => Some((item, outcome.finished_at_ms)),
            _ => None,
        });
        settled
            .map(|(item, at_ms)| {
                let task = &item.task;
                (task.traceparent.clone(), task.job_id.clone(), task.job_type.clone(), at_ms, Outcome::from(item))
            })
            .collect()
    }

    fn remembered<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let outcomes = self.finished.iter().filter_map(|item| match &item.result {
            FinishedKind::Outcome(outcome) if !outcome.reuse_key.is_empty() => Some(outcome),
            _ => None,
        });
        outcomes
            .filter_map(|outcome| Some((&outcome.reuse_key, Remembered::of(outcome)?)))
            .map(|(name, remembered)| (PyBytes::new(py, name), PyBytes::new(py, &remembered.encode_to_vec())))
            .collect()
    }

    /// Place and bytes of each, for [`OutcomeBatch::decode`] in another process.
    fn encode<'py>(&self, py: Python<'py>) -> Vec<(u64, Bound<'py, PyBytes>)> {
        self.finished.iter().map(|finished| (finished.token, PyBytes::new(py, &carry::encode(finished)))).collect()
    }

    #[staticmethod]
    fn decode(finished: &[u8]) -> PyResult<Self> {
        Ok(Self { finished: vec![carry::decode(finished)?] })
    }
}

/// Whether the flags of a W3C traceparent say that the trace is recorded.
fn is_sampled(traceparent: &str) -> bool {
    traceparent.get(53..55).and_then(|flags| u8::from_str_radix(flags, 16).ok()).is_some_and(|flags| flags & 1 == 1)
}

fn stored_size(result: &FinishedKind) -> Option<u64> {
    match result {
        FinishedKind::Outcome(outcome) if outcome.state() == ResourceState::Stored => Some(outcome.size),
        _ => None,
    }
}

/// What became of one URL, in the words of the public contract.
#[pyclass(frozen, get_all, module = "fetchbox._core")]
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    id: String,
    index: u32,
    url: String,
    final_url: String,
    state: String,
    code: Option<String>,
    message: Option<String>,
    http_status: Option<u32>,
    size: u64,
    sha256: Option<String>,
    content_type: Option<String>,
    sniffed_type: Option<String>,
    storage_url: Option<String>,
    etag: Option<String>,
    last_modified: Option<String>,
    attempts: u32,
    proxy: Option<String>,
    timings: BTreeMap<String, u32>,
    generation: u32,
}

#[pymethods]
impl Outcome {
    fn to_json<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let json = serde_json::to_vec(self).map_err(CoreError::invalid)?;
        Ok(PyBytes::new(py, &json))
    }

    fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("id", &self.id)?;
        dict.set_item("index", self.index)?;
        dict.set_item("url", &self.url)?;
        dict.set_item("final_url", &self.final_url)?;
        dict.set_item("state", &self.state)?;
        dict.set_item("code", &self.code)?;
        dict.set_item("message", &self.message)?;
        dict.set_item("http_status", self.http_status)?;
        dict.set_item("size", self.size)?;
        dict.set_item("sha256", &self.sha256)?;
        dict.set_item("content_type", &self.content_type)?;
        dict.set_item("sniffed_type", &self.sniffed_type)?;
        dict.set_item("storage_url", &self.storage_url)?;
        dict.set_item("etag", &self.etag)?;
        dict.set_item("last_modified", &self.last_modified)?;
        dict.set_item("attempts", self.attempts)?;
        dict.set_item("proxy", &self.proxy)?;
        dict.set_item("timings", &self.timings)?;
        dict.set_item("generation", self.generation)?;
        Ok(dict)
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, (Bound<'py, PyBytes>,))> {
        let loader = py.import("fetchbox._core")?.getattr("outcome_from_json")?;
        Ok((loader, (self.to_json(py)?,)))
    }

    fn __repr__(&self) -> String {
        match &self.code {
            None => format!("Outcome({} {} size={})", self.state, self.url, self.size),
            Some(code) => format!("Outcome({} {} code={code})", self.state, self.url),
        }
    }
}

/// The outcome that `Outcome.to_json` wrote.
#[pyfunction]
pub fn outcome_from_json(data: &[u8]) -> PyResult<Outcome> {
    serde_json::from_slice(data).map_err(|error| CoreError::invalid(error).into())
}

impl From<&Finished> for Outcome {
    fn from(finished: &Finished) -> Self {
        match &finished.result {
            FinishedKind::Outcome(outcome) => settled(&finished.task, outcome),
            // A library call has no stream to hand a task to: what would be tried much later has failed for now.
            FinishedKind::Later { code, message, .. } => Outcome {
                state: "failed".into(),
                code: Some(code.clone()),
                message: Some(message.clone()),
                attempts: finished.task.attempt + finished.attempts.len() as u32,
                ..unsettled(&finished.task)
            },
            FinishedKind::Dropped => Outcome { state: "cancelled".into(), ..unsettled(&finished.task) },
        }
    }
}

fn unsettled(task: &DownloadTask) -> Outcome {
    Outcome {
        id: task.resource_id.clone(),
        index: task.resource_index,
        url: task.url.clone(),
        final_url: task.url.clone(),
        generation: task.generation,
        ..Outcome::default()
    }
}

fn settled(task: &DownloadTask, outcome: &ResourceOutcome) -> Outcome {
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());
    Outcome {
        final_url: if outcome.final_url.is_empty() { task.url.clone() } else { outcome.final_url.clone() },
        state: resource_state_name(outcome.state()).to_owned(),
        code: text(&outcome.code),
        message: text(&outcome.message),
        http_status: (outcome.http_status != 0).then_some(outcome.http_status),
        size: outcome.size,
        sha256: (!outcome.sha256.is_empty()).then(|| hex(&outcome.sha256)),
        content_type: text(&outcome.content_type),
        sniffed_type: text(&outcome.sniffed_type),
        storage_url: text(&outcome.storage_url),
        etag: text(&outcome.etag),
        last_modified: text(&outcome.last_modified),
        attempts: outcome.attempts,
        proxy: text(&outcome.proxy),
        timings: outcome.timings.as_ref().map(timings).unwrap_or_default(),
        ..unsettled(task)
    }
}

fn timings(timings: &Timings) -> BTreeMap<String, u32> {
    let Timings { dns, connect, tls, first_byte, body, store, queued } = *timings;
    [("dns", dns), ("connect", connect), ("tls", tls), ("first_byte", first_byte), ("body", body), ("store", store), ("queued", queued)]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
