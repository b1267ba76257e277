//! Manifests made into tasks, packed by partition.

use std::collections::{BTreeMap, HashMap};

use bytes::{BufMut, Bytes};
use prost::Message;
use serde::de::DeserializeSeed;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::attributes::AttributesShape;
use super::fault::Faults;
use super::resource::Resources;
use super::shape::{As, Pairs};
use super::{Attributes, Fault, Limits, Manifest, Priority, Resource, check, check_unique, read_document};
use crate::batch::BatchBuilder;
use crate::message::{DownloadTask, HttpHeader, ProxyHint, StorageHint, TaskAttributes};

/// A batch is closed at this size, before compression, so that readers take no more than that at once.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// What tasks share, and how much a manifest may hold. Null and absent are the same everywhere.
#[derive(Debug, Clone, Deserialize)]
pub struct CompileContext {
    /// Id of the job.
    pub job_id: String,
    /// Type of the job.
    pub job_type: String,
    /// Whose job it is.
    #[serde(default, deserialize_with = "or_default")]
    pub tenant: String,
    /// URL of the stored manifest.
    #[serde(default, deserialize_with = "or_default")]
    pub manifest_key: String,
    /// W3C trace id.
    #[serde(default, deserialize_with = "or_default")]
    pub trace_id: String,
    /// W3C traceparent.
    #[serde(default, deserialize_with = "or_default")]
    pub traceparent: String,
    /// Partitions of jobs.tasks.
    #[serde(default = "default_partitions")]
    pub partitions: u32,
    /// What chooses a task's partition.
    #[serde(default, deserialize_with = "or_default")]
    pub partition_by: PartitionBy,
    /// See [`Limits`].
    #[serde(flatten)]
    pub limits: Limits,
    /// Proxy pools of the job type.
    #[serde(default, deserialize_with = "or_default")]
    pub proxy: ProxyContext,
    /// Places of the job type.
    #[serde(default, deserialize_with = "or_default")]
    pub storage: StorageContext,
    /// Headers of the job type; a resource's own come first. Names in any case.
    #[serde(default, deserialize_with = "or_default")]
    pub default_headers: BTreeMap<String, String>,
    /// The manifest's attributes, for [`compile_tasks`], which does not see the manifest.
    #[serde(default)]
    pub attributes: Option<Box<RawValue>>,
}

/// What chooses a task's partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PartitionBy {
    /// The job: all its tasks lie in one partition.
    #[default]
    Job,
    /// The URL's host: one worker sees all of a host.
    Host,
}

/// Proxy pools by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ProxyContext {
    /// The pool to begin with.
    #[serde(deserialize_with = "or_default")]
    pub primary: String,
    /// The pools to go on with.
    #[serde(deserialize_with = "or_default")]
    pub fallbacks: Vec<String>,
}

/// Where objects go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StorageContext {
    /// Bucket, when it is not the configured one.
    #[serde(deserialize_with = "or_default")]
    pub bucket: String,
    /// Goes before every key.
    #[serde(deserialize_with = "or_default")]
    pub key_prefix: String,
    /// The object's key for a job of one resource; jobs of several pass it over.
    #[serde(deserialize_with = "or_default")]
    pub key: String,
    /// Kept on every object.
    #[serde(deserialize_with = "or_default")]
    pub metadata: BTreeMap<String, String>,
}

fn default_partitions() -> u32 {
    64
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Tasks ready to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// Tasks in all batches.
    pub resource_count: u32,
    /// By partition in rising order; a partition has several when its tasks are large.
    pub batches: Vec<PartitionBatch>,
    /// What the manifest says of its job.
    pub facts: Facts,
}

/// One batch of `model::batch` for one partition of jobs.tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionBatch {
    /// Partition.
    pub partition: u32,
    /// Tasks in it.
    pub count: u32,
    /// As [`crate::batch`] packs them.
    pub bytes: Bytes,
}

/// What the ledger keeps of a manifest beside its tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Tasks made.
    pub resource_count: u32,
    /// Different hosts among them.
    pub hosts: u32,
    /// The tenant the manifest claims.
    pub tenant: Option<String>,
    /// Of the attributes.
    pub crawl_id: Option<String>,
    /// Of the attributes.
    pub priority: Option<Priority>,
    /// Of the attributes.
    pub callback_url: Option<String>,
    /// Of the attributes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub callback_events: Vec<String>,
    /// Of the attributes, in Unix milliseconds.
    pub deadline_ms: Option<u64>,
}

