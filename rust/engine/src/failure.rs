//! Why an attempt failed, inside the engine.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use fetchbox_model::failure::Code;

/// A failed attempt, with what its retry and its outcome need.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Its class and name.
    pub code: Code,
    /// For people; holds no secret.
    pub message: String,
    /// The status that came, 0 for none.
    pub http_status: u16,
    /// What the origin asked for.
    pub retry_after: Option<Duration>,
    /// Further facts for the outcome's context.
    pub context: Vec<(&'static str, String)>,
}

impl Failure {
    /// A failure with nothing but its code and message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), http_status: 0, retry_after: None, context: Vec::new() }
    }

    /// Adds a fact to the outcome's context.
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.context.push((key, value.into()));
        self
    }

    /// Adds the status that came.
    pub fn status(mut self, status: u16) -> Self {
        self.http_status = status;
        self
    }
}

impl From<(Code, String)> for Failure {
    fn from((code, message): (Code, String)) -> Self {
        Self::new(code, message)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl Error for Failure {}

/// The first error of a type in a chain of sources.
pub fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // An io::Error hides what it wraps from `source`.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// An error with its causes, one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = error.source();
    }
    text
}

/// Whether the machine, not the peer, is the reason: file descriptors, memory.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}
