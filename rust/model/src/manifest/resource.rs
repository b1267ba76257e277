//! The list of resources, as crawlers send it and as handlers build it.

use std::borrow::Cow;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess};

use super::fault::Faults;
use super::shape::{As, Pairs, Report, Seen, Shape, Text, TextList, TextMap, Walk, next_name};
use super::{Placement, Resource, check};
use crate::failure::Code;
use crate::key::{KeyError, ObjectKey};

/// An array of resources.
pub(super) struct Resources<'c, 'l, 'j> {
    pub faults: &'c mut Faults<'l>,
    /// Handlers may also place a task, and may build none.
    pub for_handler: bool,
    /// The job whose objects a key may name; empty when it has no id yet.
    pub job_id: &'j str,
}

impl<'de> Shape<'de> for Resources<'_, '_, '_> {
    type Out = Option<Vec<Resource<'de>>>;
    const WANTED: &'static str = "an array of resources";

    fn reporter(&mut self) -> &mut dyn Report {
        self.faults
    }

    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Out, A::Error> {
        let Self { faults, for_handler, job_id } = self;
        let max = faults.limits.max_resources;
        let mut list = Vec::with_capacity(64);
        loop {
            if faults.is_full() {
                return Err(A::Error::custom("enough faults"));
            }
            if list.len() == max {
                break;
            }
            faults.enter_index(list.len());
            let next = seq.next_element_seed(As(One { faults, for_handler, job_id, index: list.len() }))?;
            faults.leave();
            match next {
                Some(resource) => list.push(resource),
                None if list.is_empty() && !for_handler => {
                    faults.add(Code::ValidationTooFew, "at least one resource is wanted");
                    return Ok(Some(list));
                }
                None => return Ok(Some(list)),
            }
        }
        let mut more = 0usize;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            more += 1;
        }
        if more > 0 {
            faults.add(Code::ValidationTooMany, format!("{} resources, at most {max} are allowed", list.len() + more));
        }
        Ok(Some(list))
    }
}

struct One<'c, 'l, 'j> {
    faults: &'c mut Faults<'l>,
    for_handler: bool,
    job_id: &'j str,
    index: usize,
}

impl<'de> Shape<'de> for One<'_, '_, '_> {
    type Out = Resource<'de>;
    const WANTED: &'static str = "an object with a url";

    fn reporter(&mut self) -> &mut dyn Report {
        self.faults
    }

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Out, A::Error> {
        let Self { faults, for_handler, job_id, index } = self;
        let mut resource = Resource::default();
        let mut placement = Placement::default();
        let mut seen = Seen::default();
        let mut has_url = false;
        while let Some(name) = next_name(&mut map, faults)? {
            let field = Field::of(&name, for_handler);
            match field {
                Some(field) => faults.enter(field.name()),
                None => faults.enter_named(&name),
            }
            let fresh = seen.check(&name, faults);
            match field.filter(|_| fresh) {
                Some(Field::Url) => {
                    has_url = true;
                    if let Some(url) = map.next_value_seed(As(Text(faults)))? {
                        take_url(url, &mut resource, faults);
                    }
                }
                Some(Field::Id) => {
                    if let Some(id) = map.next_value_seed(As(Text(faults)))? {
                        report(check::id(&id), faults);
                        resource.id = id;
                    }
                }
                Some(Field::Headers) => {
                    let headers = map.next_value_seed(As(TextMap(faults)))?;
                    resource.headers = take_headers(headers, faults);
                }
                Some(Field::Tags) => {
                    resource.tags = map.next_value_seed(As(TextMap(faults)))?;
                    check_tags(&resource.tags, faults);
                }
                Some(Field::Key) => {
                    resource.key = map.next_value_seed(As(Text(faults)))?;
                    check_key(resource.key.as_deref(), |key| ObjectKey::chosen(key, job_id), faults);
                }
                Some(Field::Bucket) => placement.bucket = map.next_value_seed(As(Text(faults)))?,
                Some(Field::KeyPrefix) => {
                    placement.key_prefix = map.next_value_seed(As(Text(faults)))?;
                    let prefix = placement.key_prefix.as_deref().map(|prefix| prefix.trim_matches('/')).filter(|prefix| !prefix.is_empty());
                    check_key(prefix, ObjectKey::from_path, faults);
                }
                Some(Field::Metadata) => placement.metadata = map.next_value_seed(As(TextMap(faults)))?,
                Some(Field::Proxy) => {
                    (placement.proxy, placement.fallbacks) = map.next_value_seed(As(Proxy(faults)))?;
                }
                None => map.next_value_seed(Walk(faults))?,
            }
            faults.leave();
        }
        if !has_url || (for_handler && resource.url.is_empty()) {
            faults.add_below("url", Code::ValidationMissing, "a resource has a url");
        }
        if resource.id.is_empty() {
            resource.id = Cow::Owned(index.to_string());
        }
        if placement != Placement::default() {
            resource.placement = Some(Box::new(placement));
        }
        Ok(resource)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Url,
    Id,
    Headers,
    Tags,
    Key,
    Bucket,
    KeyPrefix,
    Metadata,
    Proxy,
}

