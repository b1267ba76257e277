//! What is remembered of a URL whose object is stored, and the name under which it is remembered. Pure.

use prost::Message;
use sha2::{Digest, Sha256};

use crate::message::{DownloadTask, ResourceOutcome, ResourceState};

/// Length of a [`key`], bytes.
pub const KEY_BYTES: usize = 32;

/// What is remembered of a URL. Kept in the ledger's database and in the library's file: tags are for good.
#[derive(Clone, PartialEq, Message)]
pub struct Remembered {
    /// ETag of the origin, as sent.
    #[prost(string, tag = "1")]
    pub etag: String,
    /// Last-Modified of the origin, as sent.
    #[prost(string, tag = "2")]
    pub last_modified: String,
    /// SHA-256 of the object.
    #[prost(bytes = "bytes", tag = "3")]
    pub sha256: bytes::Bytes,
    /// Its size.
    #[prost(uint64, tag = "4")]
    pub size: u64,
    /// Its URL.
    #[prost(string, tag = "5")]
    pub storage_url: String,
    /// The store's ETag, where it has any.
    #[prost(string, tag = "6")]
    pub storage_etag: String,
    /// Content-Type of the origin.
    #[prost(string, tag = "7")]
    pub content_type: String,
    /// Content-Encoding of the origin, empty for none.
    #[prost(string, tag = "8")]
    pub content_encoding: String,
    /// The type that the first bytes speak of.
    #[prost(string, tag = "9")]
    pub sniffed_type: String,
    /// The URL that answered.
    #[prost(string, tag = "10")]
    pub final_url: String,
    /// How long ago the origin confirmed it, ms. Worked out by whoever hands it out, never kept.
    #[prost(uint64, tag = "11")]
    pub age_ms: u64,
}

impl Remembered {
    /// What an outcome is worth remembering; `None` for one that names no object to reuse.
    pub fn of(outcome: &ResourceOutcome) -> Option<Self> {
        let has_object = matches!(outcome.state(), ResourceState::Stored | ResourceState::Reused);
        if !has_object || outcome.sha256.len() != 32 || outcome.storage_url.is_empty() {
            return None;
        }
        Some(Self {
            etag: outcome.etag.clone(),
            last_modified: outcome.last_modified.clone(),
            sha256: outcome.sha256.clone(),
            size: outcome.size,
            storage_url: outcome.storage_url.clone(),
            storage_etag: outcome.storage_etag.clone(),
            content_type: outcome.content_type.clone(),
            content_encoding: outcome.context.get("content_encoding").cloned().unwrap_or_default(),
            sniffed_type: outcome.sniffed_type.clone(),
            final_url: outcome.final_url.clone(),
            age_ms: 0,
        })
    }
}

