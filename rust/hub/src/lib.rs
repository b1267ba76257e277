//! FetchBox's hub: the only opener of the Fjall database. It holds the streams, the ledger and the reservations, projects outcomes, and serves
//! the api and the workers over a Unix socket.

mod client;
mod config;
mod error;
mod frame;

pub use client::{ClientOptions, HubClient, Push};
pub use config::{Broker, Durability, HubConfig, Retention};
pub use error::{HubError, HubOpenError};
pub use frame::{
    AcceptReply, AcceptRequest, AppendReply, AppendRequest, Assignment, CancelRequest, Commit, Entry, Generation, JobFacts, JobSettled,
    JoinRequest, OutboxDoneRequest, OutboxItem, OutboxPeekReply, OutboxPeekRequest, Owned, PartitionBatch, PollReply, PollRequest,
    PolledBatch, Position, RateLimit, ReleaseRequest, Reservation, ReserveReply, ReserveRequest, Role,
};
