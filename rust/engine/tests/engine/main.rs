//! The engine against real sockets: scripted origins, name servers and stores.

// All of this crate is a test, its helpers too; origins pause because slow origins are what is tested.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

mod addresses;
mod answers;
mod close;
mod dns;
mod filters;
mod http2;
mod origins;
mod proxies;
mod registry;
mod remote;
mod reuse;
mod robots;
mod scheduling;
mod support;
mod tls;
