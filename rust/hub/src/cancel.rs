//! Cancelling a job, and finding its tasks in the log.

use std::collections::HashMap;

use bytes::Bytes;
use fetchbox_model::batch;
use fetchbox_model::message::{ResourceOutcome, ResourceState};
use fetchbox_model::stream::Topic;
use prost::Message;

use crate::core::Core;
use crate::core::read_failed;
use crate::db::DbError;
use crate::error::HubError;
use crate::frame::CancelRequest;
use crate::job::{JobRecord, parse_id};
use crate::log;
use crate::writer::Writer;

/// The part of a task that tells people which one it is.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs)]
pub struct TaskPart {
    #[prost(string, tag = "1")]
    pub job_id: String,
    #[prost(string, tag = "3")]
    pub resource_id: String,
    #[prost(string, tag = "4")]
    pub url: String,
    #[prost(uint32, tag = "16")]
    pub index: u32,
}

/// Tasks of a job by index, as far as the log still has them. `staged` gives batches that are not in the database yet.
pub fn tasks(
    core: &Core,
    job: &JobRecord,
    staged: impl Fn(u32) -> Vec<(u64, crate::record::Part)>,
) -> Result<HashMap<u32, TaskPart>, DbError> {
    let mut found = HashMap::new();
    for span in &job.spans {
        let end = span.offset + u64::from(span.count);
        let mut batches = log::read(core, Topic::Tasks, span.partition, span.offset, end)?;
        batches.extend(staged(span.partition).into_iter().filter(|(base, _)| *base >= span.offset && *base < end));
        for (_, part) in batches {
            let messages = batch::unpack(&part.bytes).map_err(|error| DbError(format!("a batch of tasks cannot be read: {error}")))?;
            for message in messages {
                if let Ok(task) = TaskPart::decode(message)
                    && task.job_id == job.facts.job_id
                {
                    found.insert(task.index, task);
                }
            }
        }
    }
    Ok(found)
}

impl Writer {
    /// Marks everything pending as cancelled. A settled job stays as it is.
    pub(crate) fn cancel(&mut self, request: &CancelRequest) -> Result<(), HubError> {
        let id = parse_id(&request.job_id).ok_or_else(|| HubError::not_found("the job"))?;
        let now_ms = self.stage.now_ms;
        let core = std::sync::Arc::clone(&self.core);
        let record = match self.job(&id)? {
            Some(job) if request.tenant.as_ref().is_none_or(|tenant| *tenant == job.record.facts.tenant) => job.record.clone(),
            _ => return Err(HubError::not_found("the job")),
        };
        if record.is_over() {
            return Ok(());
        }
        core.check_space()?;
        let mut tasks = tasks(&core, &record, |partition| self.stage.appended(Topic::Tasks as u8, partition)).map_err(read_failed)?;
        let mut totals = self.totals;
        let Some(job) = self.job(&id)? else { return Ok(()) };
        for index in record.pending() {
            job.record.settle(index, ResourceState::Cancelled, 0);
            totals.count(ResourceState::Cancelled, 0);
            let task = tasks.remove(&index).unwrap_or_else(|| TaskPart { resource_id: index.to_string(), ..Default::default() });
            let outcome = ResourceOutcome {
                resource_id: task.resource_id,
                resource_index: index,
                generation: record.generation(index),
                state: ResourceState::Cancelled as i32,
                finished_at_ms: now_ms,
                context: [("url".to_owned(), task.url)].into_iter().filter(|(_, url)| !url.is_empty()).collect(),
                ..Default::default()
            };
            job.outcomes.push(Bytes::from(outcome.encode_to_vec()));
        }
        job.changed = true;
        let cancelled = job.record.clone();
        self.totals = totals;
        self.publish_status(Topic::Status, &cancelled);
        if record.counted_by_id {
            self.close_direct(&id)?;
        } else {
            self.settle(&id);
        }
        self.stage.cancelled.push(record.facts.job_id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fetchbox_model::message::DownloadTask;

    #[test]
    fn the_part_reads_what_the_whole_task_wrote() {
        let task = DownloadTask {
            job_id: "j".into(),
            resource_id: "r".into(),
            url: "http://h/".into(),
            resource_index: 70_000,
            attempt: 4,
            ..Default::default()
        };
        let part = TaskPart::decode(&task.encode_to_vec()[..]).unwrap();
        assert_eq!((part.job_id.as_str(), part.resource_id.as_str(), part.url.as_str(), part.index), ("j", "r", "http://h/", 70_000));
    }
}
