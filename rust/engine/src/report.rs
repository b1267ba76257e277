//! Turns finished tasks into what a worker publishes: logs, dead letters, retries and status, in that order.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};
use fetchbox_model::batch::BatchBuilder;
use fetchbox_model::manifest::partition_of;
use fetchbox_model::message::{DeadLetterTask, DownloadTask, JobLog, JobState, JobStatus, LogLevel, ResourceOutcome, ResourceState};
use fetchbox_model::stream::{Topic, retry_tier};
use prost::encoding::{WireType, encode_key, encode_varint, key_len};
use prost::{Message, length_delimiter_len};

use crate::window::{Malformed, locate};
use crate::{FailedAttempt, Finished, FinishedKind};

/// One batch to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where to.
    pub topic: Topic,
    /// Partition of it.
    pub partition: u32,
    /// Messages in the batch.
    pub count: u32,
    /// The batch.
    pub bytes: Bytes,
    /// For `jobs.retry`: the partition of `jobs.tasks` to which the batch goes when it is due.
    pub target: Option<u32>,
}

/// What a report is made with.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Wall clock, milliseconds since the epoch.
    pub now_ms: u64,
    /// The engine's own count of it, see [`crate::Engine::steady_ms`]: what it waits for is measured with this.
    pub steady_ms: u64,
    /// Whether stored resources are logged as well, at debug level.
    pub log_stored: bool,
}

#[derive(Default)]
struct Batches(BTreeMap<(Topic, u32, Option<u32>), BatchBuilder>);

impl Batches {
    fn at(&mut self, topic: Topic, partition: u32, target: Option<u32>) -> &mut BatchBuilder {
        self.0.entry((topic, partition, target)).or_default()
    }

    fn of(&mut self, topic: Topic, job_id: &str) -> &mut BatchBuilder {
        self.at(topic, partition_of(job_id, topic.default_partitions()), None)
    }

    /// Logs and dead letters come before the status that settles their resources: what is counted has been told.
    fn finish(self) -> Vec<Entry> {
        let order = |topic: Topic| match topic {
            Topic::Logs => 0,
            Topic::Dlq => 1,
            Topic::Retry => 2,
            _ => 3,
        };
        let mut entries: Vec<Entry> = self
            .0
            .into_iter()
            .filter_map(|((topic, partition, target), builder)| {
                builder.finish().map(|batch| Entry { topic, partition, count: batch.count, bytes: batch.bytes, target })
            })
            .collect();
        entries.sort_by_key(|entry| order(entry.topic));
        entries
    }
}

/// The batches for what the engine finished and for what could not be read. Dropped tasks leave no trace: they are delivered again.
pub fn build(finished: &[Finished], malformed: &[Malformed], context: Context) -> Vec<Entry> {
    let mut batches = Batches::default();
    let mut statuses: BTreeMap<&str, Status<'_>> = BTreeMap::new();
    for item in finished {
        for attempt in &item.attempts {
            batches.of(Topic::Logs, &item.task.job_id).push(&attempt_log(&item.task, attempt));
        }
        match &item.result {
            FinishedKind::Outcome(outcome) => {
                if let Some(log) = outcome_log(&item.task, outcome, context) {
                    batches.of(Topic::Logs, &item.task.job_id).push(&log);
                }
                if outcome.state() == ResourceState::Failed {
                    batches.of(Topic::Dlq, &item.task.job_id).push(&dead_letter(item, outcome, context));
                }
                let status = statuses.entry(&item.task.job_id).or_insert_with(|| Status::of(&item.task, context));
                status.outcomes.push((outcome, outcome.encoded_len()));
            }
            FinishedKind::Later { not_before_ms, code, message } => {
                let delay_ms = not_before_ms.saturating_sub(context.steady_ms);
                let task = DownloadTask { attempt: attempts_made(item), not_before_ms: *not_before_ms, ..(*item.task).clone() };
                // What was only handed on has nothing to tell.
                if !code.is_empty() {
                    batches.of(Topic::Logs, &task.job_id).push(&later_log(&task, code, message, delay_ms, context));
                }
                batches.at(Topic::Retry, retry_tier(delay_ms), Some(locate(item.token).0)).push(&task);
            }
            FinishedKind::Dropped => {}
        }
    }
    for bad in malformed {
        batches.at(Topic::Dlq, locate(bad.token).0 % Topic::Dlq.default_partitions(), None).push(&malformed_letter(bad, context));
    }
    for (job_id, status) in statuses {
        batches.of(Topic::Status, job_id).push_with(status.encoded_len(), |raw| status.encode(raw));
    }
    batches.finish()
}

/// Attempts made in all, of earlier deliveries and of this one.
fn attempts_made(item: &Finished) -> u32 {
    item.task.attempt + item.attempts.len() as u32
}

/// The number of `JobStatus.outcomes`.
const OUTCOMES: u32 = 19;

/// A `JobStatus` whose outcomes are still where the engine left them: copying them first would cost as much as encoding them.
struct Status<'a> {
    head: JobStatus,
    /// With their lengths, which are asked for twice.
    outcomes: Vec<(&'a ResourceOutcome, usize)>,
}

