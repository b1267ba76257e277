//! The dead letters as operators see them: lists, groups, and the whole story of one.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fetchbox_model::message::{DownloadTask, ResourceOutcome};
use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::core::{Core, read_failed};
use crate::db::View;
use crate::dlq::{self, Letter, Place, Shelf, Which};
use crate::dlq_filter::{Filter, Jobs, Selection, entry_id};
use crate::error::HubError;
use crate::job::{JobRecord, id_text};
use crate::outcome;
use crate::query::text;
use crate::query_logs;
use crate::query_resources::settled_json;
use crate::redact::{redact, redact_header};

const DEFAULT_LIMIT: usize = 100;
const MOST: usize = 1000;
/// Entries looked at for one page: a rare match may need another page to be found, but no page takes seconds.
const SCAN: usize = 200_000;
/// Different values that a grouping tells apart; the rest is counted together.
const DISTINCT: usize = 100_000;
/// Pages of the job's log that are searched for what happened to one resource.
const LOG_PAGES: usize = 8;

/// Before everything, and behind it.
pub const FIRST: Place = (0, [0; 16]);
/// See [`FIRST`].
pub const LAST: Place = (u64::MAX, [0xff; 16]);

/// A page of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct List {
    pub filter: Filter,
    /// The entries that were put back to work, instead of the dead.
    pub replayed: bool,
    pub limit: Option<usize>,
    pub cursor: Option<String>,
}

/// One page, newest first.
pub fn list(core: &Core, list: List) -> Result<Value, HubError> {
    let view = core.db.view();
    let selection = Selection::new(&view, &list.filter)?;
    let before = match list.cursor.as_deref() {
        None | Some("") => None,
        Some(cursor) => Some(parse_cursor(cursor).ok_or_else(|| HubError::refused("INVALID_PAYLOAD", "the cursor is not one of ours"))?),
    };
    let limit = list.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MOST);
    let shelf = if list.replayed { Shelf::Replayed } else { Shelf::Dead };
    let to = before.map_or(LAST, |(place, _)| place);
    let mut jobs = Jobs::new(&view);
    let (mut entries, mut looked, mut last, mut more) = (Vec::new(), 0, None, false);
    'walk: for item in dlq::shelved(&view, shelf, selection.job_id(), FIRST, to).map_err(read_failed)?.rev() {
        let (place, letters) = item?;
        let mut taken = Vec::new();
        for letter in letters.list.iter().rev() {
            if before.is_some_and(|before| (place, letter.which()) >= before) {
                continue;
            }
            if entries.len() + taken.len() == limit || looked == SCAN {
                more = true;
                break;
            }
            looked += 1;
            last = Some((place, letter.which()));
            if selection.takes(letters.time_ms, letter) {
                taken.push(letter);
            }
        }
        if !taken.is_empty()
            && let Some(job) = jobs.of(&place)?
            && selection.takes_job(job)
        {
            entries.extend(read(&view, &place, job, letters.time_ms, &taken)?);
        }
        if more {
            break 'walk;
        }
    }
    let next_cursor = last.filter(|_| more).map(cursor);
    Ok(json!({"entries": entries, "next_cursor": next_cursor}))
}

fn read(view: &View<'_>, place: &Place, job: &JobRecord, time_ms: u64, letters: &[&Letter]) -> Result<Vec<Value>, HubError> {
    let wanted: Vec<Which> = letters.iter().map(|letter| letter.which()).collect();
    let outcomes = dlq::outcomes(view, place, &wanted).map_err(read_failed)?;
    Ok(letters.iter().zip(outcomes).map(|(letter, outcome)| entry_json(job, letter, time_ms, &outcome.unwrap_or_default())).collect())
}

fn entry_json(job: &JobRecord, letter: &Letter, time_ms: u64, outcome: &ResourceOutcome) -> Value {
    let url = outcome.task.as_ref().map_or(&outcome.final_url, |task| &task.url);
    json!({
        "id": entry_id(&job.facts.job_id, letter.which()),
        "job_id": job.facts.job_id,
        "job_type": job.facts.job_type,
        "tenant": job.facts.tenant,
        "resource_id": outcome.resource_id,
        "index": letter.index,
        "generation": letter.generation,
        "state": if letter.replayed_ms == 0 { "dead" } else { "replayed" },
        "code": letter.code,
        "message": text(&outcome.message),
        "http_status": (outcome.http_status != 0).then_some(outcome.http_status),
        "url": text(&redact(url)),
        "host": text(&letter.host),
        "attempts": outcome.attempts,
        "proxy": text(&outcome.proxy),
        "failed_at": rfc3339(time_ms),
        "replayed_at": rfc3339(letter.replayed_ms),
    })
}

