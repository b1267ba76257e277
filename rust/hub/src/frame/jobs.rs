//! Messages about jobs: reserving a key, accepting, asking what is settled, cancelling, making one again.

use bytes::Bytes;
use fetchbox_model::reuse::Remembered;
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize};

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

#[cfg(test)]
mod tests {
    use super::*;

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
