//! Key templates: `{placeholder}` in a path, filled from a task.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::{KeyError, ObjectKey, check_segment, finish_segment, is_plain, push_hex, push_percent};
use crate::message::DownloadTask;

/// The placeholders, for messages.
pub(super) const KNOWN: &str = "job_type, job_id, resource_id, index, tenant, host, ext, date, shard, url_hash";
/// A longer suffix of a URL's path is no file extension.
const MAX_EXT: usize = 10;

/// What a template is filled from.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyParts<'a> {
    /// `{job_type}`
    pub job_type: &'a str,
    /// `{job_id}`; `{date}` is its date when it is a UUIDv7
    pub job_id: &'a str,
    /// `{resource_id}`
    pub resource_id: &'a str,
    /// `{index}`: the resource's place in its manifest
    pub index: u32,
    /// `{tenant}`
    pub tenant: &'a str,
    /// The task's URL, as sent: `{host}`, `{ext}` (lower-case, empty when there is none) and `{url_hash}` (SHA-256 in hex)
    pub url: &'a str,
}

impl<'a> KeyParts<'a> {
    /// The parts of a task.
    pub fn of(task: &'a DownloadTask) -> Self {
        Self {
            job_type: &task.job_type,
            job_id: &task.job_id,
            resource_id: &task.resource_id,
            index: task.resource_index,
            tenant: &task.tenant,
            url: &task.url,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    JobType,
    JobId,
    ResourceId,
    Index,
    Tenant,
    Host,
    Ext,
    Date,
    Shard,
    UrlHash,
}

impl Field {
    fn parse(name: &str) -> Result<Self, KeyError> {
        Ok(match name {
            "job_type" => Self::JobType,
            "job_id" => Self::JobId,
            "resource_id" => Self::ResourceId,
            "index" => Self::Index,
            "tenant" => Self::Tenant,
            "host" => Self::Host,
            "ext" => Self::Ext,
            "date" => Self::Date,
            "shard" => Self::Shard,
            "url_hash" => Self::UrlHash,
            _ => return Err(KeyError::UnknownPlaceholder),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(Field),
}

/// A checked template. The default gives `resources/{job_type}/{job_id}/{resource_id}`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyTemplate {
    /// `None` is the default layout.
    segments: Option<Vec<Vec<Piece>>>,
}

impl KeyTemplate {
    /// Checks a template of the configuration.
    ///
    /// `{date}` is the job's day (`2026-11-23`, UTC), `{shard}` two hex digits that spread a job's resources. A dot before an empty `{ext}` is dropped.
    /// Errors: empty or dot segments, unknown placeholders, lone braces, and templates that give all resources of a job one key.
    pub fn parse(template: &str) -> Result<Self, KeyError> {
        let mut segments = Vec::new();
        let mut unique = false;
        for text in template.split('/') {
            check_segment(text)?;
            let pieces = parse_segment(text)?;
            unique |= pieces.iter().any(|piece| matches!(piece, Piece::Field(Field::ResourceId | Field::Index | Field::UrlHash)));
            segments.push(pieces);
        }
        let segments = Some(segments);
        if unique { Ok(Self { segments }) } else { Err(KeyError::NotUnique) }
    }

    /// The key of a resource. Errors only when the key would be longer than 1024 bytes.
    pub fn render(&self, parts: &KeyParts<'_>) -> Result<ObjectKey, KeyError> {
        let Some(segments) = &self.segments else {
            return Ok(ObjectKey::resource(parts.job_type, parts.job_id, parts.resource_id));
        };
        let mut key = String::with_capacity(128);
        for pieces in segments {
            if !key.is_empty() {
                key.push('/');
            }
            let start = key.len();
            for piece in pieces {
                match piece {
                    Piece::Text(text) => push_percent(&mut key, text.as_bytes(), is_plain),
                    Piece::Field(field) => push_field(&mut key, start, *field, parts),
                }
            }
            finish_segment(&mut key, start);
        }
        ObjectKey(key).checked()
    }
}

fn parse_segment(text: &str) -> Result<Vec<Piece>, KeyError> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (before, after) = rest.split_once('{').map_or((rest, None), |(before, after)| (before, Some(after)));
        if before.contains('}') {
            return Err(KeyError::UnbalancedBrace);
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        rest = match after {
            None => "",
            Some(after) => {
                let (name, rest) = after.split_once('}').ok_or(KeyError::UnbalancedBrace)?;
                pieces.push(Piece::Field(Field::parse(name)?));
                rest
            }
        };
    }
    Ok(pieces)
}

fn push_field(out: &mut String, start: usize, field: Field, parts: &KeyParts<'_>) {
    let encoded = |out: &mut String, value: &str| push_percent(out, value.as_bytes(), is_plain);
    match field {
        Field::JobType => encoded(out, parts.job_type),
        Field::JobId => encoded(out, parts.job_id),
        Field::ResourceId => encoded(out, parts.resource_id),
        Field::Tenant => encoded(out, parts.tenant),
        Field::Index => {
            // Writing to a String cannot fail.
            let _ = write!(out, "{}", parts.index);
        }
        Field::Host => {
            let url = url::Url::parse(parts.url).ok();
            encoded(out, url.as_ref().and_then(url::Url::host_str).unwrap_or("unknown"));
        }
        Field::Ext => match extension(parts.url) {
            Some(ext) => encoded(out, &ext),
            None if out[start..].ends_with('.') => {
                out.pop();
            }
            None => {}
        },
        Field::Date => out.push_str(&job_date(parts.job_id)),
        Field::Shard => {
            let digest = Sha256::new().chain_update(parts.job_id).chain_update([0]).chain_update(parts.resource_id).finalize();
            push_hex(out, &digest[..1]);
        }
        Field::UrlHash => push_hex(out, &Sha256::digest(parts.url)),
    }
}

/// The file extension of a URL's path, lower-case.
fn extension(url: &str) -> Option<String> {
    let path = url.split(['?', '#']).next()?;
    let (_, after_scheme) = path.split_once("://")?;
    let (_, name) = after_scheme.rsplit_once('/')?;
    let (stem, ext) = name.rsplit_once('.')?;
    let fine = !stem.is_empty() && (1..=MAX_EXT).contains(&ext.len()) && ext.bytes().all(|byte| byte.is_ascii_alphanumeric());
    fine.then(|| ext.to_ascii_lowercase())
}

/// The day a job was made, from its UUIDv7: the same for every attempt, whatever the clock says. Other ids have the day of the epoch.
fn job_date(job_id: &str) -> String {
    let version_7 = uuid::Uuid::try_parse(job_id).ok().filter(|id| id.get_version_num() == 7);
    let seconds = version_7.and_then(|id| id.get_timestamp()).map_or(0, |timestamp| timestamp.to_unix().0);
    let time = i64::try_from(seconds).ok().and_then(|seconds| chrono::DateTime::from_timestamp(seconds, 0));
    time.unwrap_or_default().date_naive().to_string()
}
