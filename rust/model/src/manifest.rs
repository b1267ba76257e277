//! Manifests: what a crawler posts, checked whole, and made into tasks.
//!
//! [`parse`] reports every fault of a document at once, each with an RFC 6901 pointer. Members the contract does not name are passed over, so
//! that senders may add their own; a name given twice is refused everywhere, also inside `metadata`.

use std::borrow::Cow;

use foldhash::{HashMap, HashMapExt};
use serde::Deserialize;
use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};
use serde_json::value::RawValue;

pub use attributes::{Attributes, Priority};
pub use change::{Change, host_port};
pub use check::{MAX_ID_CHARS, MAX_URL_BYTES, has_empty_label};
pub use compile::{
    CompileContext, Compiled, Facts, PartitionBatch, PartitionBy, ProxyContext, StorageContext, compile, compile_tasks, head_of,
    partition_at, partition_of, partition_of_task,
};
pub use fault::{Fault, MAX_FAULTS};

use crate::failure::Code;
use fault::{Faults, add_json_error};
use shape::{As, Pairs};

mod attributes;
mod change;
mod check;
mod compile;
mod fault;
mod read;
mod resource;
mod shape;

/// The one version of manifests there is.
pub const VERSION: &str = "v1";

/// How much a manifest may hold, and which URL schemes beside http and https.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Resources in one manifest.
    pub max_resources: usize,
    /// Headers of one resource.
    pub max_headers: usize,
    /// Bytes of one header's value.
    pub max_header_bytes: usize,
    /// Schemes that the job type's transport speaks beside http and https, such as ftp.
    pub allow_schemes: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_resources: 1000, max_headers: 32, max_header_bytes: 8_000, allow_schemes: Vec::new() }
    }
}

/// A checked manifest; it borrows from the body it was read from.
#[derive(Debug)]
pub struct Manifest<'a> {
    /// The caller's own data, as it was sent.
    pub metadata: &'a RawValue,
    /// What to fetch.
    pub resources: Vec<Resource<'a>>,
    /// What the manifest says of its job.
    pub attributes: Attributes<'a>,
}

/// One URL to fetch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource<'a> {
    /// The URL as it was sent.
    pub url: Cow<'a, str>,
    /// The URL's host, lower-case ASCII.
    pub host: Cow<'a, str>,
    /// The id, given or made from the index.
    pub id: Cow<'a, str>,
    /// Headers with lower-case names.
    pub headers: Pairs<'a>,
    /// The caller's tags.
    pub tags: Pairs<'a>,
    /// The key the caller chose for the object.
    pub key: Option<Cow<'a, str>>,
    /// What only handlers may say.
    pub placement: Option<Box<Placement<'a>>>,
}

/// Where a handler sends a task, instead of the job type's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement<'a> {
    /// Bucket or store name.
    pub bucket: Option<Cow<'a, str>>,
    /// Prefix of the object's key.
    pub key_prefix: Option<Cow<'a, str>>,
    /// Kept on the object.
    pub metadata: Pairs<'a>,
    /// Name of the proxy pool to begin with.
    pub proxy: Option<Cow<'a, str>>,
    /// Names of the pools to go on with.
    pub fallbacks: Vec<Cow<'a, str>>,
}

/// Reads and checks a manifest.
///
/// Errors: every fault, at most [`MAX_FAULTS`], in the order they stand in the document.
pub fn parse<'a>(body: &'a [u8], limits: &Limits) -> Result<Manifest<'a>, Vec<Fault>> {
    let mut faults = Faults::new(limits, false);
    let top = read_document(body, &mut faults, |faults, de| serde::de::DeserializeSeed::deserialize(As(read::Top { faults, body }), de));
    let faults = faults.into_list();
    match top.flatten() {
        Some(manifest) if faults.is_empty() => Ok(manifest),
        _ => Err(faults),
    }
}

type Json<'a> = serde_json::Deserializer<serde_json::de::StrRead<'a>>;

/// Reads one JSON document and what follows it, which must be nothing.
fn read_document<'a, T>(
    body: &'a [u8],
    faults: &mut Faults<'_>,
    read: impl FnOnce(&mut Faults<'_>, &mut Json<'a>) -> serde_json::Result<T>,
) -> Option<T> {
    let text = match std::str::from_utf8(body) {
        Ok(text) => text,
        Err(error) => {
            faults.add(Code::ValidationBadJson, format!("the body is not UTF-8 at byte {}", error.valid_up_to()));
            return None;
        }
    };
    let mut de = serde_json::Deserializer::from_str(text);
    match read(faults, &mut de).and_then(|value| de.end().map(|()| value)) {
        Ok(value) => Some(value),
        Err(error) => {
            add_json_error(faults, text, 0, &error);
            None
        }
    }
}

/// Checks what only a whole list shows: ids and keys that meet.
fn check_unique(resources: &[Resource<'_>], faults: &mut Faults<'_>) {
    let mut ids = HashMap::with_capacity(resources.len());
    let keys: HashMap<&str, usize> = resources.iter().enumerate().rev().filter_map(|(i, r)| Some((r.key.as_deref()?, i))).collect();
    for (index, resource) in resources.iter().enumerate() {
        faults.enter_index(index);
        if !resource.id.is_empty() {
            let first = *ids.entry(&*resource.id).or_insert(index);
            if first != index {
                faults.add_below("id", Code::ValidationDuplicateId, format!("resource {first} has this id already"));
            }
        }
        if let Some(key) = &resource.key {
            let first = keys.get(&**key).copied().unwrap_or(index);
            if first != index {
                faults.add_below("key", Code::ValidationBadKey, format!("resource {first} has this key already"));
            }
            // A file store cannot hold an object and a directory of one name.
            let parent = key.match_indices('/').find_map(|(slash, _)| keys.get(&key[..slash]));
            if let Some(parent) = parent {
                faults.add_below("key", Code::ValidationBadKey, format!("the key of resource {parent} is a directory of this one"));
            }
        }
        faults.leave();
    }
}

impl Manifest<'_> {
    /// The manifest in its normal form, for handlers: defaults filled in, header names in lower case.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings, maps of strings and RawValue have no way to fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Serialize for Manifest<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Manifest", 4)?;
        out.serialize_field("manifest_version", VERSION)?;
        out.serialize_field("metadata", self.metadata)?;
        out.serialize_field("resources", &self.resources)?;
        match self.attributes.raw {
            Some(raw) => out.serialize_field("attributes", raw)?,
            None => out.serialize_field("attributes", &PairsOut(&Vec::new()))?,
        }
        out.end()
    }
}

impl Serialize for Resource<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Resource", 5)?;
        out.serialize_field("url", &self.url)?;
        out.serialize_field("id", &self.id)?;
        out.serialize_field("headers", &PairsOut(&self.headers))?;
        out.serialize_field("tags", &PairsOut(&self.tags))?;
        match &self.key {
            Some(key) => out.serialize_field("key", key)?,
            None => out.skip_field("key")?,
        }
        out.end()
    }
}

struct PairsOut<'p, 'a>(&'p Pairs<'a>);

impl Serialize for PairsOut<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
