//! What travels between the hub and its clients.
//!
//! A frame is `length: u32 | request id: u64 | op: u8 | payload`, little-endian inside the frame, the length as tokio-util's codec writes it. A reply
//! repeats the request's id with op [`OK`] or [`ERROR`]; a push has id 0 and op [`PUSH`]. Payloads are protobuf messages derived here by hand: nobody but
//! the hub and its client speaks this, and both come from the same build ([`PROTOCOL`] is compared in the greeting).

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use fetchbox_model::batch::Batch;
use fetchbox_model::reuse::Remembered;
use fetchbox_model::stream::Topic;
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::HubError;

/// The version of frames and payloads; client and hub must agree.
pub const PROTOCOL: u32 = 1;
/// Largest frame after the greeting: a manifest of 5 MB with its tasks fits many times.
pub const MAX_FRAME: usize = 128 << 20;
/// Largest frame before the greeting was accepted.
pub const MAX_GREETING: usize = 4 << 10;

/// Op of a successful reply.
pub const OK: u8 = 128;
/// Op of a failed reply, payload [`Failure`].
pub const ERROR: u8 = 129;
/// Op of a push, payload [`PushFrame`].
pub const PUSH: u8 = 130;

/// Op of a sign of life, id 0 and no payload; never answered.
pub const PING: u8 = 131;
/// How often a client gives a sign of life.
pub const PING_EVERY: Duration = Duration::from_secs(2);

/// What a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Op {
    Hello = 1,
    Reserve = 2,
    Release = 3,
    Accept = 4,
    Append = 5,
    Join = 6,
    Leave = 7,
    ReleasePartitions = 8,
    Poll = 9,
    Settled = 10,
    Cancel = 11,
    Query = 12,
    OutboxPeek = 13,
    OutboxDone = 14,
    Feed = 15,
    Ledger = 32,
    Rebuild = 33,
}

impl Op {
    const ALL: [Op; 17] = [
        Op::Hello,
        Op::Reserve,
        Op::Release,
        Op::Accept,
        Op::Append,
        Op::Join,
        Op::Leave,
        Op::ReleasePartitions,
        Op::Poll,
        Op::Settled,
        Op::Cancel,
        Op::Query,
        Op::OutboxPeek,
        Op::OutboxDone,
        Op::Feed,
        Op::Ledger,
        Op::Rebuild,
    ];

    /// The op of that number.
    pub fn from_id(id: u8) -> Option<Op> {
        Op::ALL.into_iter().find(|op| *op as u8 == id)
    }
}

/// Who a connection speaks for; it can do only what its role does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Role {
    /// An ingress process: reserve, accept, cancel, query.
    Api = 1,
    /// A worker: poll, settled, append, query.
    Worker = 2,
    /// An operator's tool or the hub's own helpers: everything.
    Operator = 3,
}

impl Role {
    /// The role of that number.
    pub fn from_id(id: u32) -> Option<Role> {
        [Role::Api, Role::Worker, Role::Operator].into_iter().find(|role| *role as u32 == id)
    }

    /// Whether this role may ask for that.
    pub fn may(self, op: Op) -> bool {
        match self {
            Role::Operator => true,
            Role::Api => matches!(op, Op::Hello | Op::Reserve | Op::Release | Op::Accept | Op::Cancel | Op::Query),
            Role::Worker => {
                matches!(op, Op::Hello | Op::Append | Op::Join | Op::Leave | Op::ReleasePartitions | Op::Poll | Op::Settled | Op::Query)
            }
        }
    }
}

/// The first request on a connection.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    /// [`PROTOCOL`].
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    /// [`Role`] as a number.
    #[prost(uint32, tag = "2")]
    pub role: u32,
    /// Who connects, for logs: `api 0`.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The hub's token, when it wants one.
    #[prost(string, optional, tag = "4")]
    pub token: Option<String>,
}

/// A refused or failed request.
#[derive(Clone, PartialEq, Message)]
pub struct Failure {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    code: String,
    #[prost(string, tag = "3")]
    message: String,
    #[prost(uint64, optional, tag = "4")]
    retry_after_ms: Option<u64>,
    #[prost(string, optional, tag = "5")]
    job_id: Option<String>,
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        let plain = |kind, message| Failure { kind, message, ..Default::default() };
        match error {
            HubError::Unavailable(message) => plain(1, message),
            HubError::Refused { code, message, retry_after_ms, job_id } => Failure { kind: 2, code, message, retry_after_ms, job_id },
            HubError::Invalid(message) => plain(3, message),
            HubError::Fatal(message) => plain(4, message),
        }
    }
}

