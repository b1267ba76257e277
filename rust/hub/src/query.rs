//! Questions to the ledger: JSON in, JSON out, exactly as the api answers them.

use fetchbox_model::message::JobState;
use fetchbox_model::state::job_state_name;
use fetchbox_model::stream::Topic;
use prost::Message;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::announce;
use crate::clock::rfc3339;
use crate::core::{Core, read_failed};
use crate::db::{Space, View};
use crate::error::HubError;
use crate::job::{JobId, JobRecord, parse_id};
use crate::manifests::Pack;
use crate::{health, query_dlq, query_jobs, query_logs, query_resources, query_tail, replay_order, streams};

/// Which job, and whose.
#[derive(Debug, Deserialize)]
pub struct OneJob {
    /// UUID.
    pub job_id: String,
    /// Only a job of this tenant is found.
    #[serde(default)]
    pub tenant: Option<String>,
}

/// Whether it is an order, which changes something.
pub fn is_order(name: &str) -> bool {
    matches!(name, "dlq_replay" | "dlq_purge" | "broker_state" | "broker_queues")
}

/// Answers a question, or carries out an order, by name. May block for seconds.
pub fn answer(core: &Core, name: &str, params: &[u8]) -> Result<Vec<u8>, HubError> {
    let value = match name {
        "job" => {
            let one: OneJob = parse(params)?;
            job_json(&find(&core.db.view(), &one)?.1)
        }
        "jobs" => query_jobs::list(core, parse(params)?)?,
        "resources" => query_resources::list(core, parse(params)?)?,
        "receipt" => query_resources::receipt(core, &parse(params)?)?,
        "manifest" => manifest(core, &parse(params)?)?,
        "finished" => finished(core, &parse(params)?)?,
        "logs" => query_logs::list(core, parse(params)?)?,
        "tail" => query_tail::tail(core, &parse(params)?)?,
        "dlq" => query_dlq::list(core, parse(params)?)?,
        "dlq_groups" => query_dlq::groups(core, parse(params)?)?,
        "dlq_show" => query_dlq::show(core, parse(params)?)?,
        "dlq_replay" => replay_order::replay(core, parse(params)?)?,
        "dlq_purge" => replay_order::purge(core, parse(params)?)?,
        "topics" => streams::topics(core, &parse(params)?).map_err(read_failed)?,
        "fed" => crate::feed::fed(core),
        "broker_state" => health::broker_state(core, parse(params)?),
        "broker_queues" => health::broker_queues(core, parse(params)?),
        "health" => health::health(core),
        "overview" => health::overview(core, &parse(params)?),
        other => return Err(HubError::Invalid(format!("there is no question {other}"))),
    };
    serde_json::to_vec(&value).map_err(|error| HubError::Invalid(format!("the answer cannot be written: {error}")))
}

fn parse<T: DeserializeOwned>(params: &[u8]) -> Result<T, HubError> {
    let params = if params.is_empty() { b"{}" } else { params };
    serde_json::from_slice(params).map_err(|error| HubError::refused("INVALID_PAYLOAD", format!("the parameters are not valid: {error}")))
}

/// The job of a question, or `NOT_FOUND`.
pub fn find(view: &View<'_>, one: &OneJob) -> Result<(JobId, JobRecord), HubError> {
    let missing = || HubError::not_found("the job").about(&one.job_id);
    let id = parse_id(&one.job_id).ok_or_else(missing)?;
    let raw = view.get(Space::Jobs, &id).map_err(read_failed)?.ok_or_else(missing)?;
    let record =
        JobRecord::decode(raw).map_err(|error| HubError::Fatal(format!("the record of job {} is damaged: {error}", one.job_id)))?;
    if one.tenant.as_ref().is_some_and(|tenant| *tenant != record.facts.tenant) {
        return Err(missing());
    }
    Ok((id, record))
}

/// Text, or null for none.
pub fn text(value: &str) -> Value {
    if value.is_empty() { Value::Null } else { value.into() }
}

