//! Tasks as the library gives them: a JSON list of URLs and of objects with what goes with one.

use std::collections::BTreeMap;
use std::fmt;

use fetchbox_engine::Submission;
use fetchbox_model::key::named_key;
use fetchbox_model::message::{DownloadTask, HttpHeader, ProxyHint, StorageHint, TaskAttributes};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};

/// The tasks of `json`, counted from `first_index`; with `named` those without a key of their own are named after their id or URL.
pub fn submissions(json: &[u8], first_index: u32, named: bool) -> Result<Vec<Submission>, serde_json::Error> {
    let tasks: Vec<Given> = serde_json::from_slice(json)?;
    Ok((first_index..).zip(tasks).map(|(index, given)| given.0.into_submission(index, named)).collect())
}

/// The same for bare URLs.
pub fn of_urls(urls: Vec<String>, first_index: u32, named: bool) -> Vec<Submission> {
    let task = |(index, url)| Task { url, ..Task::default() }.into_submission(index, named);
    (first_index..).zip(urls).map(task).collect()
}

/// A bare URL, or an object.
struct Given(Task);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Task {
    url: String,
    id: Option<String>,
    headers: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    proxy: Option<String>,
    key: Option<String>,
    bucket: Option<String>,
    key_prefix: Option<String>,
    metadata: BTreeMap<String, String>,
    /// Unix milliseconds; 0 for none.
    deadline: u64,
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Given;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL or a task")
            }

            fn visit_str<E>(self, url: &str) -> Result<Given, E> {
                Ok(Given(Task { url: url.to_owned(), ..Task::default() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Given, A::Error> {
                Task::deserialize(MapAccessDeserializer::new(map)).map(Given)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Task {
    fn into_submission(mut self, index: u32, named: bool) -> Submission {
        let key = match self.key {
            Some(key) => key,
            None if named => named_key(self.url.as_bytes(), self.id.as_deref().map(str::as_bytes)),
            None => String::new(),
        };
        let attributes = (!self.tags.is_empty()).then(|| TaskAttributes {
            checksum_hint: self.tags.remove("checksum_hint").unwrap_or_default(),
            mime_hint: self.tags.get("content_type").cloned().unwrap_or_default(),
            tags: self.tags,
            extra: bytes::Bytes::new(),
        });
        let hint = StorageHint {
            bucket: self.bucket.unwrap_or_default(),
            key_prefix: self.key_prefix.unwrap_or_default(),
            metadata: self.metadata,
            key,
        };
        let task = DownloadTask {
            job_id: "fetch".to_owned(),
            job_type: "default".to_owned(),
            resource_id: self.id.unwrap_or_else(|| index.to_string()),
            url: self.url,
            headers: self.headers.into_iter().map(|(name, value)| HttpHeader { name: name.to_ascii_lowercase(), value }).collect(),
            proxy_hint: self.proxy.map(|primary_pool| ProxyHint { primary_pool, fallbacks: Vec::new() }),
            storage_hint: Some(hint),
            attributes,
            resource_index: index,
            deadline_ms: self.deadline,
            ..DownloadTask::default()
        };
        Submission::new(task, u64::from(index))
    }
}
