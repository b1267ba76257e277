//! Where objects lie in the store, and the URLs of those places.
//!
//! Every value that comes from outside is encoded as one path segment, so that no id can leave its prefix and different ids never meet:
//! bytes other than `A–Z a–z 0–9 . _ ~ -` become `%XX`, as does a leading dot (no segment is `.` or `..`, and names with a leading dot stay free
//! for staging), the empty value is `%`, and what would be longer than 255 bytes is cut and ends in `%~` and its SHA-256.

use std::fmt;
use std::path::Path;

use sha2::{Digest, Sha256};

pub use named::named_key;
pub use template::{KeyParts, KeyTemplate};

mod named;
mod template;

/// Longest segment of a key, in bytes: what file systems allow a name.
pub const MAX_SEGMENT_BYTES: usize = 255;
/// Longest key, in bytes: what S3 allows.
pub const MAX_KEY_BYTES: usize = 1024;
const HASH_MARK: &str = "%~";
const HASH_HEX: usize = 64;

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Nothing between two slashes, or a slash at an end.
    #[error("a key has a name between any two slashes and none at its ends")]
    EmptySegment,
    /// `.` or `..` as a segment.
    #[error("a key may not hold the segments \".\" or \"..\"")]
    DotSegment,
    /// More than [`MAX_KEY_BYTES`] once encoded.
    #[error("the key is longer than 1024 bytes once encoded")]
    TooLong,
    /// Under `manifests/`, or under another job's `resources/`.
    #[error("the key lies where FetchBox keeps its own objects")]
    Reserved,
    /// A brace without its partner.
    #[error("a brace in the template has no partner")]
    UnbalancedBrace,
    /// A placeholder that is not known.
    #[error("the template holds an unknown placeholder; known are {known}", known = template::KNOWN)]
    UnknownPlaceholder,
    /// A template that gives two resources of a job the same key.
    #[error("the template needs {{resource_id}}, {{index}} or {{url_hash}}, else resources overwrite each other")]
    NotUnique,
}

/// The name of an object in its bucket or root: encoded segments between slashes, never empty, never with a dot segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct ObjectKey(String);

impl ObjectKey {
    /// `manifests/{job_type}/{job_id}/manifest.json`.
    pub fn manifest(job_type: &str, job_id: &str) -> Self {
        let mut key = String::from("manifests/");
        push_segment(&mut key, job_type);
        key.push('/');
        push_segment(&mut key, job_id);
        key.push_str("/manifest.json");
        Self(key)
    }

    /// `resources/{job_type}/{job_id}/{resource_id}`, where an object lies unless a key or template says otherwise.
    pub fn resource(job_type: &str, job_id: &str, resource_id: &str) -> Self {
        let mut key = String::with_capacity(96);
        key.push_str("resources/");
        for part in [job_type, job_id] {
            push_segment(&mut key, part);
            key.push('/');
        }
        push_segment(&mut key, resource_id);
        Self(key)
    }

    /// A key that a caller or handler of the job `job_id` chose: split at slashes, each segment encoded.
    ///
    /// Errors: empty and dot segments, more than 1024 bytes, and FetchBox's own places: `manifests/` and the objects of other jobs.
    pub fn chosen(path: &str, job_id: &str) -> Result<Self, KeyError> {
        let key = Self::from_path(path)?;
        let mut segments = key.0.split('/');
        let reserved = match segments.next() {
            Some("manifests") => true,
            Some("resources") => segments.nth(1).is_some_and(|other| uuid::Uuid::try_parse(other).is_ok() && other != job_id),
            _ => false,
        };
        if reserved { Err(KeyError::Reserved) } else { Ok(key) }
    }

    /// A path of the configuration, such as a prefix: split at slashes, each segment encoded.
    pub fn from_path(path: &str) -> Result<Self, KeyError> {
        let mut key = String::with_capacity(path.len());
        for segment in path.split('/') {
            check_segment(segment)?;
            if !key.is_empty() {
                key.push('/');
            }
            push_segment(&mut key, segment);
        }
        Self(key).checked()
    }

    /// This key under a prefix, itself a path; an empty prefix changes nothing and slashes around it do not matter.
    pub fn under(self, prefix: &str) -> Result<Self, KeyError> {
        match prefix.trim_matches('/') {
            "" => Ok(self),
            prefix => {
                let mut key = Self::from_path(prefix)?.0;
                key.push('/');
                key.push_str(&self.0);
                Self(key).checked()
            }
        }
    }

