//! What a manifest says of its job as a whole.

use std::borrow::Cow;

use serde::Serialize;
use serde::de::MapAccess;
use serde_json::value::RawValue;

use super::check;
use super::fault::Faults;
use super::shape::{As, Report, Seen, Shape, Text, TextList, Walk, next_name};
use crate::failure::Code;

/// Longest tenant, crawl id or priority, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// What a receiver may be told of.
const CALLBACK_EVENTS: [&str; 2] = ["job.settled", "resource.failed"];

/// The attributes that FetchBox knows; others are kept in `raw`.
#[derive(Debug, Clone, Default)]
pub struct Attributes<'a> {
    /// All of them as they were sent.
    pub raw: Option<&'a RawValue>,
    /// The tenant the sender claims; whether it may is decided by its token.
    pub tenant: Option<Cow<'a, str>>,
    /// Groups jobs of one crawl.
    pub crawl_id: Option<Cow<'a, str>>,
    /// For the sender's own use in lists.
    pub priority: Option<Priority>,
    /// Told when the job is settled.
    pub callback_url: Option<Cow<'a, str>>,
    /// What it is told of, of [`CALLBACK_EVENTS`]; empty for what it is told of unasked, that the job is settled.
    pub callback_events: Vec<Cow<'a, str>>,
    /// Unix milliseconds after which no task is begun.
    pub deadline_ms: Option<u64>,
}

/// A priority as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Priority {
    /// Such as 5.
    Number(i64),
    /// Such as "high".
    Name(String),
}

pub(super) struct AttributesShape<'c, 'l>(pub &'c mut Faults<'l>);

impl<'de> Shape<'de> for AttributesShape<'_, '_> {
    type Out = Attributes<'de>;
    const WANTED: &'static str = "an object";

    fn reporter(&mut self) -> &mut dyn Report {
        self.0
    }

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Out, A::Error> {
        let faults = self.0;
        let mut out = Attributes::default();
        let mut seen = Seen::default();
        while let Some(name) = next_name(&mut map, faults)? {
            faults.enter_named(&name);
            let fresh = seen.check(&name, faults);
            match &*name {
                "tenant" if fresh => out.tenant = take_name(map.next_value_seed(As(Text(faults)))?, faults),
                "crawl_id" if fresh => out.crawl_id = take_name(map.next_value_seed(As(Text(faults)))?, faults),
                "callback_url" if fresh => {
                    out.callback_url = map.next_value_seed(As(Text(faults)))?;
                    if let Some(Err((code, message))) = out.callback_url.as_deref().map(|url| check::url(url, &[])) {
                        faults.add(code, message);
                    }
                }
                "callback_events" if fresh => {
                    out.callback_events = map.next_value_seed(As(TextList(faults)))?;
                    if out.callback_events.iter().any(|event| !CALLBACK_EVENTS.contains(&&**event)) {
                        faults.add(Code::ValidationBadValue, format!("there are the events {}", CALLBACK_EVENTS.join(" and ")));
                    }
                    out.callback_events.dedup();
                }
                "priority" if fresh => {
                    out.priority = match map.next_value_seed(As(Scalar(faults)))? {
                        Some(Value::Number(number)) => Some(Priority::Number(number)),
                        Some(Value::Text(text)) => take_name(Some(text), faults).map(|text| Priority::Name(text.into_owned())),
                        None => None,
                    };
                }
                "deadline" | "deadline_ms" if fresh => {
                    if let Some(value) = map.next_value_seed(As(Scalar(faults)))? {
                        out.deadline_ms = take_deadline(&value, faults);
                    }
                }
                _ => map.next_value_seed(Walk(faults))?,
            }
            faults.leave();
        }
        Ok(out)
    }
}

enum Value<'de> {
    Number(i64),
    Text(Cow<'de, str>),
}

/// A whole number or a string.
struct Scalar<'c, 'l>(&'c mut Faults<'l>);

impl<'de> Shape<'de> for Scalar<'_, '_> {
    type Out = Option<Value<'de>>;
    const WANTED: &'static str = "a whole number or a string";

    fn reporter(&mut self) -> &mut dyn Report {
        self.0
    }

    fn text(self, value: Cow<'de, str>) -> Self::Out {
        Some(Value::Text(value))
    }

    fn integer(self, value: i64) -> Self::Out {
        Some(Value::Number(value))
    }
}

fn take_name<'de>(name: Option<Cow<'de, str>>, faults: &mut Faults<'_>) -> Option<Cow<'de, str>> {
    let name = name?;
    if name.len() > MAX_NAME_BYTES {
        faults.add(Code::ValidationTooLong, "this has at most 256 bytes");
    } else if name.chars().any(char::is_control) {
        faults.add(Code::ValidationBadValue, "this holds no control characters");
    }
    Some(name)
}

fn take_deadline(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<u64> {
    let deadline = match value {
        Value::Number(ms) => u64::try_from(*ms).ok().filter(|ms| *ms > 0),
        Value::Text(text) => check::rfc3339_ms(text),
    };
    if deadline.is_none() {
        faults.add(Code::ValidationBadValue, "a deadline is an RFC 3339 time, such as 2026-11-23T12:00:00Z, or Unix milliseconds");
    }
    deadline
}
