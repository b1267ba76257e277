//! The messages of `proto/jobs.proto`, generated at build time.
#![allow(clippy::all, missing_docs)]

include!(concat!(env!("OUT_DIR"), "/fetchbox.jobs.rs"));
