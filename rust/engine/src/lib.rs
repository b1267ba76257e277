//! FetchBox's download path: a batch of tasks in, outcomes out in completion order.
//!
//! One task goes: policy → resolve → connect → request → response → body → verify → store. Knows nothing of Python, the hub or the streams.

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod report;
pub mod window;

mod address;
mod api;
mod breaker;
mod config;
mod core;
mod curl;
#[cfg(feature = "failpoints")]
mod deadly;
mod done;
mod engine;
mod failure;
mod fetch;
mod filter;
mod flight;
mod lane;
mod metrics;
mod neighbour;
mod net;
mod outcome;
mod pair;
mod profile;
mod proxy;
mod redirect;
mod resume;
mod retry;
mod reuse;
mod robots;
mod schedule;
mod store;
mod sync;
mod timer;
mod verify;
mod wall;

pub use address::{AddressPolicy, classify};
pub use api::{EngineError, FailedAttempt, Finished, FinishedKind, Stats, Submission};
pub use config::{AuthConfig, EngineConfig, FetchConfig, JobStorageConfig, JobTypeConfig, ProxyChoice, ProxyPoolConfig, StorageConfig};
pub use curl::{Call, Head, News, Order, Taken};
pub use engine::Engine;
pub use failure::Failure;
pub use flight::digest;
pub use reuse::Reuse;
pub use store::housekeeper::{Housekeeper, Place, Upload};
