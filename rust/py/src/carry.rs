//! Tasks and finished ones between a worker and its quarantine process.

use fetchbox_engine::{FailedAttempt, Finished, FinishedKind};
use fetchbox_model::message::{DownloadTask, ResourceOutcome};
use prost::Message;

use crate::error::CoreError;

/// A finished task. One that was dropped has neither `outcome` nor `later`.
#[derive(Clone, PartialEq, Message)]
struct Carried {
    #[prost(uint64, tag = "1")]
    token: u64,
    #[prost(message, required, tag = "2")]
    task: DownloadTask,
    #[prost(message, repeated, tag = "3")]
    attempts: Vec<Attempt>,
    #[prost(message, optional, boxed, tag = "4")]
    outcome: Option<Box<ResourceOutcome>>,
    #[prost(message, optional, tag = "5")]
    later: Option<Later>,
}

#[derive(Clone, PartialEq, Message)]
struct Attempt {
    #[prost(uint32, tag = "1")]
    attempt: u32,
    #[prost(string, tag = "2")]
    code: String,
    #[prost(string, tag = "3")]
    message: String,
    #[prost(uint32, tag = "4")]
    http_status: u32,
    #[prost(uint64, tag = "5")]
    at_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Later {
    #[prost(uint64, tag = "1")]
    not_before_ms: u64,
    #[prost(string, tag = "2")]
    code: String,
    #[prost(string, tag = "3")]
    message: String,
}

/// A finished task as bytes.
pub fn encode(finished: &Finished) -> Vec<u8> {
    let attempt = |a: &FailedAttempt| Attempt {
        attempt: a.attempt,
        code: a.code.to_string(),
        message: a.message.clone(),
        http_status: a.http_status,
        at_ms: a.at_ms,
    };
    let (outcome, later) = match &finished.result {
        FinishedKind::Outcome(outcome) => (Some(outcome.clone()), None),
        FinishedKind::Later { not_before_ms, code, message } => {
            (None, Some(Later { not_before_ms: *not_before_ms, code: code.to_string(), message: message.clone() }))
        }
        FinishedKind::Dropped => (None, None),
    };
    let attempts = finished.attempts.iter().map(attempt).collect();
    Carried { token: finished.token, task: (*finished.task).clone(), attempts, outcome, later }.encode_to_vec()
}

/// What [`encode`] wrote.
pub fn decode(bytes: &[u8]) -> Result<Finished, CoreError> {
    let carried = Carried::decode(bytes).map_err(CoreError::invalid)?;
    let attempt =
        |a: Attempt| FailedAttempt { attempt: a.attempt, code: a.code, message: a.message, http_status: a.http_status, at_ms: a.at_ms };
    let result = match (carried.outcome, carried.later) {
        (Some(outcome), _) => FinishedKind::Outcome(outcome),
        (None, Some(later)) => FinishedKind::Later { not_before_ms: later.not_before_ms, code: later.code, message: later.message },
        (None, None) => FinishedKind::Dropped,
    };
    Ok(Finished {
        token: carried.token,
        task: Box::new(carried.task),
        attempts: carried.attempts.into_iter().map(attempt).collect(),
        result,
    })
}

/// A task that [`DownloadTask`] encoded.
pub fn task(bytes: &[u8]) -> Result<Box<DownloadTask>, CoreError> {
    DownloadTask::decode(bytes).map(Box::new).map_err(CoreError::invalid)
}
