//! What is sent to an origin.

use std::sync::Arc;

use fetchbox_model::failure::Code;
use fetchbox_model::message::DownloadTask;
use http::header::{self, HeaderMap};
use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use http_body_util::Empty;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use url::{Position, Url};

use bytes::Bytes;

use crate::failure::Failure;
use crate::profile::Profile;
use crate::redirect::survives_crossing;
use crate::resume::RangeRequest;
use crate::reuse::Condition;

/// Headers that speak of one connection, or that the engine sets itself.
const FORBIDDEN: [&str; 14] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "expect",
    "http2-settings",
    "if-range",
];

/// Characters that `http` refuses in a path or query although URLs hold them.
const UNSENT: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}').add(b'|').add(b'\\').add(b'^');

/// Longest path and query that are sent without a closer look.
const MAX_PLAIN_TARGET: usize = 8 << 10;

/// Characters that stand for themselves in a path and query, whoever reads them.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~/%?=&+:@!$'()*,;".contains(&byte)
}

/// Adds a job type's headers to a task's own, which win, and what every request has.
pub fn complete(own: &mut HeaderMap, job_type: &[(HeaderName, HeaderValue)], auth: Option<&HeaderValue>) {
    for (name, value) in job_type {
        if !own.contains_key(name) {
            own.insert(name.clone(), value.clone());
        }
    }
    if let Some(auth) = auth
        && !own.contains_key(header::AUTHORIZATION)
    {
        own.insert(header::AUTHORIZATION, auth.clone());
    }
    own.entry(header::ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    own.entry(header::ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));
}

/// The headers of a task's requests.
pub struct Headers {
    own: Arc<HeaderMap>,
    crossed: bool,
    /// Whether the task itself asks for a range.
    pub has_range: bool,
}

impl Headers {
    /// Joins the task's headers with its job type's; the task's win.
    pub fn of(task: &DownloadTask, profile: &Profile) -> Result<Self, Failure> {
        if task.headers.is_empty() {
            return Ok(Self::new(profile.plain.clone()));
        }
        let mut own = HeaderMap::with_capacity(task.headers.len() + profile.headers.len() + 6);
        for field in &task.headers {
            let wrong = |what: &str| Failure::new(Code::ValidationBadHeader, format!("header {:?}: bad {what}", field.name));
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| wrong("name"))?;
            if !FORBIDDEN.contains(&name.as_str()) {
                own.append(name, HeaderValue::from_str(&field.value).map_err(|_| wrong("value"))?);
            }
        }
        complete(&mut own, &profile.headers, profile.auth.as_ref());
        Ok(Self::new(Arc::new(own)))
    }

    /// The job type's headers as they may be sent to anybody.
    pub fn without_credentials(profile: &Profile) -> Self {
        let mut headers = Self::new(profile.plain.clone());
        headers.cross();
        headers
    }

    fn new(own: Arc<HeaderMap>) -> Self {
        Self { has_range: own.contains_key(header::RANGE), own, crossed: false }
    }

    /// The same with a condition, for one request.
    pub fn with(&self, condition: &Condition) -> Option<Self> {
        let (name, text) = match condition {
            Condition::NoneMatch(etag) => (header::IF_NONE_MATCH, etag),
            Condition::ModifiedSince(date) => (header::IF_MODIFIED_SINCE, date),
        };
        let mut own = HeaderMap::clone(&self.own);
        // An origin may have sent what cannot be sent back.
        own.insert(name, HeaderValue::from_str(text).ok()?);
        Some(Self { own: Arc::new(own), has_range: self.has_range, crossed: self.crossed })
    }

    /// From now on only what may cross an origin is sent; this cannot be undone.
    pub fn cross(&mut self) {
        let kept = self.own.iter().filter(|(name, _)| survives_crossing(name.as_str()) || *name == header::ACCEPT_ENCODING);
        self.own = Arc::new(kept.map(|(name, value)| (name.clone(), value.clone())).collect());
        self.crossed = true;
    }

    /// Whether only the task's own origin has been asked so far.
    pub fn is_at_home(&self) -> bool {
        !self.crossed
    }

    /// A request for `url` as HTTP/1.1 sends it; `None` when something in it needs a closer look. Byte for byte what hyper makes of [`Headers::request`].
    pub fn text(&self, url: &Url) -> Option<Vec<u8>> {
        let target = &url[Position::BeforePath..Position::AfterQuery];
        let plain = target.starts_with('/') && target.len() <= MAX_PLAIN_TARGET && target.bytes().all(is_plain);
        if !plain || self.own.contains_key(header::HOST) {
            return None;
        }
        let authority = &url[Position::BeforeHost..Position::BeforePath];
        let mut text = Vec::with_capacity(target.len() + authority.len() + 256);
        let mut line = |parts: [&[u8]; 4]| parts.iter().for_each(|part| text.extend_from_slice(part));
        line([b"GET ", target.as_bytes(), b" HTTP/1.1", b"\r\n"]);
        for (name, value) in &*self.own {
            line([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
        line([b"host: ", authority.as_bytes(), b"\r\n", b"\r\n"]);
        Some(text)
    }

    /// A request for `url`.
    pub fn request(&self, url: &Url, http2: bool, range: Option<&RangeRequest>) -> Result<Request<Empty<Bytes>>, Failure> {
        let mut headers = HeaderMap::clone(&self.own);
        let bad = |error: http::Error| Failure::new(Code::DownloadBadUrl, error.to_string());
        if let Some(range) = range {
            for (name, text) in [(header::RANGE, &range.range), (header::IF_RANGE, &range.if_range)] {
                headers.insert(name, HeaderValue::from_str(text).map_err(|error| bad(error.into()))?);
            }
        }
        let target = if http2 { &url[..Position::AfterQuery] } else { &url[Position::BeforePath..Position::AfterQuery] };
        let uri = match target.parse::<Uri>() {
            Ok(uri) => uri,
            Err(_) => utf8_percent_encode(target, UNSENT).to_string().parse().map_err(|error: http::uri::InvalidUri| bad(error.into()))?,
        };
        if !http2 {
            let authority = &url[Position::BeforeHost..Position::BeforePath];
            headers.insert(header::HOST, HeaderValue::from_str(authority).map_err(|error| bad(error.into()))?);
        }
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        *request.version_mut() = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        *request.headers_mut() = headers;
        Ok(request)
    }
}
