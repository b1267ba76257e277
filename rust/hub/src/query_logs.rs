//! The log of a job, out of a partition that it shares with others.

use fetchbox_model::batch;
use fetchbox_model::message::JobLog;
use fetchbox_model::stream::Topic;
use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::core::{Core, read_failed};
use crate::error::HubError;
use crate::query::{OneJob, find};

const DEFAULT_LIMIT: usize = 500;
const MOST: usize = 5000;
/// Batches looked at for one answer; `next_offset` says where to go on.
const SCAN: usize = 20_000;

/// Which part of the log.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Filter {
    pub job_id: String,
    #[serde(default)]
    pub tenant: Option<String>,
    /// First offset wanted.
    #[serde(default)]
    pub since_offset: Option<u64>,
    #[serde(default)]
    pub limit: Option<usize>,
}

#[derive(Clone, PartialEq, Message)]
pub struct LogPart {
    #[prost(string, tag = "1")]
    pub job_id: String,
}

/// The lines from an offset on. `end` says that no more will come: the job is settled and all was listed.
pub fn list(core: &Core, filter: Filter) -> Result<Value, HubError> {
    let one = OneJob { job_id: filter.job_id, tenant: filter.tenant };
    let (_, job) = find(&core.db.view(), &one)?;
    let limit = filter.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MOST);
    let from = filter.since_offset.unwrap_or(0).max(job.log_offset).max(core.start.get(Topic::Logs, job.log_partition));
    let settled = job.finished_ms != 0;
    let written = core.next.get(Topic::Logs, job.log_partition);
    // With an external broker the end is known when its line was read back.
    let ended = settled && job.log_end > 0;
    let to = if ended { job.log_end.min(written) } else { written };
    let (mut logs, mut next) = (Vec::new(), from);
    if from < to {
        let mut looked = 0;
        'records: for item in crate::log::records(core, Topic::Logs, job.log_partition, from, to).map_err(read_failed)? {
            let (base, record) = item.map_err(read_failed)?;
            let mut offset = base;
            for part in record.parts {
                let end = offset + u64::from(part.count);
                if end > from {
                    looked += 1;
                    let messages = batch::unpack(&part.bytes).unwrap_or_default();
                    for (at, raw) in (offset..).zip(messages) {
                        if at < from || at >= to || !LogPart::decode(raw.clone()).is_ok_and(|log| log.job_id == job.facts.job_id) {
                            continue;
                        }
                        if logs.len() == limit {
                            break 'records;
                        }
                        next = at + 1;
                        logs.extend(JobLog::decode(raw).ok().map(|log| log_json(at, &log)));
                    }
                    // The rest of the batch held nothing more of this job.
                    next = next.max(end.min(to));
                }
                offset = end;
                if looked >= SCAN {
                    break 'records;
                }
            }
        }
    }
    let end = ended && next >= to;
    Ok(json!({"logs": logs, "next_offset": next, "partition": job.log_partition, "settled": settled, "end": end}))
}

pub fn log_json(offset: u64, log: &JobLog) -> Value {
    let level = log.level().as_str_name().trim_start_matches("LOG_LEVEL_");
    json!({
        "offset": offset,
        "job_id": log.job_id,
        "resource_id": crate::query::text(&log.resource_id),
        "level": level,
        "message": log.message,
        "fields": log.fields,
        "timestamp_ms": log.timestamp_ms,
        "timestamp": rfc3339(log.timestamp_ms),
        "trace_id": crate::query::text(&log.trace_id),
    })
}
