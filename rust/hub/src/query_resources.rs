//! The resources of a job, settled and pending.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fetchbox_model::message::{ResourceOutcome, ResourceState};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cancel::{TaskPart, tasks};
use crate::clock::rfc3339;
use crate::core::{Core, read_failed};
use crate::error::HubError;
use crate::job::JobRecord;
use crate::outcome;
use crate::query::{OneJob, find, job_json, text};
use crate::redact::redact;

const DEFAULT_LIMIT: usize = 100;
const MOST: usize = 1000;

/// Which resources of which job.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Filter {
    pub job_id: String,
    #[serde(default)]
    pub tenant: Option<String>,
    #[serde(default)]
    pub state: Option<String>,
    /// Only these.
    #[serde(default)]
    pub indexes: Option<Vec<u32>>,
    #[serde(default)]
    pub limit: Option<usize>,
    #[serde(default)]
    pub cursor: Option<String>,
}

const STATES: [(&str, Option<ResourceState>); 6] = [
    ("pending", None),
    ("stored", Some(ResourceState::Stored)),
    ("reused", Some(ResourceState::Reused)),
    ("filtered", Some(ResourceState::Filtered)),
    ("failed", Some(ResourceState::Failed)),
    ("cancelled", Some(ResourceState::Cancelled)),
];

/// One page, by index.
pub fn list(core: &Core, filter: Filter) -> Result<Value, HubError> {
    let invalid = |what: &str| HubError::refused("INVALID_PAYLOAD", what);
    let wanted = match filter.state.as_deref() {
        None | Some("") => None,
        Some(name) => Some(STATES.iter().find(|(n, _)| *n == name).ok_or_else(|| invalid("there is no such state"))?.1),
    };
    let from = match filter.cursor.as_deref() {
        None | Some("") => 0,
        Some(cursor) => parse_cursor(cursor).ok_or_else(|| invalid("the cursor is not one of ours"))?,
    };
    let limit = filter.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MOST);
    let one = OneJob { job_id: filter.job_id, tenant: filter.tenant };
    let (job, resources) = resources(core, &one)?;
    let mut page = Vec::new();
    let mut next_cursor = None;
    for (index, resource) in (from..job.counts.total as u32).zip(resources.iter().skip(from as usize)) {
        if wanted.is_some_and(|wanted| wanted != resource.state()) || filter.indexes.as_ref().is_some_and(|some| !some.contains(&index)) {
            continue;
        }
        if page.len() == limit {
            next_cursor = Some(cursor(index));
            break;
        }
        page.push(resource.json(&job, index));
    }
    Ok(json!({"resources": page, "next_cursor": next_cursor}))
}

/// The conservation sum and every outcome.
pub fn receipt(core: &Core, one: &OneJob) -> Result<Value, HubError> {
    let (job, resources) = resources(core, one)?;
    let counts = job.counts;
    let listed = |state| resources.iter().filter(|resource| resource.state() == state).count() as u64;
    let by_state: serde_json::Map<String, Value> = STATES.iter().map(|(name, state)| ((*name).to_owned(), listed(*state).into())).collect();
    let counted = [counts.pending(), counts.stored, counts.reused, counts.filtered, counts.failed, counts.cancelled];
    // What is listed is counted from the outcomes, what it is compared with are the job's own counters.
    let holds =
        counted.iter().sum::<u64>() == counts.total && STATES.iter().zip(counted).all(|((_, state), count)| listed(*state) == count);
    let settled = counts.total - counts.pending();
    let resources: Vec<Value> = (0..).zip(&resources).map(|(index, resource)| resource.json(&job, index)).collect();
    Ok(json!({
        "job": job_json(&job),
        "conservation": {
            "total": counts.total, "settled": settled, "pending": counts.pending(), "listed": by_state, "holds": holds,
        },
        "resources": resources,
    }))
}

/// A resource as far as it is known.
enum Resource {
    Pending(Option<TaskPart>),
    Settled(Box<ResourceOutcome>),
    /// Settled, but its description is not there; never without a defect.
    Lost,
}

fn resources(core: &Core, one: &OneJob) -> Result<(JobRecord, Vec<Resource>), HubError> {
    let view = core.db.view();
    let (id, job) = find(&view, one)?;
    let mut outcomes = outcome::newest(&view, &id).map_err(read_failed)?;
    let mut tasks = if job.counts.pending() > 0 { tasks(core, &job, |_| Vec::new()).map_err(read_failed)? } else { Default::default() };
    let resource = |index: u32| match (job.is_settled(index), outcomes.remove(&index)) {
        (true, Some(outcome)) => Resource::Settled(Box::new(outcome)),
        (true, None) => Resource::Lost,
        (false, _) => Resource::Pending(tasks.remove(&index)),
    };
    let resources = (0..job.counts.total as u32).map(resource).collect();
    Ok((job, resources))
}