/// What to count by.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum By {
    Code,
    Host,
    Job,
}

/// A grouping.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Grouping {
    pub by: By,
    #[serde(default)]
    pub filter: Filter,
    #[serde(default)]
    pub limit: Option<usize>,
}

/// The largest groups of the dead, with how many entries they hold.
pub fn groups(core: &Core, grouping: Grouping) -> Result<Value, HubError> {
    let view = core.db.view();
    let selection = Selection::new(&view, &grouping.filter)?;
    let mut jobs = Jobs::new(&view);
    let mut counts: HashMap<String, (u64, u64)> = HashMap::new();
    let (mut total, mut unnamed) = (0u64, 0u64);
    for item in dlq::shelved(&view, Shelf::Dead, selection.job_id(), FIRST, LAST).map_err(read_failed)? {
        let (place, letters) = item?;
        if grouping.filter.tenant.is_some() && !jobs.of(&place)?.is_some_and(|job| selection.takes_job(job)) {
            continue;
        }
        for letter in letters.list.iter().filter(|letter| selection.takes(letters.time_ms, letter)) {
            total += 1;
            let name = match grouping.by {
                By::Code => letter.code.clone(),
                By::Host => letter.host.clone(),
                By::Job => id_text(&place.1),
            };
            if counts.len() >= DISTINCT && !counts.contains_key(&name) {
                unnamed += 1;
                continue;
            }
            let (count, newest_ms) = counts.entry(name).or_default();
            *count += 1;
            *newest_ms = letters.time_ms.max(*newest_ms);
        }
    }
    let mut groups: Vec<(String, (u64, u64))> = counts.into_iter().collect();
    groups.sort_unstable_by(|(a, (more, _)), (b, (less, _))| less.cmp(more).then_with(|| a.cmp(b)));
    let limit = grouping.limit.unwrap_or(DEFAULT_LIMIT).clamp(1, MOST);
    let others: u64 = unnamed + groups.iter().skip(limit).map(|(_, (count, _))| count).sum::<u64>();
    let by = match grouping.by {
        By::Code => "code",
        By::Host => "host",
        By::Job => "job",
    };
    let shown = groups.iter().take(limit);
    let groups: Vec<Value> =
        shown.map(|(name, (count, newest))| json!({by: name, "count": count, "newest_at": rfc3339(*newest)})).collect();
    Ok(json!({"groups": groups, "total": total, "others": others, "next_cursor": null}))
}

/// One entry.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct One {
    pub id: String,
    #[serde(default)]
    pub tenant: Option<String>,
}

/// The whole story of one entry: its task, its failure, what else became of the resource, and what the job's log says of it.
pub fn show(core: &Core, one: One) -> Result<Value, HubError> {
    let missing = || HubError::not_found("the dead letter");
    let view = core.db.view();
    let selection = Selection::new(&view, &Filter { id: Some(one.id), tenant: one.tenant, ..Default::default() })?;
    let Some((id, job)) = &selection.job else { return Err(missing()) };
    let mut found = None;
    for shelf in [Shelf::Dead, Shelf::Replayed] {
        for item in dlq::shelved(&view, shelf, Some(id), FIRST, LAST).map_err(read_failed)? {
            let (place, letters) = item?;
            let letter = letters.list.iter().find(|letter| selection.takes(letters.time_ms, letter)).cloned();
            found = found.or(letter.map(|letter| (place, letters.time_ms, letter)));
        }
    }
    let (place, time_ms, letter) = found.ok_or_else(missing)?;
    let outcome = dlq::outcomes(&view, &place, &[letter.which()]).map_err(read_failed)?.into_iter().next().flatten().unwrap_or_default();
    let history: Vec<Value> = outcome::stored(&view, id)
        .map_err(read_failed)?
        .into_iter()
        .filter_map(|raw| ResourceOutcome::decode(raw).ok())
        .filter(|other| other.resource_index == letter.index)
        .map(|other| settled_json(&other))
        .collect();
    let mut value = entry_json(job, &letter, time_ms, &outcome);
    if let Some(object) = value.as_object_mut() {
        object.insert("task".to_owned(), outcome.task.as_ref().map_or(Value::Null, task_json));
        object.insert("context".to_owned(), context_json(&outcome));
        object.insert("outcome".to_owned(), settled_json(&outcome));
        object.insert("history".to_owned(), history.into());
        object.insert("log".to_owned(), log(core, job, &outcome.resource_id)?.into());
    }
    Ok(value)
}

