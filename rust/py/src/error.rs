//! `CoreError`, the one exception of the module. The stable ABI cannot subclass exceptions natively, so its class is a few lines of Python.

use std::ffi::CStr;

use fetchbox_hub::HubError;
use fetchbox_model::manifest::Fault;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyType};

static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();

const SOURCE: &CStr = c"
class CoreError(Exception):
    '''The one exception of the native module.'''

    def __init__(self, kind, code, message, details=None, retry_after=None, job_id=None):
        super().__init__(message)
        self.kind = kind
        self.code = code
        self.message = message
        self.details = details
        self.retry_after = retry_after
        self.job_id = job_id

    def __reduce__(self):
        return (CoreError, (self.kind, self.code, self.message, self.details, self.retry_after, self.job_id))
";

/// Adds the class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let class = class(module.py())?;
    module.add("CoreError", class)
}

fn class(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    let class = CLASS.get_or_try_init(py, || {
        let namespace = PyDict::new(py);
        namespace.set_item("__name__", "fetchbox._core")?;
        py.run(SOURCE, Some(&namespace), None)?;
        let class = namespace.as_any().get_item("CoreError")?;
        Ok::<_, PyErr>(class.cast_into::<PyType>()?.unbind())
    })?;
    Ok(class.bind(py))
}

/// An error on its way to Python; boxed, so that results stay small.
#[derive(Debug, Clone, Default)]
pub struct CoreError(Box<Parts>);

#[derive(Debug, Clone, Default)]
struct Parts {
    kind: &'static str,
    code: String,
    message: String,
    faults: Option<Vec<Fault>>,
    retry_after_ms: Option<u64>,
    job_id: Option<String>,
}

impl CoreError {
    pub fn new(kind: &'static str, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Box::new(Parts { kind, code: code.into(), message: message.into(), ..Parts::default() }))
    }

    /// A caller inside the package passed what the boundary's manual does not allow.
    pub fn invalid(message: impl ToString) -> Self {
        Self::new("internal", "INVALID_CALL", message.to_string())
    }

    pub fn validation(faults: Vec<Fault>) -> Self {
        let message = match faults.as_slice() {
            [one] => format!("{}: {}", if one.pointer.is_empty() { "the body" } else { &one.pointer }, one.message),
            many => format!("{} faults in the manifest", many.len()),
        };
        let mut error = Self::new("validation", "INVALID_PAYLOAD", message);
        error.0.faults = Some(faults);
        error
    }

    /// The exception as an object.
    pub fn value(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        let Parts { kind, code, message, faults, retry_after_ms, job_id } = *self.0;
        let details = match faults {
            None => None,
            Some(faults) => {
                let list = PyList::empty(py);
                for fault in faults {
                    let item = PyDict::new(py);
                    item.set_item("pointer", fault.pointer)?;
                    item.set_item("code", fault.code.as_str())?;
                    item.set_item("message", fault.message)?;
                    list.append(item)?;
                }
                Some(list)
            }
        };
        let retry_after = retry_after_ms.map(|ms| ms as f64 / 1000.0);
        class(py)?.call1((kind, code, message, details, retry_after, job_id))
    }
}

impl From<CoreError> for PyErr {
    fn from(error: CoreError) -> Self {
        Python::attach(|py| error.value(py).map_or_else(|failed| failed, PyErr::from_value))
    }
}

impl From<HubError> for CoreError {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Refused { code, message, retry_after_ms, job_id } => {
                let mut error = Self::new("refused", code, message);
                error.0.retry_after_ms = retry_after_ms;
                error.0.job_id = job_id;
                error
            }
            // A hub whose database failed is about to end: for its clients it is away, and what they asked may or may not have been done.
            HubError::Unavailable(message) | HubError::Fatal(message) => Self::new("unavailable", "HUB_UNAVAILABLE", message),
            other => Self::new("internal", "INTERNAL_ERROR", other.to_string()),
        }
    }
}
