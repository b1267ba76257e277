//! What is read back from an external broker: outcomes for the projection, lines for the logs, and how far it was read. All of a message's effects and
//! the offset behind it are in one commit, so that a feed that begins again does nothing twice.

use fetchbox_failpoint::fail_point;
use fetchbox_model::batch::{self, BatchBuilder};
use fetchbox_model::stream::Topic;
use prost::Message;
use serde_json::{Value, json};

use crate::config::Broker;
use crate::core::Core;
use crate::error::HubError;
use crate::frame::FeedRequest;
use crate::job::{JobId, parse_id};
use crate::outcome::StatusPart;
use crate::project::topic_of;
use crate::record::Part;
use crate::upkeep::MOVER;
use crate::writer::Writer;

/// The group under which the place in `jobs.status` is kept.
pub const PROJECTION: &str = "projection";
/// What the hub says when a job is settled; with it the job's log ends.
pub const SETTLED: &str = "settled";

/// The part of a log's line that the hub looks at.
#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(string, tag = "1")]
    job_id: String,
    #[prost(string, tag = "2")]
    resource_id: String,
    #[prost(string, tag = "4")]
    message: String,
}

impl Line {
    /// The job that this line says to be settled. Workers' lines speak of a resource.
    fn settles(&self) -> Option<JobId> {
        (self.message == SETTLED && self.resource_id.is_empty()).then(|| parse_id(&self.job_id)).flatten()
    }
}

/// The group that a topic's place is kept under; `None` for topics that are not read back.
fn group(topic: Topic) -> Option<&'static str> {
    match topic {
        Topic::Status => Some(PROJECTION),
        Topic::Retry => Some(MOVER),
        // The mirror of the logs ends where it was read to.
        Topic::Tasks | Topic::Logs | Topic::Dlq | Topic::Events => None,
    }
}

/// Where to read on, by topic and partition.
pub fn fed(core: &Core) -> Value {
    let of = |topic: Topic| -> Vec<u64> {
        let one = |partition| match group(topic) {
            Some(group) => core.committed(topic, group, partition),
            None => core.next.get(topic, partition),
        };
        (0..core.partitions(topic)).map(one).collect()
    };
    let topics = [Topic::Status, Topic::Logs, Topic::Retry].map(|topic| (topic.name().to_owned(), json!(of(topic))));
    Value::Object(topics.into_iter().collect())
}

impl Writer {
    /// Takes over what was read. A part of it that was taken before is passed over; messages that cannot be read are counted and passed over too.
    pub(crate) fn feed(&mut self, request: FeedRequest) -> Result<(), HubError> {
        let FeedRequest { topic, partition, base_offset, count, bytes } = request;
        let invalid = |what: &str| Err(HubError::Invalid(what.to_owned()));
        let Some(topic) = topic_of(topic) else { return invalid("there is no such topic") };
        if self.core.config.broker != Broker::External {
            return invalid("this hub has the streams itself: nothing is read back into it");
        }
        if partition >= self.core.partitions(topic) {
            return invalid("the topic has no such partition");
        }
        self.core.check_space()?;
        let end = base_offset + u64::from(count);
        fail_point!("hub::feed::before");
        match topic {
            Topic::Status => {
                let done = self.core.committed(topic, PROJECTION, partition);
                for raw in unpack(&bytes)?.into_iter().skip(done.saturating_sub(base_offset) as usize) {
                    match StatusPart::decode(raw) {
                        Ok(status) => self.project(status)?,
                        Err(_) => self.core.metrics.unknown.add(1),
                    }
                }
                self.set_committed(topic, PROJECTION, partition, end);
            }
            Topic::Logs => self.mirror(partition, base_offset, unpack(&bytes)?)?,
            Topic::Retry => {
                let before = self.core.committed(topic, MOVER, partition).max(base_offset);
                self.core.metrics.moved.add(end.saturating_sub(before));
                self.set_committed(topic, MOVER, partition, end);
            }
            Topic::Tasks | Topic::Dlq | Topic::Events => return invalid("this topic is not read back"),
        }
        fail_point!("hub::feed::after");
        Ok(())
    }

    /// Keeps lines at the offsets that they have in the broker, so that a job's log reads the same here and there.
    fn mirror(&mut self, partition: u32, base_offset: u64, lines: Vec<bytes::Bytes>) -> Result<(), HubError> {
        let next = self.next_offset(Topic::Logs, partition);
        let known = next.saturating_sub(base_offset) as usize;
        let first = base_offset.max(next);
        let mut builder = BatchBuilder::default();
        let mut settled = Vec::new();
        for (offset, raw) in (first..).zip(lines.into_iter().skip(known)) {
            builder.push_encoded(&raw);
            settled.extend(Line::decode(raw).ok().and_then(|line| line.settles()).map(|id| (id, offset + 1)));
        }
        let Some(batch) = builder.finish() else { return Ok(()) };
        self.skip_to(Topic::Logs, partition, first);
        self.append(Topic::Logs, partition, Part { count: batch.count, target: None, bytes: batch.bytes });
        for (id, end) in settled {
            if let Some(job) = self.job(&id)?
                && job.record.finished_ms != 0
                && job.record.log_end < end
            {
                job.record.log_end = end;
                job.changed = true;
            }
        }
        Ok(())
    }
}

fn unpack(bytes: &[u8]) -> Result<Vec<bytes::Bytes>, HubError> {
    batch::unpack(bytes).map_err(|error| HubError::Invalid(format!("the batch cannot be read: {error}")))
}
