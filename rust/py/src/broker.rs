//! Messages on their way between the hub and a broker that is not the hub's own: what is opaque elsewhere is a message of bytes here.

use bytes::Bytes;
use fetchbox_hub::{FeedRequest, HubError, OutboxItem};
use fetchbox_model::batch::{self, BatchBuilder};
use fetchbox_model::manifest::{PartitionBy, partition_of_task};
use fetchbox_model::stream::Topic;
use prost::Message;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::error::CoreError;

/// Messages for a partition of a topic.
#[derive(Debug)]
pub struct Posted {
    topic: Topic,
    partition: u32,
    messages: Vec<Bytes>,
}

impl Posted {
    /// Unpacks a batch.
    pub fn unpack(topic: Topic, partition: u32, bytes: &[u8]) -> Result<Self, HubError> {
        let broken = |error: batch::BatchError| HubError::Invalid(format!("a batch cannot be read: {error}"));
        Ok(Self { topic, partition, messages: batch::unpack(bytes).map_err(broken)? })
    }

    /// Topic, partition and messages, for Python.
    pub fn object<'py>(&self, py: Python<'py>) -> PyResult<(&'static str, u32, Bound<'py, PyList>)> {
        let messages = PyList::new(py, self.messages.iter().map(|message| PyBytes::new(py, message)))?;
        Ok((self.topic.name(), self.partition, messages))
    }
}

/// The messages of an item of the outbox, with its sequence.
pub fn outbox_item(item: OutboxItem) -> Result<(u64, Vec<Posted>), HubError> {
    let posted = |entry: fetchbox_hub::Entry| {
        let topic = u8::try_from(entry.topic).ok().and_then(Topic::from_id);
        let topic = topic.ok_or_else(|| HubError::Invalid(format!("there is no topic {}", entry.topic)))?;
        Posted::unpack(topic, entry.partition, &entry.bytes)
    };
    Ok((item.sequence, item.entries.into_iter().map(posted).collect::<Result<_, _>>()?))
}

/// What was read of a topic, for the hub.
pub fn feed(topic: &str, partition: u32, base_offset: u64, messages: &[Bound<'_, PyBytes>]) -> Result<FeedRequest, CoreError> {
    let topic = Topic::from_name(topic).ok_or_else(|| CoreError::new("config", "topic", format!("there is no topic {topic}")))?;
    // Of retries the hub keeps only how far they were read.
    let bytes = if topic == Topic::Retry { Bytes::new() } else { pack(messages) };
    Ok(FeedRequest { topic: topic as u32, partition, base_offset, count: messages.len() as u32, bytes })
}

/// A batch of these messages, not compressed: it goes no further than this machine.
pub fn pack(messages: &[Bound<'_, PyBytes>]) -> Bytes {
    let mut builder = BatchBuilder::default();
    for message in messages {
        builder.push_encoded(message.as_bytes());
    }
    builder.finish_stored().map(|batch| batch.bytes).unwrap_or_default()
}

/// The part of a task that says where it goes.
#[derive(Clone, PartialEq, Message)]
struct Address {
    #[prost(string, tag = "1")]
    job_id: String,
    #[prost(string, tag = "4")]
    url: String,
}

/// The partition of each task out of so many: by its job, or by its URL's host.
#[pyfunction]
pub fn partition_tasks(tasks: Vec<Bound<'_, PyBytes>>, partitions: u32, by_host: bool) -> Vec<u32> {
    let place = |task: &Bound<'_, PyBytes>| {
        let Ok(Address { job_id, url }) = Address::decode(task.as_bytes()) else { return 0 };
        partition_of_task(&job_id, &url, partitions, if by_host { PartitionBy::Host } else { PartitionBy::Job })
    };
    tasks.iter().map(place).collect()
}