fn task_json(task: &DownloadTask) -> Value {
    let headers: serde_json::Map<String, Value> =
        task.headers.iter().map(|header| (header.name.clone(), redact_header(&header.name, &header.value).into())).collect();
    let proxy = task.proxy_hint.as_ref().map(|hint| json!({"primary": hint.primary_pool, "fallbacks": hint.fallbacks}));
    let storage = task
        .storage_hint
        .as_ref()
        .map(|hint| json!({"bucket": hint.bucket, "key_prefix": hint.key_prefix, "key": hint.key, "metadata": hint.metadata}));
    let attributes = task.attributes.clone().unwrap_or_default();
    json!({
        "url": redact(&task.url),
        "headers": headers,
        "proxy": proxy,
        "storage": storage,
        "tags": attributes.tags,
        "checksum_hint": text(&attributes.checksum_hint),
        "attempt": task.attempt,
        "generation": task.generation,
        "resources_total": task.resources_total,
        "manifest_key": text(&task.manifest_key),
        "deadline": rfc3339(task.deadline_ms),
        "trace_id": text(&task.trace_id),
    })
}

/// What the engine noted; URLs among it lose their secrets.
fn context_json(outcome: &ResourceOutcome) -> Value {
    outcome.context.iter().map(|(key, value)| (key.clone(), Value::from(redact(value)))).collect::<serde_json::Map<_, _>>().into()
}

/// Lines of the job's log about a resource, as far as a bounded search finds them.
fn log(core: &Core, job: &JobRecord, resource_id: &str) -> Result<Vec<Value>, HubError> {
    let (mut lines, mut since) = (Vec::new(), None);
    for _ in 0..LOG_PAGES {
        let filter = query_logs::Filter { job_id: job.facts.job_id.clone(), tenant: None, since_offset: since, limit: Some(5000) };
        let page = query_logs::list(core, filter)?;
        if let Some(logs) = page["logs"].as_array() {
            lines.extend(logs.iter().filter(|line| line["resource_id"] == resource_id).cloned());
        }
        let next = page["next_offset"].as_u64();
        if page["end"] == true || next == since || lines.len() >= MOST {
            break;
        }
        since = next;
    }
    Ok(lines)
}

type Position = (Place, Which);

/// Where a list goes on: behind this entry.
pub fn cursor(((sequence, job), (index, generation)): Position) -> String {
    let raw = [&b"d"[..], &sequence.to_be_bytes(), &job, &index.to_be_bytes(), &generation.to_be_bytes()].concat();
    URL_SAFE_NO_PAD.encode(raw)
}

/// Reads [`cursor`].
pub fn parse_cursor(text: &str) -> Option<Position> {
    let raw = URL_SAFE_NO_PAD.decode(text).ok()?;
    let tail = raw.get(25..33).filter(|_| raw.len() == 33 && raw[0] == b'd')?;
    let number = |at: usize| tail.get(at..at + 4).and_then(|raw| raw.try_into().ok()).map(u32::from_be_bytes);
    Some((dlq::place_of(&raw)?, (number(0)?, number(4)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back_and_others_are_refused() {
        let position = ((7, [3; 16]), (70_000, 2));
        assert_eq!(parse_cursor(&cursor(position)), Some(position));
        for bad in ["", "!!", "AAAA", &cursor(position)[1..], &"A".repeat(44)] {
            assert_eq!(parse_cursor(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_tasks_secrets_are_not_shown() {
        let header = |name: &str| fetchbox_model::message::HttpHeader { name: name.into(), value: "s3cret".into() };
        let task = DownloadTask {
            url: "http://h/?sig=s3cret".into(),
            headers: vec![header("authorization"), header("x-api-key"), header("cookie")],
            ..Default::default()
        };
        assert!(!task_json(&task).to_string().contains("s3cret"));
    }
}