    /// Where the object of a task lies: its own key if it names one, else what the template makes of it; under its key prefix if it names one.
    pub fn of_task(task: &crate::message::DownloadTask, template: &KeyTemplate) -> Result<Self, KeyError> {
        let hint = task.storage_hint.as_ref();
        let key = match hint.map(|hint| hint.key.as_str()).filter(|key| !key.is_empty()) {
            Some(path) => Self::chosen(path, &task.job_id)?,
            None => template.render(&KeyParts::of(task))?,
        };
        key.under(hint.map_or("", |hint| hint.key_prefix.as_str()))
    }

    /// The key of the object behind a URL that [`join_url`] or [`file_url`] made with this base; `None` for a URL that lies elsewhere.
    pub fn of_url(base: &str, url: &str) -> Option<Self> {
        let path = url.strip_prefix(base.trim_end_matches('/'))?.strip_prefix('/')?;
        let mut key = String::with_capacity(path.len());
        for (n, piece) in path.split('%').enumerate() {
            // A key's own percent signs are all that is encoded once more.
            key.push_str(if n == 0 { piece } else { piece.strip_prefix("25")? });
            key.push('%');
        }
        key.pop();
        let key = Self(key).checked().ok()?;
        let is_plain_name = |name: &str| !name.is_empty() && !name.starts_with('.') && name.bytes().all(|b| is_plain(b) || b == b'%');
        key.0.split('/').all(is_plain_name).then_some(key)
    }

    /// The key as the store knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn checked(self) -> Result<Self, KeyError> {
        if self.0.len() > MAX_KEY_BYTES { Err(KeyError::TooLong) } else { Ok(self) }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ObjectKey> for String {
    fn from(key: ObjectKey) -> Self {
        key.0
    }
}

/// Encodes a value as one path segment; different values give different segments.
pub fn segment(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    push_segment(&mut out, value);
    out
}

/// The `file://` URL of an absolute root directory, with a slash at its end.
pub fn root_url(root: &Path) -> String {
    let mut url = String::from("file://");
    push_percent(&mut url, root.as_os_str().as_encoded_bytes(), is_path);
    if !url.ends_with('/') {
        url.push('/');
    }
    url
}

/// The `file://` URL of an object under an absolute root directory.
pub fn file_url(root: &Path, key: &ObjectKey) -> String {
    let mut url = root_url(root);
    push_percent(&mut url, key.0.as_bytes(), is_path);
    url
}

/// The URL of an object under the URL of its bucket or prefix. The base is a URL already and is kept as it is; the key's `%` becomes `%25`.
pub fn join_url(base: &str, key: &ObjectKey) -> String {
    let mut url = String::with_capacity(base.len() + 1 + key.0.len() + 16);
    url.push_str(base.trim_end_matches('/'));
    url.push('/');
    push_percent(&mut url, key.0.as_bytes(), is_path);
    url
}

fn check_segment(segment: &str) -> Result<(), KeyError> {
    match segment {
        "" => Err(KeyError::EmptySegment),
        "." | ".." => Err(KeyError::DotSegment),
        _ => Ok(()),
    }
}

fn push_segment(out: &mut String, value: &str) {
    let start = out.len();
    push_percent(out, value.as_bytes(), is_plain);
    finish_segment(out, start);
}

/// Turns encoded text from `start` on into a segment: not empty, no leading dot, not too long.
fn finish_segment(out: &mut String, start: usize) {
    match out.as_bytes().get(start) {
        None => out.push('%'),
        Some(b'.') => out.replace_range(start..=start, "%2E"),
        Some(_) => {}
    }
    if out.len() - start > MAX_SEGMENT_BYTES {
        let digest = Sha256::digest(&out.as_bytes()[start..]);
        let mut cut = start + MAX_SEGMENT_BYTES - HASH_MARK.len() - HASH_HEX;
        // An escape is kept whole: its percent sign is at most two bytes before the cut.
        if let Some(back) = (1..=2).find(|back| out.as_bytes()[cut - back] == b'%') {
            cut -= back;
        }
        out.truncate(cut);
        out.push_str(HASH_MARK);
        push_hex(out, &digest);
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'-')
}

fn is_path(byte: u8) -> bool {
    is_plain(byte) || byte == b'/'
}

fn push_percent(out: &mut String, bytes: &[u8], plain: fn(u8) -> bool) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.reserve(bytes.len());
    if let Ok(text) = std::str::from_utf8(bytes)
        && bytes.iter().all(|byte| plain(*byte))
    {
        out.push_str(text);
        return;
    }
    for &byte in bytes {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

pub(crate) fn push_hex(out: &mut String, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for &byte in bytes {
        out.push(char::from(HEX[usize::from(byte >> 4)]));
        out.push(char::from(HEX[usize::from(byte & 15)]));
    }
}

#[cfg(test)]
mod tests;