impl Resource {
    fn state(&self) -> Option<ResourceState> {
        match self {
            Resource::Pending(_) => None,
            Resource::Settled(outcome) => Some(outcome.state()),
            Resource::Lost => Some(ResourceState::Unknown),
        }
    }

    fn json(&self, job: &JobRecord, index: u32) -> Value {
        let generation = job.generation(index);
        let settled = match self {
            Resource::Settled(outcome) => return settled_json(outcome),
            Resource::Pending(task) => task.as_ref(),
            Resource::Lost => None,
        };
        let id = settled.map_or_else(|| index.to_string(), |task| task.resource_id.clone());
        let url = settled.map_or(Value::Null, |task| text(&redact(&task.url)));
        let mut value = settled_json(&ResourceOutcome { resource_id: id, resource_index: index, generation, ..Default::default() });
        if let Some(object) = value.as_object_mut() {
            object.insert("url".to_owned(), url);
            object.insert("state".to_owned(), if matches!(self, Resource::Lost) { "unknown" } else { "pending" }.into());
        }
        value
    }
}

/// An outcome as operators see it.
pub fn settled_json(outcome: &ResourceOutcome) -> Value {
    let url = match (outcome.context.get("url"), &outcome.task) {
        (Some(url), _) => url,
        (None, Some(task)) => &task.url,
        (None, None) => &outcome.final_url,
    };
    let state = STATES.iter().find(|(_, state)| *state == Some(outcome.state())).map_or("unknown", |(name, _)| *name);
    let stored = matches!(outcome.state(), ResourceState::Stored | ResourceState::Reused);
    let timings = outcome.timings.as_ref().map(|t| {
        json!({"dns": t.dns, "connect": t.connect, "tls": t.tls, "first_byte": t.first_byte, "body": t.body, "store": t.store, "queued": t.queued})
    });
    json!({
        "id": outcome.resource_id,
        "index": outcome.resource_index,
        "url": text(&redact(url)),
        "final_url": text(&redact(&outcome.final_url)),
        "state": state,
        "code": text(&outcome.code),
        "message": text(&outcome.message),
        "http_status": (outcome.http_status != 0).then_some(outcome.http_status),
        "size": (stored || outcome.size > 0).then_some(outcome.size),
        "sha256": text(&hex(&outcome.sha256)),
        "content_type": text(&outcome.content_type),
        "sniffed_type": text(&outcome.sniffed_type),
        "storage_url": text(&outcome.storage_url),
        "etag": text(&outcome.etag),
        "last_modified": text(&outcome.last_modified),
        "redirects": outcome.redirects,
        "attempts": outcome.attempts,
        "proxy": text(&outcome.proxy),
        "timings": timings,
        "generation": outcome.generation,
        "finished_at": rfc3339(outcome.finished_at_ms),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn cursor(index: u32) -> String {
    URL_SAFE_NO_PAD.encode([&b"i"[..], &index.to_be_bytes()].concat())
}

fn parse_cursor(text: &str) -> Option<u32> {
    let raw = URL_SAFE_NO_PAD.decode(text).ok()?;
    Some(u32::from_be_bytes(raw.strip_prefix(b"i")?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fetchbox_model::message::{DownloadTask, Timings};

    #[test]
    fn the_url_comes_from_where_the_engine_left_it() {
        let mut outcome = ResourceOutcome { final_url: "http://final/?sig=1".into(), ..Default::default() };
        assert_eq!(settled_json(&outcome)["url"], "http://final/?sig=REDACTED");
        outcome.task = Some(DownloadTask { url: "http://task/".into(), ..Default::default() });
        assert_eq!(settled_json(&outcome)["url"], "http://task/");
        outcome.context.insert("url".into(), "http://context/".into());
        assert_eq!(settled_json(&outcome)["url"], "http://context/");
    }

    #[test]
    fn an_empty_stored_file_has_a_size_and_a_failed_one_has_none() {
        let mut outcome = ResourceOutcome { state: ResourceState::Stored as i32, sha256: vec![0xe3, 0x0f].into(), ..Default::default() };
        outcome.timings = Some(Timings { dns: 5, ..Default::default() });
        let json = settled_json(&outcome);
        assert_eq!((&json["size"], &json["sha256"], &json["timings"]["dns"]), (&json!(0), &json!("e30f"), &json!(5)));
        outcome.state = ResourceState::Failed as i32;
        assert_eq!(settled_json(&outcome)["size"], Value::Null);
    }

    #[test]
    fn cursors_come_back_and_others_are_refused() {
        assert_eq!(parse_cursor(&cursor(70_000)), Some(70_000));
        assert_eq!((parse_cursor("AAAA"), parse_cursor("")), (None, None));
    }
}