/// A job as operators see it.
pub fn job_json(job: &JobRecord) -> Value {
    let (facts, counts) = (&job.facts, &job.counts);
    let last_error = job.last_error.as_ref().map(|error| {
        let context = json!({"resource_id": error.resource_id, "resource_index": error.resource_index, "http_status": error.http_status});
        json!({"code": error.code, "message": error.message, "context": context})
    });
    json!({
        "job_id": facts.job_id,
        "job_type": facts.job_type,
        "tenant": facts.tenant,
        "status": job_state_name(job.state()),
        "created_at": rfc3339(facts.created_ms),
        "updated_at": rfc3339(job.updated_ms.max(facts.created_ms)),
        "finished_at": if job.finished_ms == 0 { None } else { rfc3339(job.finished_ms.max(facts.created_ms)) },
        "resource_total": counts.total,
        "resource_completed": counts.stored,
        "resource_reused": counts.reused,
        "resource_filtered": counts.filtered,
        "resource_failed": counts.failed,
        "resource_cancelled": counts.cancelled,
        "resource_pending": counts.pending(),
        "bytes_stored": counts.bytes_stored,
        "manifest_key": if job.direct { Value::Null } else { facts.manifest_key.clone().into() },
        "log_cursor": {"stream": Topic::Logs.name(), "partition": job.log_partition, "offset": job.log_offset},
        "last_error": last_error,
        "origin": if job.direct { "direct" } else { "api" },
        "crawl_id": text(&facts.crawl_id),
        "priority": text(&facts.priority),
        "trace_id": text(&facts.trace_id),
    })
}

/// Which jobs have somebody who wants to know that they are settled.
#[derive(Debug, Deserialize)]
struct Finished {
    job_ids: Vec<String>,
    /// Types whose handlers want to.
    job_types: Vec<String>,
    /// Also jobs that are not over, if their failures are told of one by one.
    #[serde(default)]
    failures: bool,
}

/// Of these jobs those of which somebody wants to know, with the URL to call, which nobody else may see.
fn finished(core: &Core, asked: &Finished) -> Result<Value, HubError> {
    let view = core.db.view();
    let mut jobs = Vec::new();
    for job_id in &asked.job_ids {
        let job = match find(&view, &OneJob { job_id: job_id.clone(), tenant: None }) {
            Ok((_, job)) => job,
            // Pruned meanwhile.
            Err(HubError::Refused { .. }) => continue,
            Err(error) => return Err(error),
        };
        // One that was replayed meanwhile is told of when it is settled again.
        let over = job.is_over();
        if over && (!job.facts.callback_url.is_empty() || asked.job_types.contains(&job.facts.job_type))
            || asked.failures && announce::is_wanted(&job.facts)
        {
            let (url, events) = (text(&job.facts.callback_url), &job.facts.callback_events);
            // Failures that a hub of before counted had no events.
            let untold = job.announced < job.counts.failed;
            jobs.push(json!({"callback_url": url, "callback_events": events, "job": job_json(&job), "over": over, "untold": untold}));
        }
    }
    Ok(json!({ "jobs": jobs }))
}

fn manifest(core: &Core, one: &OneJob) -> Result<Value, HubError> {
    let view = core.db.view();
    let (_, job) = find(&view, one)?;
    let blob = match job.manifest_blob {
        0 => None,
        sequence => view.get(Space::Manifests, &(sequence - 1).to_be_bytes()).map_err(read_failed)?,
    };
    let body = match blob {
        // Written to the store already.
        None => None,
        Some(raw) => {
            let pack = Pack::unpack(&raw)?;
            let blob = pack.blobs.iter().find(|blob| blob.job_id == job.facts.job_id);
            blob.map(|blob| String::from_utf8_lossy(&blob.body).into_owned())
        }
    };
    Ok(json!({"manifest_key": job.facts.manifest_key, "body": body}))
}

/// The state of a name in a filter.
pub fn parse_state(name: &str) -> Option<JobState> {
    use JobState::{Cancelled, Completed, Failed, InProgress, Partial, Queued};
    [Queued, InProgress, Partial, Completed, Failed, Cancelled].into_iter().find(|state| job_state_name(*state) == name)
}
