//! Sockets: what a request travels over, and the connections kept for the next one.

pub mod connect;
pub mod link;
pub mod plain;
pub mod pool;
pub mod resolve;
pub mod socket;
pub mod spare;
pub mod tls;
pub mod tunnel;
