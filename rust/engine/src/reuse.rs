//! Whether what is remembered of a URL may take the place of a download. Pure, but for [`mark`], which fills an outcome in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fetchbox_model::message::ResourceOutcome;
use fetchbox_model::reuse::{KEY_BYTES, Remembered};

/// What a task may reuse, and the name under which its own object is remembered.
#[derive(Debug, Clone, PartialEq)]
pub struct Reuse {
    /// See [`fetchbox_model::reuse::key`].
    pub key: [u8; KEY_BYTES],
    /// What is remembered under it.
    pub known: Option<Arc<Remembered>>,
}

/// What a task would have of an object.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// An object confirmed so lately is reused without asking; zero always asks.
    pub max_age: Duration,
    /// Largest body.
    pub max_bytes: u64,
    /// The size that the task's tags promise.
    pub expected_size: Option<u64>,
}

/// What to do with what is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The object is taken without a request.
    Trust,
    /// The request says what is here already.
    Ask(Condition),
    /// There is nothing to ask with: the body's digest will tell.
    Compare,
    /// It is not what this task is after.
    Useless,
}

/// A header that makes a request conditional.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `If-None-Match`.
    NoneMatch(String),
    /// `If-Modified-Since`.
    ModifiedSince(String),
}

/// How an object came to be reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    /// It was confirmed so lately that nobody was asked.
    Trusted,
    /// The origin said that nothing has changed.
    NotModified,
    /// The same body came again.
    SameBody,
}

impl How {
    /// The metrics' label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "max_age",
            Self::NotModified => "not_modified",
            Self::SameBody => "same_body",
        }
    }

    /// For people.
    pub fn message(self) -> &'static str {
        match self {
            Self::Trusted => "confirmed within reuse_max_age",
            Self::NotModified => "not modified",
            Self::SameBody => "the same body again",
        }
    }
}

/// What to do with what is remembered.
pub fn plan(known: &Remembered, wish: Wish) -> Plan {
    if known.size > wish.max_bytes || wish.expected_size.is_some_and(|size| size != known.size) || known.sha256.len() != 32 {
        return Plan::Useless;
    }
    if !wish.max_age.is_zero() && Duration::from_millis(known.age_ms) <= wish.max_age {
        return Plan::Trust;
    }
    // An ETag says more than a date, and who has both is asked by the ETag.
    match (known.etag.as_str(), known.last_modified.as_str()) {
        ("", "") => Plan::Compare,
        ("", date) => Plan::Ask(Condition::ModifiedSince(date.to_owned())),
        (etag, _) => Plan::Ask(Condition::NoneMatch(etag.to_owned())),
    }
}

/// Whether the condition may be sent with this request: it belongs to the URL that gave the object, and says nothing to others. `task_url` is set for
/// the first request, in the task's own spelling.
pub fn belongs(known: &Remembered, url: &str, task_url: Option<&str>) -> bool {
    known.final_url == url || task_url.is_some_and(|task_url| known.final_url == task_url)
}

/// Whether a 304 with this ETag (empty for none) speaks of what is remembered.
pub fn confirms(known: &Remembered, etag: &str) -> bool {
    let opaque = |etag: &str| etag.strip_prefix("W/").unwrap_or(etag).to_owned();
    etag.is_empty() || known.etag.is_empty() || opaque(etag) == opaque(&known.etag)
}

