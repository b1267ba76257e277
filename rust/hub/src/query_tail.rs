//! What is new in the logs of many jobs: each partition is read once, however many of its jobs are followed.

use std::collections::{BTreeMap, HashMap};

use fetchbox_model::batch;
use fetchbox_model::message::JobLog;
use fetchbox_model::stream::Topic;
use prost::Message;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::core::{Core, read_failed};
use crate::error::HubError;
use crate::query::{OneJob, find};
use crate::query_logs::{LogPart, log_json};

/// Lines of one answer, and batches looked at for it; `next` says where to go on.
const MOST: usize = 2000;
const SCAN: usize = 20_000;

/// Which jobs, and from where on in each partition.
#[derive(Debug, Deserialize)]
pub struct Ask {
    /// By partition of `jobs.logs`, the first offset wanted and the jobs.
    partitions: BTreeMap<u32, (u64, Vec<String>)>,
    /// Also look at jobs of partitions to which nothing was added.
    #[serde(default)]
    all: bool,
}

/// The jobs with new lines (`logs`), with none to come (`end`), or that are not there any more (`gone`); by partition, where to go on (`next`).
pub fn tail(core: &Core, ask: &Ask) -> Result<Value, HubError> {
    let (mut jobs, mut next, mut left) = (Map::new(), Map::new(), MOST);
    for (partition, (since, ids)) in &ask.partitions {
        let written = core.next.get(Topic::Logs, *partition);
        // Nothing ends without a line that says so.
        if ask.all || written > *since {
            let (found, reached) = one(core, *partition, *since, ids, &mut left)?;
            jobs.extend(found);
            next.insert(partition.to_string(), reached.into());
        }
    }
    Ok(json!({"jobs": jobs, "next": next}))
}

/// A job that is followed.
struct Followed {
    /// Where its last line is behind, once it is settled.
    until: Option<u64>,
    logs: Vec<Value>,
}

fn one(core: &Core, partition: u32, since: u64, ids: &[String], left: &mut usize) -> Result<(Map<String, Value>, u64), HubError> {
    let (mut followed, mut answer) = (HashMap::new(), Map::new());
    // Read before the records: whose last line is below this is settled in its record, and is not overlooked.
    let to = core.next.get(Topic::Logs, partition);
    {
        let view = core.db.view();
        for id in ids {
            match find(&view, &OneJob { job_id: id.clone(), tenant: None }) {
                Ok((_, job)) => {
                    let until = (job.finished_ms != 0 && job.log_end > 0).then_some(job.log_end);
                    followed.insert(job.facts.job_id, Followed { until, logs: Vec::new() });
                }
                Err(HubError::Refused { .. }) => {
                    answer.insert(id.clone(), json!({"logs": [], "end": false, "gone": true}));
                }
                Err(error) => return Err(error),
            }
        }
    }
    let from = since.max(core.start.get(Topic::Logs, partition));
    let mut reached = from;
    if from < to && !followed.is_empty() {
        reached = scan(core, partition, from, to, &mut followed, left)?;
    } else {
        reached = reached.max(to);
    }
    for (id, job) in followed {
        let end = job.until.is_some_and(|until| until <= reached);
        if end || !job.logs.is_empty() {
            answer.insert(id, json!({"logs": job.logs, "end": end}));
        }
    }
    Ok((answer, reached))
}

fn scan(
    core: &Core,
    partition: u32,
    from: u64,
    to: u64,
    followed: &mut HashMap<String, Followed>,
    left: &mut usize,
) -> Result<u64, HubError> {
    let (mut looked, mut next) = (0, from);
    for item in crate::log::records(core, Topic::Logs, partition, from, to).map_err(read_failed)? {
        let (base, record) = item.map_err(read_failed)?;
        let mut offset = base;
        for part in record.parts {
            let end = offset + u64::from(part.count);
            if end > from {
                if *left == 0 || looked == SCAN {
                    return Ok(next);
                }
                looked += 1;
                for (at, raw) in (offset..).zip(batch::unpack(&part.bytes).unwrap_or_default()) {
                    if at < from || at >= to {
                        continue;
                    }
                    let Ok(LogPart { job_id }) = LogPart::decode(raw.clone()) else { continue };
                    let Some(job) = followed.get_mut(&job_id).filter(|job| job.until.is_none_or(|until| at < until)) else { continue };
                    if *left == 0 {
                        return Ok(at);
                    }
                    *left -= 1;
                    job.logs.extend(JobLog::decode(raw).ok().map(|log| log_json(at, &log)));
                }
                next = next.max(end.min(to));
            }
            offset = end;
        }
    }
    Ok(next.max(to))
}