impl From<Failure> for HubError {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            1 => HubError::Unavailable(failure.message),
            2 => HubError::Refused {
                code: failure.code,
                message: failure.message,
                retry_after_ms: failure.retry_after_ms,
                job_id: failure.job_id,
            },
            3 => HubError::Invalid(failure.message),
            _ => HubError::Fatal(failure.message),
        }
    }
}

/// A token bucket: `per_second` jobs or resources in the long run, `burst` at once.
#[derive(Clone, Copy, PartialEq, Message, Serialize, Deserialize)]
pub struct RateLimit {
    /// So many per second.
    #[prost(double, tag = "1")]
    pub per_second: f64,
    /// So many at once; at least one.
    #[prost(uint32, tag = "2")]
    #[serde(default)]
    pub burst: u32,
}

/// Asks for an idempotency key before anything is written for it.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct ReserveRequest {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// Job type.
    #[prost(string, tag = "2")]
    pub job_type: String,
    /// The caller's key.
    #[prost(string, tag = "3")]
    pub key: String,
    /// SHA-256 of the decompressed body, hex.
    #[prost(string, tag = "4")]
    pub body_sha256: String,
    /// The id the job gets when the key is new.
    #[prost(string, tag = "5")]
    pub job_id: String,
    /// Checked when the key is new; a later accept should then bring none.
    #[prost(message, optional, tag = "6")]
    #[serde(default)]
    pub rate_limit: Option<RateLimit>,
    /// How long to wait for another live owner of the key, in milliseconds; 0 for the hub's own limit.
    #[prost(uint32, tag = "7")]
    #[serde(default)]
    pub wait_ms: u32,
    /// The poster stores the manifest itself, before the accept: if that never comes, the collector removes it.
    #[prost(bool, tag = "8")]
    #[serde(default)]
    pub stores_manifest: bool,
    /// How many resources the job will have, where that is known already.
    #[prost(uint32, tag = "9")]
    #[serde(default)]
    pub resources: u32,
    /// Checked with `rate_limit`.
    #[prost(message, optional, tag = "10")]
    #[serde(default)]
    pub resource_limit: Option<RateLimit>,
    /// Checked with `rate_limit`; 0 for no limit.
    #[prost(uint64, tag = "11")]
    #[serde(default)]
    pub daily_bytes: u64,
}

/// The reservation's state.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct ReserveReply {
    /// The job's id: the proposed one, or that of an earlier post with the same key and body.
    #[prost(string, tag = "1")]
    pub job_id: String,
    /// The job is accepted already; answer with it and do nothing more.
    #[prost(bool, tag = "2")]
    pub accepted: bool,
    /// Of the accepted job.
    #[prost(uint32, tag = "3")]
    pub resource_count: u32,
    /// Of the accepted job.
    #[prost(string, tag = "4")]
    pub manifest_key: String,
}

/// Gives a reservation back that will not be accepted.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct ReleaseRequest {
    /// Tenant.
    #[prost(string, tag = "1")]
    pub tenant: String,
    /// Job type.
    #[prost(string, tag = "2")]
    pub job_type: String,
    /// The caller's key.
    #[prost(string, tag = "3")]
    pub key: String,
    /// The id that the reservation named.
    #[prost(string, tag = "4")]
    pub job_id: String,
}

/// The idempotency key a job is posted with.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
pub struct Reservation {
    /// The caller's key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// SHA-256 of the decompressed body, hex.
    #[prost(string, tag = "2")]
    pub body_sha256: String,
}