/// Gives the name to an outcome whose object may be reused later. What was trusted unasked is not confirmed by that, and a body that ended only
/// because its connection did may lack its end for ever.
pub fn mark(outcome: &mut ResourceOutcome, reuse: Option<&Reuse>, how: Option<How>) {
    let is_whole = matches!(outcome.http_status, 200 | 203 | 304) && !outcome.context.contains_key("length_unknown");
    if let Some(reuse) = reuse
        && is_whole
        && how != Some(How::Trusted)
    {
        outcome.reuse_key = Bytes::copy_from_slice(&reuse.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(etag: &str, last_modified: &str, age_ms: u64) -> Remembered {
        Remembered {
            etag: etag.into(),
            last_modified: last_modified.into(),
            sha256: vec![1; 32].into(),
            size: 100,
            storage_url: "s3://b/k".into(),
            final_url: "http://h/a".into(),
            age_ms,
            ..Default::default()
        }
    }

    fn wish(max_age: u64) -> Wish {
        Wish { max_age: Duration::from_secs(max_age), max_bytes: 100, expected_size: None }
    }

    /// | remembered | wish | plan |
    #[test]
    fn table_of_plans() {
        let none_match = |etag: &str| Plan::Ask(Condition::NoneMatch(etag.into()));
        let since = |date: &str| Plan::Ask(Condition::ModifiedSince(date.into()));
        let date = "Thu, 26 Nov 2026 07:00:00 GMT";
        let table = [
            (known("\"a\"", "", 0), wish(0), none_match("\"a\"")),
            (known("W/\"a\"", date, 0), wish(0), none_match("W/\"a\"")),
            (known("", date, 0), wish(0), since(date)),
            (known("", "", 0), wish(0), Plan::Compare),
            (known("\"a\"", "", 60_000), wish(60), Plan::Trust),
            (known("\"a\"", "", 60_001), wish(60), none_match("\"a\"")),
            (known("\"a\"", "", u64::MAX), wish(u64::MAX / 1000), none_match("\"a\"")),
            (known("", "", 1), wish(60), Plan::Trust),
            (known("\"a\"", "", 0), Wish { max_bytes: 99, ..wish(60) }, Plan::Useless),
            (known("\"a\"", "", 0), Wish { expected_size: Some(99), ..wish(60) }, Plan::Useless),
            (known("\"a\"", "", 0), Wish { expected_size: Some(100), ..wish(60) }, Plan::Trust),
            (Remembered { sha256: Bytes::new(), ..known("\"a\"", "", 0) }, wish(60), Plan::Useless),
        ];
        for (known, wish, expected) in table {
            assert_eq!(plan(&known, wish), expected, "{known:?} {wish:?}");
        }
    }

    /// | URL asked | the task's own URL, for the first request | the condition goes along |
    #[test]
    fn table_of_requests_that_take_the_condition_along() {
        let table = [
            ("http://h/a", Some("http://h/a"), true),
            ("http://h/a", None, true),
            ("http://h/b", Some("http://h/a"), true),
            ("http://h/b", Some("http://h/b"), false),
            ("http://h/b", None, false),
            ("https://h/a", None, false),
        ];
        for (url, task_url, expected) in table {
            assert_eq!(belongs(&known("\"a\"", "", 0), url, task_url), expected, "{url} {task_url:?}");
        }
    }

    /// | ETag remembered | ETag of the 304 | it is believed |
    #[test]
    fn table_of_304s() {
        let table = [
            ("\"a\"", "\"a\"", true),
            ("\"a\"", "W/\"a\"", true),
            ("W/\"a\"", "\"a\"", true),
            ("\"a\"", "", true),
            ("", "\"b\"", true),
            ("\"a\"", "\"b\"", false),
            ("W/\"a\"", "W/\"b\"", false),
        ];
        for (etag, answered, expected) in table {
            assert_eq!(confirms(&known(etag, "", 0), answered), expected, "{etag} {answered}");
        }
    }

    /// | status | length unknown | how | remembered |
    #[test]
    fn table_of_what_is_remembered() {
        let table = [
            (200, false, None, true),
            (200, false, Some(How::SameBody), true),
            (304, false, Some(How::NotModified), true),
            (203, false, None, true),
            (0, false, Some(How::Trusted), false),
            (200, true, None, false),
            (204, false, None, false),
            (206, false, None, false),
        ];
        for (http_status, length_unknown, how, expected) in table {
            let mut outcome = ResourceOutcome { http_status, ..Default::default() };
            if length_unknown {
                outcome.context.insert("length_unknown".into(), "true".into());
            }
            mark(&mut outcome, Some(&Reuse { key: [7; KEY_BYTES], known: None }), how);
            assert_eq!(!outcome.reuse_key.is_empty(), expected, "{http_status} {length_unknown} {how:?}");
            let mut outcome = ResourceOutcome { http_status, ..Default::default() };
            mark(&mut outcome, None, how);
            assert!(outcome.reuse_key.is_empty());
        }
    }
}
