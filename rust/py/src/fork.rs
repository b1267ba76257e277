//! Native threads do not survive `fork`: an object that was made before it fails loudly after it instead of hanging.

use pyo3::prelude::*;

use crate::error::CoreError;

/// Remembers the process that made an object.
#[derive(Debug)]
pub struct Guard(u32);

impl Guard {
    pub fn new() -> Self {
        Self(std::process::id())
    }

    /// Whether this is another process.
    pub fn is_foreign(&self) -> bool {
        self.0 != std::process::id()
    }

    /// An error in any other process.
    pub fn check(&self, what: &str) -> PyResult<()> {
        if !self.is_foreign() {
            return Ok(());
        }
        let message = format!("this {what} was made before fork(); make a new one in the child, or start children by spawn or exec");
        Err(CoreError::new("internal", "FORKED", message).into())
    }
}