/// What is known of a job when it is accepted. The JSON form is that of the api's accept call.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct JobFacts {
    /// UUID.
    #[prost(string, tag = "1")]
    pub job_id: String,
    /// Job type.
    #[prost(string, tag = "2")]
    pub job_type: String,
    /// Tenant.
    #[prost(string, tag = "3")]
    #[serde(default)]
    pub tenant: String,
    /// URL of the manifest object.
    #[prost(string, tag = "4")]
    #[serde(default)]
    pub manifest_key: String,
    /// Wall clock of the api, Unix milliseconds.
    #[prost(uint64, tag = "5")]
    pub created_ms: u64,
    /// Tasks of the job; indexes run from 0 to one below.
    #[prost(uint32, tag = "6")]
    pub resource_count: u32,
    /// Of the manifest's attributes.
    #[prost(string, tag = "7")]
    #[serde(default, deserialize_with = "text")]
    pub crawl_id: String,
    /// Of the manifest's attributes.
    #[prost(string, tag = "8")]
    #[serde(default, deserialize_with = "text")]
    pub priority: String,
    /// Of the manifest's attributes.
    #[prost(string, tag = "9")]
    #[serde(default, deserialize_with = "text")]
    pub callback_url: String,
    /// W3C trace id.
    #[prost(string, tag = "10")]
    #[serde(default, deserialize_with = "text")]
    pub trace_id: String,
    /// The idempotency key, if one was sent.
    #[prost(message, optional, tag = "11")]
    #[serde(default)]
    pub reservation: Option<Reservation>,
    /// The tenant's limit, checked unless the job is accepted already.
    #[prost(message, optional, tag = "12")]
    #[serde(default)]
    pub rate_limit: Option<RateLimit>,
    /// The manifest was stored under a reservation made before: without it the job is refused, because its manifest may be gone.
    #[prost(bool, tag = "13")]
    #[serde(default)]
    pub stores_manifest: bool,
    /// The tenant's limit on resources, checked like `rate_limit`.
    #[prost(message, optional, tag = "14")]
    #[serde(default)]
    pub resource_limit: Option<RateLimit>,
    /// Bytes that the tenant may have stored in a day (UTC), checked like `rate_limit`; 0 for no limit.
    #[prost(uint64, tag = "15")]
    #[serde(default)]
    pub daily_bytes: u64,
    /// What `callback_url` is told of; empty for `job.settled` alone.
    #[prost(string, repeated, tag = "16")]
    #[serde(default)]
    pub callback_events: Vec<String>,
}

/// Text that JSON may also bring as a number or null.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    })
}

/// A batch on its way to a partition whose topic is clear.
#[derive(Clone, PartialEq, Message)]
pub struct PartitionBatch {
    /// Partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// Messages in it.
    #[prost(uint32, tag = "2")]
    pub count: u32,
    /// As `fetchbox_model::batch` packs them.
    #[prost(bytes = "bytes", tag = "3")]
    pub bytes: Bytes,
}

/// Accepts a job: one durable commit.
#[derive(Clone, PartialEq, Message)]
pub struct AcceptRequest {
    /// The job.
    #[prost(message, required, tag = "1")]
    pub facts: JobFacts,
    /// Its tasks by partition of `jobs.tasks`.
    #[prost(message, repeated, tag = "2")]
    pub tasks: Vec<PartitionBatch>,
    /// A batch of `JobLog`s to begin the job's log with; when empty the hub writes "accepted" itself.
    #[prost(bytes = "bytes", tag = "3")]
    pub log: Bytes,
    /// The manifest, when the hub shall write it into the local store.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub manifest: Option<Bytes>,
}

/// The accepted job, new or from before.
#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub struct AcceptReply {
    /// The job's id.
    #[prost(string, tag = "1")]
    pub job_id: String,
    /// False when an earlier post had made it.
    #[prost(bool, tag = "2")]
    pub created: bool,
    /// Its tasks.
    #[prost(uint32, tag = "3")]
    pub resource_count: u32,
    /// URL of its manifest.
    #[prost(string, tag = "4")]
    pub manifest_key: String,
}

/// A batch to append.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// [`Topic`] as a number.
    #[prost(uint32, tag = "1")]
    pub topic: u32,
    /// Partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// Messages in it.
    #[prost(uint32, tag = "3")]
    pub count: u32,
    /// As `fetchbox_model::batch` packs them.
    #[prost(bytes = "bytes", tag = "4")]
    pub bytes: Bytes,
    /// For `jobs.retry`: the partition of `jobs.tasks` that the batch goes to when it is due.
    #[prost(uint32, optional, tag = "5")]
    pub target_partition: Option<u32>,
}

impl Entry {
    /// A batch for a topic other than `jobs.retry`.
    pub fn new(topic: Topic, partition: u32, batch: Batch) -> Self {
        Self { topic: topic as u32, partition, count: batch.count, bytes: batch.bytes, target_partition: None }
    }