impl Status<'_> {
    fn of(task: &DownloadTask, context: Context) -> Self {
        let head = JobStatus {
            job_id: task.job_id.clone(),
            job_type: task.job_type.clone(),
            state: JobState::InProgress.into(),
            resources_total: task.resources_total,
            manifest_key: task.manifest_key.clone(),
            tenant: task.tenant.clone(),
            timestamp_ms: context.now_ms,
            ..Default::default()
        };
        Self { head, outcomes: Vec::new() }
    }

    fn encoded_len(&self) -> usize {
        self.head.encoded_len() + self.outcomes.iter().map(|(_, len)| key_len(OUTCOMES) + length_delimiter_len(*len) + len).sum::<usize>()
    }

    fn encode(&self, bytes: &mut impl BufMut) {
        // A field may be split off and appended: that is how protobuf concatenates messages.
        self.head.encode_raw(bytes);
        for (outcome, len) in &self.outcomes {
            encode_key(OUTCOMES, WireType::LengthDelimited, bytes);
            encode_varint(*len as u64, bytes);
            outcome.encode_raw(bytes);
        }
    }
}

fn log(task: &DownloadTask, level: LogLevel, message: String, fields: BTreeMap<String, String>, timestamp_ms: u64) -> JobLog {
    JobLog {
        job_id: task.job_id.clone(),
        resource_id: task.resource_id.clone(),
        level: level.into(),
        message,
        fields,
        timestamp_ms,
        trace_id: task.trace_id.clone(),
    }
}

fn attempt_log(task: &DownloadTask, attempt: &FailedAttempt) -> JobLog {
    let mut fields = BTreeMap::from([("code".to_owned(), attempt.code.to_string()), ("attempt".to_owned(), attempt.attempt.to_string())]);
    if attempt.http_status != 0 {
        fields.insert("http_status".to_owned(), attempt.http_status.to_string());
    }
    log(task, LogLevel::Warn, format!("attempt {} failed: {}", attempt.attempt, attempt.message), fields, attempt.at_ms)
}

fn outcome_log(task: &DownloadTask, outcome: &ResourceOutcome, context: Context) -> Option<JobLog> {
    let level = match outcome.state() {
        ResourceState::Failed => LogLevel::Error,
        ResourceState::Filtered => LogLevel::Info,
        _ if context.log_stored => LogLevel::Debug,
        _ => return None,
    };
    let state = outcome.state().as_str_name().trim_start_matches("RESOURCE_STATE_").to_ascii_lowercase();
    let mut fields = BTreeMap::from([("state".to_owned(), state.clone()), ("attempts".to_owned(), outcome.attempts.to_string())]);
    let message = if outcome.code.is_empty() {
        fields.insert("size".to_owned(), outcome.size.to_string());
        state
    } else {
        fields.insert("code".to_owned(), outcome.code.clone());
        format!("{state}: {}", outcome.message)
    };
    Some(log(task, level, message, fields, outcome.finished_at_ms))
}

fn later_log(task: &DownloadTask, code: &str, message: &str, delay_ms: u64, context: Context) -> JobLog {
    let fields = BTreeMap::from([("code".to_owned(), code.to_owned()), ("delay_ms".to_owned(), delay_ms.to_string())]);
    log(task, LogLevel::Info, format!("tried again later: {message}"), fields, context.now_ms)
}

fn dead_letter(item: &Finished, outcome: &ResourceOutcome, context: Context) -> DeadLetterTask {
    DeadLetterTask {
        task: Some((*item.task).clone()),
        failure_code: outcome.code.clone(),
        failure_message: outcome.message.clone(),
        attempts: outcome.attempts,
        failed_at_ms: if outcome.finished_at_ms == 0 { context.now_ms } else { outcome.finished_at_ms },
        context: outcome.context.clone(),
    }
}

fn malformed_letter(bad: &Malformed, context: Context) -> DeadLetterTask {
    let (partition, offset) = locate(bad.token);
    DeadLetterTask {
        task: None,
        failure_code: "VALIDATION_BAD_TASK".to_owned(),
        failure_message: bad.reason.clone(),
        attempts: 0,
        failed_at_ms: context.now_ms,
        context: BTreeMap::from([
            ("topic".to_owned(), Topic::Tasks.name().to_owned()),
            ("partition".to_owned(), partition.to_string()),
            ("offset".to_owned(), offset.to_string()),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_encoded_as_if_they_were_in_the_status() {
        let task = DownloadTask { job_id: "j".into(), tenant: "t".into(), ..Default::default() };
        let outcomes =
            [0, 1, 300].map(|index| ResourceOutcome { resource_index: index, sha256: vec![index as u8; 32].into(), ..Default::default() });
        let mut status = Status::of(&task, Context { now_ms: 7, steady_ms: 0, log_stored: false });
        status.outcomes.extend(outcomes.iter().map(|outcome| (outcome, outcome.encoded_len())));
        let mut bytes = Vec::new();
        status.encode(&mut bytes);
        assert_eq!(bytes.len(), status.encoded_len());
        let decoded = JobStatus::decode(&*bytes).unwrap();
        assert_eq!(decoded, JobStatus { outcomes: outcomes.to_vec(), ..status.head });
    }
}
