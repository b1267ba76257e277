//! FetchBox's hub: the only opener of the Fjall database. It holds the streams, the ledger and the reservations, projects outcomes, and serves
//! the api and the workers over a Unix socket, and over TCP with TLS when they are on other hosts.

mod accept;
mod announce;
mod audit;
mod background;
mod backup;
mod cancel;
mod check;
mod check_letters;
mod client;
mod clock;
mod collect;
mod command;
mod config;
mod connect;
mod core;
mod db;
mod desk;
mod direct;
mod dlq;
mod dlq_filter;
mod error;
mod feed;
mod frame;
mod group;
mod health;
mod hub;
mod job;
mod keep;
#[cfg(test)]
mod keep_tests;
mod keys;
mod ledger;
mod limit;
mod listen;
mod listing;
mod log;
mod manifests;
mod metrics;
mod open;
mod outcome;
mod pace;
mod project;
mod query;
mod query_dlq;
mod query_jobs;
mod query_logs;
mod query_resources;
mod query_tail;
mod rebuild;
#[cfg(test)]
mod rebuild_tests;
mod reclaim;
mod record;
mod redact;
mod replay;
mod replay_order;
mod reply;
mod reserve;
mod retention;
#[cfg(test)]
mod retention_tests;
mod retry_mover;
mod reuse;
#[cfg(test)]
mod reuse_tests;
mod serve_request;
mod server;
mod shelf;
mod stage;
mod stream;
mod streams;
mod sweep;
mod tail;
mod tell;
mod upkeep;
#[cfg(test)]
mod upkeep_tests;
mod uploads;
mod usage;
mod writer;

pub use client::{ClientOptions, HubClient, Push};
pub use clock::{Clock, SystemClock};
pub use config::{Broker, Durability, HubConfig, Keeping, Retention};
pub use error::{HubError, HubOpenError};
pub use frame::{
    AcceptReply, AcceptRequest, AppendReply, AppendRequest, Assignment, CancelRequest, Commit, Entry, FeedRequest, Generation, JobFacts,
    JobSettled, JoinRequest, KnownUrl, OutboxDoneRequest, OutboxItem, OutboxPeekReply, OutboxPeekRequest, Owned, PartitionBatch, PollReply,
    PollRequest, PolledBatch, Position, RateLimit, RebuildReply, RebuildRequest, ReleaseRequest, Reservation, ReserveReply, ReserveRequest,
    Role,
};
pub use hub::Hub;
pub use job::parse_id as parse_job_id;
pub use pace::Rest;
pub use shelf::Shelf;