    /// A batch that waits in a tier of `jobs.retry` and then goes to `target` of `jobs.tasks`.
    pub fn retry(tier: u32, target: u32, batch: Batch) -> Self {
        Self { target_partition: Some(target), ..Self::new(Topic::Retry, tier, batch) }
    }
}

/// The offset below which a group has done everything in a partition.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Commit {
    /// [`Topic`] as a number.
    #[prost(uint32, tag = "1")]
    pub topic: u32,
    /// Consumer group.
    #[prost(string, tag = "2")]
    pub group: String,
    /// Partition.
    #[prost(uint32, tag = "3")]
    pub partition: u32,
    /// Next offset the group needs.
    #[prost(uint64, tag = "4")]
    pub offset: u64,
}

/// Appends and commits in one durable, atomic group.
#[derive(Clone, PartialEq, Message)]
pub struct AppendRequest {
    /// The member that commits; not needed without commits.
    #[prost(string, tag = "1")]
    pub member: String,
    /// In the order they are to stand.
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<Entry>,
    /// Offsets done; those of partitions that the member does not own are ignored.
    #[prost(message, repeated, tag = "3")]
    pub commits: Vec<Commit>,
}

/// Where the entries stand.
#[derive(Clone, PartialEq, Message)]
pub struct AppendReply {
    /// Offset of the first message of each entry, in the order of the request.
    #[prost(uint64, repeated, tag = "1")]
    pub offsets: Vec<u64>,
}

/// A member of a group on one topic. Used to join, to leave and, with partitions, to give some up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct JoinRequest {
    /// [`Topic`] as a number.
    #[prost(uint32, tag = "1")]
    pub topic: u32,
    /// Consumer group.
    #[prost(string, tag = "2")]
    pub group: String,
    /// The member's own name, unique in the group.
    #[prost(string, tag = "3")]
    pub member: String,
    /// Partitions to give up (`release_partitions` only).
    #[prost(uint32, repeated, tag = "4")]
    pub partitions: Vec<u32>,
}

/// A partition that a member owns.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Owned {
    /// Partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// Next offset the group needs.
    #[prost(uint64, tag = "2")]
    pub committed: u64,
    /// It is to be given up: poll it no more, settle what is in flight, then call `release_partitions`.
    #[prost(bool, tag = "3")]
    pub revoking: bool,
}

/// What a member owns.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Assignment {
    /// Grows with every change of this member's partitions.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// Sorted by partition.
    #[prost(message, repeated, tag = "2")]
    pub partitions: Vec<Owned>,
}

/// Where a member wants to read on.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Position {
    /// Partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// The next offset it has not been given.
    #[prost(uint64, tag = "2")]
    pub next_offset: u64,
}

/// Asks for messages; waits until there are some, the assignment changes or the time is over.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PollRequest {
    /// [`Topic`] as a number.
    #[prost(uint32, tag = "1")]
    pub topic: u32,
    /// Consumer group.
    #[prost(string, tag = "2")]
    pub group: String,
    /// The member's name.
    #[prost(string, tag = "3")]
    pub member: String,
    /// The epoch of the assignment it knows.
    #[prost(uint64, tag = "4")]
    pub epoch: u64,
    /// Partitions it has room for.
    #[prost(message, repeated, tag = "5")]
    pub positions: Vec<Position>,
    /// Stop adding batches at this many messages.
    #[prost(uint32, tag = "6")]
    pub max_messages: u32,
    /// Stop adding batches at this many bytes.
    #[prost(uint32, tag = "7")]
    pub max_bytes: u32,
    /// How long to wait when there is nothing, in milliseconds.
    #[prost(uint32, tag = "8")]
    pub wait_ms: u32,
}

/// A batch as it was appended.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PolledBatch {
    /// Partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// Offset of its first message.
    #[prost(uint64, tag = "2")]
    pub base_offset: u64,
    /// Messages in it.
    #[prost(uint32, tag = "3")]
    pub count: u32,
    /// As `fetchbox_model::batch` packs them.
    #[prost(bytes = "bytes", tag = "4")]
    pub bytes: Bytes,
}

/// What there is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PollReply {
    /// Set when it is another than the one of the request's epoch.
    #[prost(message, optional, tag = "1")]
    pub assignment: Option<Assignment>,
    /// In order per partition, fair between partitions.
    #[prost(message, repeated, tag = "2")]
    pub batches: Vec<PolledBatch>,
}

