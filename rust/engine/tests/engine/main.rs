//! The engine against real sockets: scripted origins, name servers and stores.

mod addresses;
mod answers;
mod close;
mod dns;
mod origins;
mod proxies;
mod remote;
mod scheduling;
mod support;
mod tls;