/// The partition of a task that comes alone, as [`compile`] would choose it.
pub fn partition_of_task(job_id: &str, url: &str, partitions: u32, by: PartitionBy) -> u32 {
    let parsed = if by == PartitionBy::Host { url::Url::parse(url).ok() } else { None };
    partition_of(parsed.as_ref().and_then(url::Url::host_str).unwrap_or(job_id), partitions)
}

/// The partition of a key: the first eight bytes of its SHA-256, big-endian, modulo the partitions. The same for ever and in every process.
pub fn partition_of(key: &str, partitions: u32) -> u32 {
    partition_at(head_of(key), partitions)
}

/// Those eight bytes, for whoever asks for a key more than once.
pub fn head_of(key: &str) -> u64 {
    Sha256::digest(key.as_bytes()).iter().take(8).fold(0u64, |head, byte| head << 8 | u64::from(*byte))
}

/// The partition that follows from [`head_of`].
pub fn partition_at(head: u64, partitions: u32) -> u32 {
    (head % u64::from(partitions.max(1))) as u32
}

/// Makes a task of every resource.
pub fn compile(manifest: &Manifest<'_>, context: &CompileContext) -> Compiled {
    pack(&manifest.resources, &manifest.attributes, context)
}

/// Checks the tasks a handler built, a JSON array, and packs them. Handlers may also name `bucket`, `key_prefix`, `metadata` and `proxy` (a pool, or
/// `{primary, fallbacks}`), may send null for what is absent, and may build none at all.
///
/// Errors: every fault, with pointers into the array.
pub fn compile_tasks(tasks: &[u8], context: &CompileContext) -> Result<Compiled, Vec<Fault>> {
    let mut faults = Faults::new(&context.limits, true);
    let list = read_document(tasks, &mut faults, |faults, de| {
        As(Resources { faults, for_handler: true, job_id: &context.job_id }).deserialize(de)
    });
    let list = list.flatten().unwrap_or_default();
    check_unique(&list, &mut faults);
    // The manifest was checked before the handler saw it, so attributes that do not read now have nothing to say.
    let mut unheard = Faults::new(&context.limits, true);
    let attributes = context.attributes.as_deref().map_or("null", RawValue::get).as_bytes();
    let attributes = read_document(attributes, &mut unheard, |faults, de| As(AttributesShape(faults)).deserialize(de)).unwrap_or_default();
    let faults = faults.into_list();
    if faults.is_empty() { Ok(pack(&list, &attributes, context)) } else { Err(faults) }
}

