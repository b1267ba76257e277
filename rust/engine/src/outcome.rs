//! What is reported of a task.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fetchbox_model::message::{DownloadTask, ResourceOutcome, ResourceState, Timings};

use crate::failure::Failure;
use crate::fetch::transfer::Stored;
use crate::reuse::How;

/// Longest message and context value in bytes: origins choose some of their text.
const MAX_TEXT: usize = 1024;

/// Where the time of an attempt went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Until the task got a slot.
    pub queued: Duration,
    /// Asking for names.
    pub dns: Duration,
    /// TCP.
    pub connect: Duration,
    /// The TLS handshake.
    pub tls: Duration,
    /// From the request to the head of its response.
    pub first_byte: Duration,
    /// The body, the store's time left out.
    pub body: Duration,
    /// Waiting for the store.
    pub store: Duration,
}

/// What an attempt learned, whether it succeeded or not.
#[derive(Debug, Clone, Default)]
pub struct Learned {
    /// The URL that answered.
    pub final_url: String,
    /// Redirects followed.
    pub redirects: u32,
    /// The last status.
    pub http_status: u16,
    /// The proxy used, without credentials.
    pub proxy: String,
    /// Headers of the response.
    pub etag: String,
    /// Last-Modified.
    pub last_modified: String,
    /// Content-Type.
    pub content_type: String,
    /// Further facts.
    pub context: Vec<(&'static str, String)>,
    /// Where the time went.
    pub times: Times,
}

/// The outcome of a resource whose object is in its place, stored now or reused.
pub fn stored(task: &DownloadTask, mut learned: Learned, stored: Stored, attempts: u32, now_ms: u64) -> ResourceOutcome {
    let mut outcome = base(task, &mut learned, attempts, now_ms);
    outcome.state = if stored.reused.is_some() { ResourceState::Reused } else { ResourceState::Stored }.into();
    outcome.message = stored.reused.map(How::message).unwrap_or_default().to_owned();
    outcome.size = stored.size;
    outcome.sha256 = Bytes::copy_from_slice(&stored.sha256);
    outcome.sniffed_type = stored.sniffed.into_owned();
    outcome.storage_url = stored.url;
    outcome.storage_etag = stored.etag;
    outcome.etag = learned.etag;
    outcome.last_modified = learned.last_modified;
    outcome.content_type = learned.content_type;
    outcome.context = context(learned.context, task, &outcome.final_url);
    outcome
}

/// The outcome of a resource that failed for good.
pub fn failed(task: &DownloadTask, mut learned: Learned, failure: Failure, attempts: u32, now_ms: u64) -> ResourceOutcome {
    let mut outcome = base(task, &mut learned, attempts, now_ms);
    outcome.state = ResourceState::Failed.into();
    outcome.code = failure.code.as_str().to_owned();
    outcome.message = cut(failure.message);
    if failure.http_status != 0 {
        outcome.http_status = u32::from(failure.http_status);
    }
    outcome.etag = learned.etag;
    outcome.last_modified = learned.last_modified;
    outcome.content_type = learned.content_type;
    let mut facts = learned.context;
    facts.extend(failure.context);
    outcome.context = context(facts, task, &outcome.final_url);
    outcome.task = Some(task.clone());
    outcome
}

/// The outcome of a resource that is left out on purpose.
pub fn filtered(task: &DownloadTask, learned: Learned, failure: Failure, attempts: u32, now_ms: u64) -> ResourceOutcome {
    let mut outcome = failed(task, learned, failure, attempts, now_ms);
    outcome.state = ResourceState::Filtered.into();
    // Nobody tries it again.
    outcome.task = None;
    outcome
}

fn base(task: &DownloadTask, learned: &mut Learned, attempts: u32, now_ms: u64) -> ResourceOutcome {
    ResourceOutcome {
        resource_id: task.resource_id.clone(),
        resource_index: task.resource_index,
        generation: task.generation,
        http_status: u32::from(learned.http_status),
        final_url: std::mem::take(&mut learned.final_url),
        redirects: learned.redirects,
        attempts,
        proxy: std::mem::take(&mut learned.proxy),
        timings: Some(timings(&learned.times)),
        finished_at_ms: now_ms,
        ..ResourceOutcome::default()
    }
}

fn timings(times: &Times) -> Timings {
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    Timings {
        dns: micros(times.dns),
        connect: micros(times.connect),
        tls: micros(times.tls),
        first_byte: micros(times.first_byte),
        body: micros(times.body),
        store: micros(times.store),
        queued: micros(times.queued),
    }
}

fn context(facts: Vec<(&'static str, String)>, task: &DownloadTask, final_url: &str) -> BTreeMap<String, String> {
    let mut context: BTreeMap<String, String> = facts.into_iter().map(|(key, value)| (key.to_owned(), cut(value))).collect();
    if !final_url.is_empty() && final_url != task.url {
        context.insert("url".to_owned(), task.url.clone());
    }
    context
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tasks_url_is_in_the_context_only_when_another_answered() {
        let task = DownloadTask { url: "http://a".into(), ..Default::default() };
        let same = Learned { final_url: "http://a".into(), ..Learned::default() };
        assert_eq!(stored(&task, same, Stored::default(), 1, 0).context.get("url"), None);
        let other = Learned { final_url: "http://b/".into(), ..Learned::default() };
        assert_eq!(stored(&task, other, Stored::default(), 1, 0).context.get("url").unwrap(), "http://a");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("é".repeat(1000)).len(), 1024);
        assert_eq!(cut("a".repeat(1025)).len(), 1024);
    }
}