/// The jobs to look up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SettledRequest {
    /// UUIDs.
    #[prost(string, repeated, tag = "1")]
    pub job_ids: Vec<String>,
    /// Names under which URLs may be remembered.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub reuse_keys: Vec<Bytes>,
}

/// What is remembered of a URL.
#[derive(Clone, PartialEq, Message)]
pub struct KnownUrl {
    /// As asked.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// With its age.
    #[prost(message, required, tag = "2")]
    pub remembered: Remembered,
}

/// The generation of a replayed resource; 0 for all others.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Generation {
    /// Resource index.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Its current generation.
    #[prost(uint32, tag = "2")]
    pub generation: u32,
}

/// What of a job is settled.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct JobSettled {
    /// As asked.
    #[prost(string, tag = "1")]
    pub job_id: String,
    /// The ledger has this job.
    #[prost(bool, tag = "2")]
    pub known: bool,
    /// Nothing is pending: settled or cancelled.
    #[prost(bool, tag = "3")]
    pub all: bool,
    /// Bit `index % 8` of byte `index / 8` is set for a settled resource; shorter than the job when the rest is pending.
    #[prost(bytes = "bytes", tag = "4")]
    pub bitmap: Bytes,
    /// Resources whose generation is not 0, by index.
    #[prost(message, repeated, tag = "5")]
    pub generations: Vec<Generation>,
    /// It was posted: a task that its producer published itself may not speak for it.
    #[prost(bool, tag = "6")]
    pub posted: bool,
}

impl JobSettled {
    /// Whether a task of this index and generation needs no more work.
    pub fn covers(&self, index: u32, generation: u32) -> bool {
        if self.all {
            return true;
        }
        generation < crate::job::generation(&self.generations, index)
            || self.bitmap.get(index as usize / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }
}

/// The answer to [`SettledRequest`].
#[derive(Clone, PartialEq, Message)]
pub struct SettledReply {
    /// In the order asked.
    #[prost(message, repeated, tag = "1")]
    pub jobs: Vec<JobSettled>,
    /// Those URLs of which something is remembered.
    #[prost(message, repeated, tag = "2")]
    pub known: Vec<KnownUrl>,
}

/// Cancels what is pending of a job.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
pub struct CancelRequest {
    /// UUID.
    #[prost(string, tag = "1")]
    pub job_id: String,
    /// When given, only a job of this tenant is found.
    #[prost(string, optional, tag = "2")]
    #[serde(default)]
    pub tenant: Option<String>,
}

/// A question to the ledger; parameters and answer are JSON.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct QueryRequest {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A JSON object, or nothing.
    #[prost(bytes = "bytes", tag = "2")]
    pub params: Bytes,
}

/// Bytes and nothing else.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BytesReply {
    /// The content.
    #[prost(bytes = "bytes", tag = "1")]
    pub body: Bytes,
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// Asks for what waits to be published to an external broker.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct OutboxPeekRequest {
    /// Only what stands above this sequence.
    #[prost(uint64, tag = "1")]
    pub after: u64,
    /// Stop at this many bytes.
    #[prost(uint32, tag = "2")]
    pub max_bytes: u32,
    /// How long to wait when there is nothing, in milliseconds.
    #[prost(uint32, tag = "3")]
    pub wait_ms: u32,
}

/// Entries of one commit that wait to be published.
#[derive(Clone, PartialEq, Message)]
pub struct OutboxItem {
    /// Ascending; `outbox_done` names the last one published.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// In order.
    #[prost(message, repeated, tag = "2")]
    pub entries: Vec<Entry>,
}

/// What waits to be published, in order.
#[derive(Clone, PartialEq, Message)]
pub struct OutboxPeekReply {
    /// In order.
    #[prost(message, repeated, tag = "1")]
    pub items: Vec<OutboxItem>,
}

/// Everything up to and with this sequence is published.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct OutboxDoneRequest {
    /// The last published sequence.
    #[prost(uint64, tag = "1")]
    pub up_to: u64,
}