fn pack(resources: &[Resource<'_>], attributes: &Attributes<'_>, context: &CompileContext) -> Compiled {
    let mut hosts: HashMap<&str, u32> = HashMap::new();
    let mut open: BTreeMap<u32, BatchBuilder> = BTreeMap::new();
    let mut batches = Vec::new();
    let mut close = |partition: u32, builder: BatchBuilder| {
        batches.extend(builder.finish().map(|batch| PartitionBatch { partition, count: batch.count, bytes: batch.bytes }));
    };
    let of_job = partition_of(&context.job_id, context.partitions);
    let mut tasks = TaskMaker::new(resources.len(), attributes, context);
    for (index, resource) in resources.iter().enumerate() {
        let by_host = context.partition_by == PartitionBy::Host;
        let of_host = || if by_host { partition_of(&resource.host, context.partitions) } else { of_job };
        let partition = *hosts.entry(&*resource.host).or_insert_with(of_host);
        let builder = open.entry(partition).or_default();
        tasks.push(index, resource, builder);
        if builder.raw_len() >= MAX_BATCH_BYTES {
            close(partition, std::mem::take(builder));
        }
    }
    for (partition, builder) in open {
        close(partition, builder);
    }
    batches.sort_by_key(|batch| batch.partition);
    let facts = Facts {
        resource_count: resources.len() as u32,
        hosts: hosts.len() as u32,
        tenant: attributes.tenant.as_deref().map(str::to_owned),
        crawl_id: attributes.crawl_id.as_deref().map(str::to_owned),
        priority: attributes.priority.clone(),
        callback_url: attributes.callback_url.as_deref().map(str::to_owned),
        callback_events: attributes.callback_events.iter().map(|event| event.clone().into_owned()).collect(),
        deadline_ms: attributes.deadline_ms,
    };
    Compiled { resource_count: resources.len() as u32, batches, facts }
}

/// Fills one task again and again, so that most strings keep their memory. What all tasks share is encoded once and stands before the rest of each:
/// that is how protobuf concatenates messages, and a long stretch that repeats is compressed and unpacked fastest.
struct TaskMaker {
    shared: Vec<u8>,
    task: DownloadTask,
    default_headers: Vec<HttpHeader>,
    proxy: Option<ProxyHint>,
    storage: StorageHint,
}

impl TaskMaker {
    fn new(total: usize, attributes: &Attributes<'_>, context: &CompileContext) -> Self {
        let shared = DownloadTask {
            job_id: context.job_id.clone(),
            job_type: context.job_type.clone(),
            manifest_key: context.manifest_key.clone(),
            tenant: context.tenant.clone(),
            trace_id: context.trace_id.clone(),
            traceparent: context.traceparent.clone(),
            resources_total: total as u32,
            deadline_ms: attributes.deadline_ms.unwrap_or(0),
            ..DownloadTask::default()
        };
        let storage = StorageHint {
            bucket: context.storage.bucket.clone(),
            key_prefix: context.storage.key_prefix.clone(),
            metadata: context.storage.metadata.clone(),
            // On several resources one key would make them overwrite each other.
            key: if total == 1 { context.storage.key.clone() } else { String::new() },
        };
        let default_headers = context.default_headers.iter();
        let default_headers =
            default_headers.map(|(name, value)| HttpHeader { name: name.to_ascii_lowercase(), value: value.clone() }).collect();
        Self {
            shared: shared.encode_to_vec(),
            task: DownloadTask::default(),
            default_headers,
            proxy: proxy_hint(&context.proxy.primary, &context.proxy.fallbacks),
            storage,
        }
    }

    fn push(&mut self, index: usize, resource: &Resource<'_>, builder: &mut BatchBuilder) {
        let task = &mut self.task;
        task.resource_index = index as u32;
        replace(&mut task.resource_id, &resource.id);
        replace(&mut task.url, &resource.url);
        task.headers.clear();
        task.headers.extend(resource.headers.iter().map(|(name, value)| HttpHeader { name: name.to_string(), value: value.to_string() }));
        let missing = self.default_headers.iter().filter(|header| !resource.headers.iter().any(|(name, _)| *name == header.name));
        task.headers.extend(missing.cloned());
        task.attributes = task_attributes(&resource.tags);
        let placement = resource.placement.as_deref();
        task.proxy_hint = match placement.and_then(|placement| placement.proxy.as_deref().map(|primary| (primary, &placement.fallbacks))) {
            Some((primary, fallbacks)) => proxy_hint(primary, fallbacks),
            None => self.proxy.clone(),
        };
        let mut storage = self.storage.clone();
        if let Some(key) = &resource.key {
            replace(&mut storage.key, key);
        }
        if let Some(placement) = placement {
            if let Some(bucket) = &placement.bucket {
                replace(&mut storage.bucket, bucket);
            }
            if let Some(prefix) = &placement.key_prefix {
                replace(&mut storage.key_prefix, prefix);
            }
            storage.metadata.extend(owned(&placement.metadata));
        }
        task.storage_hint = (storage != StorageHint::default()).then_some(storage);
        builder.push_with(self.shared.len() + task.encoded_len(), |raw| {
            raw.put_slice(&self.shared);
            task.encode_raw(raw);
        });
    }
}

fn replace(text: &mut String, by: &str) {
    text.clear();
    text.push_str(by);
}

fn owned(pairs: &Pairs<'_>) -> impl Iterator<Item = (String, String)> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string()))
}

fn proxy_hint(primary: &str, fallbacks: &[impl ToString]) -> Option<ProxyHint> {
    let fallbacks: Vec<String> = fallbacks.iter().map(ToString::to_string).collect();
    (!primary.is_empty() || !fallbacks.is_empty()).then(|| ProxyHint { primary_pool: primary.to_owned(), fallbacks })
}

fn task_attributes(tags: &Pairs<'_>) -> Option<TaskAttributes> {
    if tags.is_empty() {
        return None;
    }
    let tag = |wanted: &str| tags.iter().find(|(name, _)| name == wanted).map(|(_, value)| &**value);
    Some(TaskAttributes {
        checksum_hint: tag("checksum_hint").and_then(|value| check::checksum(value).ok()).unwrap_or_default(),
        mime_hint: tag("content_type").unwrap_or_default().to_owned(),
        tags: owned(tags).collect(),
        extra: Bytes::new(),
    })
}
