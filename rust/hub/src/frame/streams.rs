//! Messages about streams: appending, polling, groups, and what travels to and from an external broker.

use bytes::Bytes;
use fetchbox_model::batch::Batch;
use fetchbox_model::stream::Topic;
use prost::Message;

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
