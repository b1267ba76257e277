//! `CurlCall`: one request that the engine wants curl to make.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fetchbox_engine::{Call, Failure, Head, Taken};
use fetchbox_model::failure::Code;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::CoreError;

#[pyclass(frozen, module = "fetchbox._core")]
pub struct CurlCall(pub Arc<Call>);

#[pymethods]
impl CurlCall {
    #[getter]
    fn group(&self) -> usize {
        self.0.group
    }

    fn order<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let json = serde_json::to_vec(&self.0.order).map_err(CoreError::invalid)?;
        Ok(PyBytes::new(py, &json))
    }

    fn permits(&self, ip: &str, port: u16) -> bool {
        ip.parse::<IpAddr>().is_ok_and(|ip| self.0.permits(SocketAddr::new(ip, port)))
    }

    fn connected(&self) {
        self.0.connected();
    }

    fn head(&self, status: u16, http2: bool, fields: Vec<(Vec<u8>, Vec<u8>)>) {
        self.0.head(Head { status, http2, fields });
    }

    fn push(&self, data: &[u8]) -> u8 {
        match self.0.push(data) {
            Taken::Yes => 0,
            Taken::Full => 1,
            Taken::Gone => 2,
        }
    }

    #[pyo3(signature = (code = None, message = ""))]
    fn end(&self, code: Option<&str>, message: &str) {
        let code = code.map(|name| name.parse().unwrap_or(Code::SystemInternal));
        self.0.end(code.map_or(Ok(()), |code| Err(Failure::new(code, message))));
    }
}