/// Messages that were read from an external broker, to be projected or kept.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct FeedRequest {
    /// [`Topic`] as a number.
    #[prost(uint32, tag = "1")]
    pub topic: u32,
    /// Partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// Offset of the first of them.
    #[prost(uint64, tag = "3")]
    pub base_offset: u64,
    /// How many they are.
    #[prost(uint32, tag = "4")]
    pub count: u32,
    /// As `fetchbox_model::batch` packs them; not needed for `jobs.retry`, of which only the offset is kept.
    #[prost(bytes = "bytes", tag = "5")]
    pub bytes: Bytes,
}

/// A job that a new ledger does not know, from its manifest.
#[derive(Clone, PartialEq, Message)]
pub struct RebuildRequest {
    /// As it was accepted, without key and limit.
    #[prost(message, required, tag = "1")]
    pub accept: AcceptRequest,
    /// Objects that are found are read for their SHA-256.
    #[prost(bool, tag = "2")]
    pub digests: bool,
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Message, Serialize)]
pub struct RebuildReply {
    /// False for a job that the ledger knows: nothing was changed.
    #[prost(bool, tag = "1")]
    pub created: bool,
    /// Resources whose objects are in the store.
    #[prost(uint32, tag = "2")]
    pub stored: u32,
    /// Resources that will be fetched.
    #[prost(uint32, tag = "3")]
    pub pending: u32,
}

/// What the hub says without being asked.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PushFrame {
    /// This job was cancelled.
    #[prost(string, tag = "1")]
    pub cancelled_job_id: String,
}

/// A frame with an encoded message.
pub fn encode<M: Message>(id: u64, op: u8, message: &M) -> Bytes {
    let mut frame = BytesMut::with_capacity(9 + message.encoded_len());
    frame.put_u64_le(id);
    frame.put_u8(op);
    message.encode_raw(&mut frame);
    frame.freeze()
}

/// Request id, op and payload of a frame.
pub fn split(mut frame: Bytes) -> Option<(u64, u8, Bytes)> {
    let head = frame.get(..9)?;
    let id = u64::from_le_bytes(head[..8].try_into().ok()?);
    let op = head[8];
    bytes::Buf::advance(&mut frame, 9);
    Some((id, op, frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_split_into_what_they_were_made_of() {
        let frame = encode(7, Op::Query as u8, &QueryRequest { name: "job".into(), params: Bytes::from_static(b"{}") });
        let (id, op, payload) = split(frame.clone()).unwrap();
        assert_eq!((id, Op::from_id(op)), (7, Some(Op::Query)));
        assert_eq!(QueryRequest::decode(payload).unwrap().name, "job");
        assert_eq!(split(frame.slice(..8)), None);
    }

    #[test]
    fn every_error_survives_the_wire() {
        for error in [
            HubError::Unavailable("a".into()),
            HubError::refused("RATE_LIMITED", "slow down").after_ms(20).about("job"),
            HubError::Invalid("b".into()),
            HubError::Fatal("c".into()),
        ] {
            assert_eq!(HubError::from(Failure::from(error.clone())), error);
        }
    }

    #[test]
    fn roles_do_only_their_own_work() {
        assert!(!Role::Worker.may(Op::Accept) && !Role::Worker.may(Op::Cancel) && Role::Worker.may(Op::Append));
        assert!(!Role::Api.may(Op::Append) && !Role::Api.may(Op::Poll) && Role::Api.may(Op::Accept));
    }

    #[test]
    fn facts_come_from_the_apis_json() {
        let facts: JobFacts = serde_json::from_str(
            r#"{"job_id":"j","job_type":"t","created_ms":5,"resource_count":2,"priority":3,"crawl_id":null,"reservation":{"key":"k","body_sha256":"ab"},"rate_limit":null}"#,
        )
        .unwrap();
        assert_eq!((facts.priority.as_str(), facts.crawl_id.as_str(), facts.resource_count), ("3", "", 2));
        assert_eq!(facts.reservation.unwrap().key, "k");
    }

    #[test]
    fn settled_covers_bits_old_generations_and_whole_jobs() {
        let job = JobSettled {
            bitmap: Bytes::from_static(&[0b10]),
            generations: vec![Generation { index: 9, generation: 2 }],
            ..Default::default()
        };
        assert!(job.covers(1, 0) && !job.covers(0, 0) && !job.covers(8, 0));
        assert!(job.covers(9, 1) && !job.covers(9, 2));
        assert!(JobSettled { all: true, ..Default::default() }.covers(5, 0));
    }
}
