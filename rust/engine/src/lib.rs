//! FetchBox's download path: a batch of tasks in, outcomes out in completion order.
//!
//! One task goes: policy → resolve → connect → request → response → body → verify → store. Knows nothing of Python, the hub or the streams.

mod api;
mod config;
mod engine;

pub use api::{EngineError, FailedAttempt, Finished, FinishedKind, Stats, Submission};
pub use config::{AuthConfig, EngineConfig, FetchConfig, JobStorageConfig, JobTypeConfig, ProxyChoice, ProxyPoolConfig, StorageConfig};
pub use engine::Engine;
