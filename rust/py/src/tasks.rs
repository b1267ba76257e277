//! Manifests and handlers' tasks on their way to the hub.

use fetchbox_hub::PartitionBatch;
use fetchbox_model::failure::Code;
use fetchbox_model::key;
use fetchbox_model::manifest::{self, Change, CompileContext, Compiled, Fault, Limits};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::CoreError;

/// Encoded tasks by partition.
#[pyclass(frozen, module = "fetchbox._core")]
pub struct TaskBatch(Compiled);

#[pymethods]
impl TaskBatch {
    fn __len__(&self) -> usize {
        self.0.resource_count as usize
    }

    fn facts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let json = serde_json::to_vec(&self.0.facts).map_err(CoreError::invalid)?;
        Ok(PyBytes::new(py, &json))
    }
}

impl TaskBatch {
    pub fn count(&self) -> u32 {
        self.0.resource_count
    }

    pub fn partition_batches(&self) -> Vec<PartitionBatch> {
        let batch = |b: &manifest::PartitionBatch| PartitionBatch { partition: b.partition, count: b.count, bytes: b.bytes.clone() };
        self.0.batches.iter().map(batch).collect()
    }
}

fn context(json: &[u8]) -> Result<CompileContext, CoreError> {
    serde_json::from_slice(json).map_err(CoreError::invalid)
}

fn batch(compiled: Result<Compiled, Vec<Fault>>) -> PyResult<TaskBatch> {
    Ok(TaskBatch(compiled.map_err(CoreError::validation)?))
}

/// Validates a manifest and encodes a task per resource.
#[pyfunction]
pub fn compile_manifest(py: Python<'_>, body: &[u8], context: &[u8]) -> PyResult<TaskBatch> {
    let context = self::context(context)?;
    batch(py.detach(|| manifest::parse(body, &context.limits).map(|parsed| manifest::compile(&parsed, &context))))
}

/// Validates a manifest and returns it as normalised JSON for handlers.
#[pyfunction]
pub fn parse_manifest<'py>(py: Python<'py>, body: &[u8], context: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let context = self::context(context)?;
    let json = py.detach(|| manifest::parse(body, &context.limits).map(|parsed| parsed.to_json()));
    Ok(PyBytes::new(py, &json.map_err(CoreError::validation)?))
}

/// Validates and encodes the tasks that a handler built.
#[pyfunction]
pub fn compile_tasks(py: Python<'_>, tasks: &[u8], context: &[u8]) -> PyResult<TaskBatch> {
    let context = self::context(context)?;
    batch(py.detach(|| manifest::compile_tasks(tasks, &context)))
}

/// Checks the changes of a replay.
#[pyfunction]
pub fn check_replay(order: &[u8], limits: &[u8]) -> PyResult<()> {
    let order: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(order).map_err(CoreError::invalid)?;
    let limits: Limits = serde_json::from_slice(limits).map_err(CoreError::invalid)?;
    Change::read(&order, &limits).map_err(CoreError::validation)?;
    Ok(())
}

/// What is wrong with a key template, or None.
#[pyfunction]
pub fn key_template_problem(template: &str) -> Option<String> {
    key::KeyTemplate::parse(template).err().map(|error| error.to_string())
}

/// The name of an object that the library stores, from its URL or the id that the input gives it, both as bytes.
#[pyfunction]
pub fn object_key(url: &[u8], id: Option<&[u8]>) -> String {
    key::named_key(url, id)
}

/// Every failure code: its name, whether it is retried, what it means.
#[pyfunction]
pub fn failure_codes() -> Vec<(&'static str, bool, &'static str)> {
    Code::ALL.iter().map(|code| (code.as_str(), code.is_retryable(), code.meaning())).collect()
}
