//! What goes in and what comes out.

use fetchbox_model::message::{DownloadTask, ResourceOutcome};

use crate::reuse::Reuse;

/// A task handed to the engine.
#[derive(Debug, Clone)]
pub struct Submission {
    /// What to fetch. Boxed, because lists of tasks are moved several times on their way: as values they would cost more to move than to decode.
    pub task: Box<DownloadTask>,
    /// The caller's own mark; comes back with the task.
    pub token: u64,
    /// Set for a task that may reuse an object and be reused.
    pub reuse: Option<Box<Reuse>>,
}

impl Submission {
    /// A task without anything to reuse.
    pub fn new(task: impl Into<Box<DownloadTask>>, token: u64) -> Self {
        Self { task: task.into(), token, reuse: None }
    }
}

/// A task the engine is done with.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The mark given at submission.
    pub token: u64,
    /// The task as it was submitted.
    pub task: Box<DownloadTask>,
    /// Failed attempts of this delivery, oldest first.
    pub attempts: Vec<FailedAttempt>,
    /// What became of it.
    pub result: FinishedKind,
}

/// One attempt that did not end with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedAttempt {
    /// Counted over all deliveries, from 1.
    pub attempt: u32,
    /// A name of `fetchbox_model::failure`.
    pub code: String,
    /// For people; holds no secret of the URL.
    pub message: String,
    /// The last status seen; 0 for none.
    pub http_status: u32,
    /// Wall clock, milliseconds since the epoch.
    pub at_ms: u64,
}

/// What became of a task.
#[derive(Debug, Clone)]
pub enum FinishedKind {
    /// It is settled.
    Outcome(Box<ResourceOutcome>),
    /// It is to be tried again, later than the engine waits: publish it with the attempts made added to `attempt`.
    Later {
        /// Wall clock, milliseconds since the epoch.
        not_before_ms: u64,
        /// The last attempt's code.
        code: String,
        /// The last attempt's message.
        message: String,
    },
    /// It was cancelled, or the engine closed before it was settled.
    Dropped,
}

/// Counts at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tasks waiting for a slot, a host or their time.
    pub queued: usize,
    /// Tasks being worked on.
    pub running: usize,
    /// Tasks finished and not yet drained.
    pub finished: usize,
    /// Hosts known to the scheduler.
    pub hosts: usize,
    /// Hosts whose circuit is open.
    pub open_circuits: usize,
    /// Idle connections kept.
    pub idle_connections: usize,
    /// Bytes of the memory budget in use.
    pub memory_used: u64,
}

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A value of the configuration is wrong; the text names it.
    #[error("{0}")]
    Config(String),
    /// The store cannot be used; the text says why.
    #[error("store: {0}")]
    Store(String),
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The refusal.
        source: std::io::Error,
    },
}