/// Hashes parts so that no two lists of them meet.
pub fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; KEY_BYTES] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The name under which what became of this task is remembered: everything that the answer or the object may depend on, hashed. `scope` stands for
/// the settings of its job type. Another tenant's task never has the same.
///
/// `None` for a task that asks for a part, or with conditions of its own: its answer is not the URL's.
pub fn key(scope: &[u8], task: &DownloadTask) -> Option<[u8; KEY_BYTES]> {
    let is_own = |name: &str| name == "range" || name.starts_with("if-");
    if task.headers.iter().any(|header| is_own(&header.name.to_ascii_lowercase())) {
        return None;
    }
    let mut headers: Vec<(String, &str)> =
        task.headers.iter().map(|header| (header.name.to_ascii_lowercase(), header.value.as_str())).collect();
    // Stable: fields of one name keep their order, which means something.
    headers.sort_by(|a, b| a.0.cmp(&b.0));
    let checksum = task.attributes.as_ref().map_or("", |attributes| attributes.checksum_hint.as_str());
    let mut parts: Vec<&[u8]> =
        vec![b"1", scope, task.tenant.as_bytes(), task.job_type.as_bytes(), task.url.as_bytes(), checksum.as_bytes()];
    let counts = [headers.len(), task.proxy_hint.as_ref().map_or(0, |hint| 1 + hint.fallbacks.len())].map(|count| count.to_be_bytes());
    parts.extend(counts.iter().map(|count| &count[..]));
    parts.extend(headers.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]));
    if let Some(hint) = &task.proxy_hint {
        parts.push(hint.primary_pool.as_bytes());
        parts.extend(hint.fallbacks.iter().map(String::as_bytes));
    }
    if let Some(hint) = &task.storage_hint {
        parts.push(hint.bucket.as_bytes());
        parts.extend(hint.metadata.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]));
    }
    Some(digest(parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{HttpHeader, ProxyHint, StorageHint, TaskAttributes};

    fn header(name: &str, value: &str) -> HttpHeader {
        HttpHeader { name: name.into(), value: value.into() }
    }

    fn task(change: impl FnOnce(&mut DownloadTask)) -> DownloadTask {
        let mut task = DownloadTask {
            job_id: "j".into(),
            job_type: "default".into(),
            tenant: "t".into(),
            url: "http://h/a".into(),
            headers: vec![header("accept", "image/*"), header("cookie", "a=b")],
            ..Default::default()
        };
        change(&mut task);
        task
    }

    /// | what differs | whether it is remembered apart |
    #[test]
    fn table_of_what_is_remembered_apart() {
        type Change = fn(&mut DownloadTask);
        let apart: [(&str, Change); 12] = [
            ("tenant", |task| task.tenant = "u".into()),
            ("job type", |task| task.job_type = "other".into()),
            ("url", |task| task.url = "http://h/b".into()),
            ("a header's value", |task| task.headers[1].value = "a=c".into()),
            ("a header more", |task| task.headers.push(header("x", ""))),
            ("no headers", |task| task.headers.clear()),
            ("the text moved between name and value", |task| task.headers[0] = header("accepti", "mage/*")),
            ("checksum", |task| task.attributes = Some(TaskAttributes { checksum_hint: "md5:00".into(), ..Default::default() })),
            ("proxy", |task| task.proxy_hint = Some(ProxyHint { primary_pool: "p".into(), fallbacks: vec![] })),
            ("fallbacks", |task| task.proxy_hint = Some(ProxyHint { primary_pool: "p".into(), fallbacks: vec!["q".into()] })),
            ("bucket", |task| task.storage_hint = Some(StorageHint { bucket: "b".into(), ..Default::default() })),
            ("metadata", |task| {
                task.storage_hint = Some(StorageHint { metadata: [("k".to_owned(), "v".to_owned())].into(), ..Default::default() });
            }),
        ];
        let plain = key(b"s", &task(|_| {})).unwrap();
        let mut seen = std::collections::BTreeSet::from([plain, key(b"another scope", &task(|_| {})).unwrap()]);
        for (what, change) in apart {
            assert!(seen.insert(key(b"s", &task(change)).unwrap()), "{what}");
        }
        let alike: [(&str, Change); 5] = [
            ("job", |task| task.job_id = "k".into()),
            ("id", |task| task.resource_id = "other".into()),
            ("attempt and generation", |task| (task.attempt, task.generation) = (3, 2)),
            ("the order of names", |task| task.headers.reverse()),
            ("the case of names", |task| task.headers[0].name = "Accept".into()),
        ];
        for (what, change) in alike {
            assert_eq!(key(b"s", &task(change)), Some(plain), "{what}");
        }
    }

    #[test]
    fn tasks_with_conditions_of_their_own_are_not_remembered() {
        for name in ["Range", "if-none-match", "If-Modified-Since", "if-match", "if-unmodified-since", "if-range"] {
            assert_eq!(key(b"s", &task(|task| task.headers.push(header(name, "x")))), None, "{name}");
        }
    }

    #[test]
    fn only_outcomes_with_a_whole_object_are_worth_remembering() {
        let outcome = |state: ResourceState| ResourceOutcome {
            state: state as i32,
            sha256: vec![1; 32].into(),
            size: 3,
            storage_url: "s3://b/k".into(),
            etag: "\"e\"".into(),
            context: [("content_encoding".to_owned(), "br".to_owned())].into(),
            ..Default::default()
        };
        for state in [ResourceState::Stored, ResourceState::Reused] {
            let remembered = Remembered::of(&outcome(state)).unwrap();
            assert_eq!((remembered.etag.as_str(), remembered.size, remembered.content_encoding.as_str()), ("\"e\"", 3, "br"));
        }
        for state in [ResourceState::Failed, ResourceState::Filtered, ResourceState::Cancelled, ResourceState::Unknown] {
            assert_eq!(Remembered::of(&outcome(state)), None);
        }
        assert_eq!(Remembered::of(&ResourceOutcome { sha256: vec![1; 31].into(), ..outcome(ResourceState::Stored) }), None);
        assert_eq!(Remembered::of(&ResourceOutcome { storage_url: String::new(), ..outcome(ResourceState::Stored) }), None);
    }
}