impl Field {
    fn of(name: &str, for_handler: bool) -> Option<Self> {
        Some(match name {
            "url" => Self::Url,
            "id" => Self::Id,
            "headers" => Self::Headers,
            "tags" => Self::Tags,
            "key" => Self::Key,
            "bucket" if for_handler => Self::Bucket,
            "key_prefix" if for_handler => Self::KeyPrefix,
            "metadata" if for_handler => Self::Metadata,
            "proxy" if for_handler => Self::Proxy,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Id => "id",
            Self::Headers => "headers",
            Self::Tags => "tags",
            Self::Key => "key",
            Self::Bucket => "bucket",
            Self::KeyPrefix => "key_prefix",
            Self::Metadata => "metadata",
            Self::Proxy => "proxy",
        }
    }
}

/// A pool's name, or an object of `primary` and `fallbacks`.
struct Proxy<'c, 'l>(&'c mut Faults<'l>);

impl<'de> Shape<'de> for Proxy<'_, '_> {
    type Out = (Option<Cow<'de, str>>, Vec<Cow<'de, str>>);
    const WANTED: &'static str = "a pool's name or an object of primary and fallbacks";

    fn reporter(&mut self) -> &mut dyn Report {
        self.0
    }

    fn text(self, value: Cow<'de, str>) -> Self::Out {
        (Some(value), Vec::new())
    }

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Out, A::Error> {
        let faults = self.0;
        let mut out = Self::Out::default();
        while let Some(name) = next_name(&mut map, faults)? {
            faults.enter_named(&name);
            match &*name {
                "primary" => out.0 = map.next_value_seed(As(Text(faults)))?,
                "fallbacks" => out.1 = map.next_value_seed(As(TextList(faults)))?,
                _ => map.next_value_seed(Walk(faults))?,
            }
            faults.leave();
        }
        Ok(out)
    }
}

fn report(result: Result<(), check::Problem>, faults: &mut Faults<'_>) {
    if let Err((code, message)) = result {
        faults.add(code, message);
    }
}

fn take_url<'a>(url: Cow<'a, str>, resource: &mut Resource<'a>, faults: &mut Faults<'_>) {
    let schemes = &faults.limits.allow_schemes;
    let checked = match &url {
        Cow::Borrowed(text) => check::url(text, schemes),
        Cow::Owned(text) => check::url(text, schemes).map(|host| Cow::Owned(host.into_owned())),
    };
    match checked {
        Ok(host) => resource.host = host,
        Err((code, message)) => faults.add(code, message),
    }
    resource.url = url;
}

/// Checks headers and brings their names to lower case.
pub(super) fn take_headers<'a>(headers: Pairs<'a>, faults: &mut Faults<'_>) -> Pairs<'a> {
    let limits = faults.limits;
    if headers.len() > limits.max_headers {
        faults.add(Code::ValidationTooMany, format!("{} headers, at most {} are allowed", headers.len(), limits.max_headers));
        return Vec::new();
    }
    let mut out: Pairs<'a> = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let sent = name.clone();
        match check::header(name, &value, limits.max_header_bytes) {
            Ok(name) if out.iter().any(|(earlier, _)| *earlier == name) => {
                faults.add_below(&sent, Code::ValidationDuplicateKey, "header names are the same in upper and lower case");
            }
            Ok(name) => out.push((name, value)),
            Err((code, message)) => faults.add_below(&sent, code, message),
        }
    }
    out
}

fn check_tags(tags: &Pairs<'_>, faults: &mut Faults<'_>) {
    for (name, value) in tags {
        let result = match &**name {
            "checksum_hint" => check::checksum(value).map(drop),
            "expected_size" => check::size(value),
            "content_type" => check::media_type(value),
            _ => continue,
        };
        faults.enter_named(name);
        report(result, faults);
        faults.leave();
    }
}

fn check_key(key: Option<&str>, make: impl FnOnce(&str) -> Result<ObjectKey, KeyError>, faults: &mut Faults<'_>) {
    if let Some(Err(error)) = key.map(make) {
        let code = if error == KeyError::TooLong { Code::ValidationTooLong } else { Code::ValidationBadKey };
        faults.add(code, error.to_string());
    }
}
