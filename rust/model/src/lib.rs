//! FetchBox's messages and pure decisions.
//!
//! Nothing here does I/O, reads a clock or draws a random number: callers pass time and randomness in.

pub mod batch;
pub mod failure;
pub mod key;
pub mod manifest;
pub mod message;
pub mod reuse;
pub mod state;
pub mod stream;
pub mod time;
pub mod watermark;
