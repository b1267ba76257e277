//! An operator's hands on the streams: looking into a topic, and publishing a message by hand.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fetchbox_model::batch::{self, BatchBuilder};
use fetchbox_model::manifest::{PartitionBy, partition_of, partition_of_task};
use fetchbox_model::message::{DownloadTask, JobStatus};
use fetchbox_model::stream::Topic;
use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::core::{Core, read_failed};
use crate::error::HubError;
use crate::frame::{AppendRequest, Entry};
use crate::writer::Command;

/// Most messages of one answer.
const MOST: usize = 1000;

fn refused(message: impl Into<String>) -> HubError {
    HubError::refused("INVALID_PAYLOAD", message.into())
}

fn topic(name: &str) -> Result<Topic, HubError> {
    let names = || Topic::ALL.map(Topic::name).join(", ");
    Topic::from_name(name).ok_or_else(|| refused(format!("there is no topic {name}: it is one of {}", names())))
}

/// Which messages.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    topic: String,
    partition: u32,
    /// First offset wanted; the oldest that is there when it is older.
    from: u64,
    #[serde(default)]
    limit: Option<usize>,
}

/// Messages of a partition in base64, with their offsets, and where to go on.
pub fn look(core: &Core, look: &Look) -> Result<Value, HubError> {
    let topic = topic(&look.topic)?;
    if look.partition >= core.partitions(topic) {
        return Err(refused(format!("{} has {} partitions", topic.name(), core.partitions(topic))));
    }
    let from = look.from.max(core.start.get(topic, look.partition));
    let to = core.next.get(topic, look.partition);
    let limit = look.limit.unwrap_or(MOST).min(MOST);
    let (mut messages, mut next) = (Vec::new(), from);
    if from < to {
        'records: for item in crate::log::records(core, topic, look.partition, from, to).map_err(read_failed)? {
            let (mut offset, record) = item.map_err(read_failed)?;
            for part in record.parts {
                for (at, raw) in (offset..).zip(batch::unpack(&part.bytes).unwrap_or_default()) {
                    if messages.len() >= limit {
                        break 'records;
                    }
                    if at >= from && at < to {
                        messages.push(json!({"offset": at, "time_ms": record.time_ms, "body": STANDARD.encode(&raw)}));
                        next = at + 1;
                    }
                }
                offset += u64::from(part.count);
            }
        }
    }
    Ok(json!({"messages": messages, "next_offset": next, "end": to}))
}

/// What to publish.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    topic: String,
    /// Base64.
    messages: Vec<String>,
    #[serde(default)]
    by_host: bool,
}

/// Appends tasks, or statuses that close jobs; where each stands.
pub fn publish(core: &Core, order: &Publish) -> Result<Value, HubError> {
    let topic = topic(&order.topic)?;
    let mut placed = Vec::with_capacity(order.messages.len());
    for text in &order.messages {
        let raw = Bytes::from(STANDARD.decode(text).map_err(|error| refused(format!("a message is not base64: {error}")))?);
        let unreadable = |error: prost::DecodeError| refused(format!("a message of {} cannot be read: {error}", topic.name()));
        let partition = match topic {
            Topic::Tasks => {
                let task = DownloadTask::decode(raw.clone()).map_err(unreadable)?;
                let by = if order.by_host { PartitionBy::Host } else { PartitionBy::Job };
                partition_of_task(&task.job_id, &task.url, core.partitions(topic), by)
            }
            Topic::Status => partition_of(&JobStatus::decode(raw.clone()).map_err(unreadable)?.job_id, core.partitions(topic)),
            _ => return Err(refused("only jobs.tasks and jobs.status are published to by hand")),
        };
        placed.push((partition, raw));
    }
    let entries = placed.iter().filter_map(|(partition, raw)| {
        let mut builder = BatchBuilder::default();
        builder.push_encoded(raw);
        builder.finish().map(|batch| Entry::new(topic, *partition, batch))
    });
    let request = AppendRequest { entries: entries.collect(), ..Default::default() };
    let reply = core.ask(|reply| Command::Append { request, reply })?;
    let told = placed.iter().zip(reply.offsets).map(|((partition, _), offset)| json!({"partition": partition, "offset": offset}));
    Ok(json!({"published": told.collect::<Vec<_>>()}))
}
