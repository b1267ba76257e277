//! One attempt at one task: redirects followed, answers judged, the body handed on.

use std::sync::Arc;
use std::time::Instant;

use fetchbox_model::failure::Code;
use fetchbox_model::key::ObjectKey;
use http::header::{self, HeaderMap};
use http::response::Parts;
use tokio::time::Instant as TokioInstant;
use url::Url;

use super::before::{self, Before};
use super::body;
use super::curl::{check_first, is_http};
use super::patience::{Limits, Patience, Timer};
use super::request::Headers;
use super::robots;
use super::route::is_proxy_failure;
use super::transfer::{Kept, Transfer};
use crate::core::{Core, Item};
use crate::failure::{Failure, chain, find, is_exhaustion};
use crate::net::link::{Link, MAX_FIELDS, MAX_HEAD_BYTES, Reply};
use crate::net::socket::EndlessHead;
use crate::outcome::Learned;
use crate::profile::{Profile, seconds};
use crate::proxy::Endpoint;
use crate::redirect::{is_redirect, next_hop, same_origin};
use crate::resume::{Answer, RangeRequest, judge, plan};
use crate::retry::parse_retry_after;
use crate::robots::{product, tagged};
use crate::store::Stores;
use crate::verify::Hint;

/// What one attempt works with.
pub struct Attempt<'a> {
    /// The engine.
    pub core: &'a Core,
    /// The settings of the task's job type.
    pub profile: Arc<Profile>,
    /// Filled as the attempt goes.
    pub learned: &'a mut Learned,
    /// How long it may take.
    pub patience: Patience<'a>,
    /// Proxy endpoints to ask, in order; empty for none.
    pub route: Vec<Arc<Endpoint>>,
    /// The size that the task's tags promise.
    pub expected_size: Option<u64>,
}

/// A response whose body is still on its connection.
pub struct Answered {
    /// The connection.
    pub link: Link,
    /// The pool's name of its origin.
    pub origin: String,
    /// Status and headers.
    pub head: Parts,
    /// The body.
    pub body: Reply,
}

/// Makes one attempt. `answered` is called when the task's own host has answered for the first time.
pub async fn run(core: &Core, item: &mut Item, learned: &mut Learned, timer: &mut Timer, answered: impl Fn()) -> Result<Kept, Failure> {
    let result = attempt(core, item, learned, timer, answered).await;
    if is_http(&item.url) {
        return result;
    }
    // What stands for the head of a file server's answer has no status of its own.
    learned.http_status = 0;
    result.map_err(|failure| failure.status(0))
}

async fn attempt(core: &Core, item: &mut Item, learned: &mut Learned, timer: &mut Timer, answered: impl Fn()) -> Result<Kept, Failure> {
    let settings = core.settings();
    // Credentials may have been renewed while it waited.
    item.profile = settings.profiles.of(&item.task.job_type).clone();
    let profile = item.profile.clone();
    let url = item.url.clone();
    check_first(&url, &profile)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Failure::new(Code::DownloadBadUrl, "the URL holds a user name or password"));
    }
    // Parsing normalises; without a redirect the task's own spelling is the one that people look for.
    learned.final_url = item.task.url.clone();
    let mut headers = Headers::of(&item.task, &profile)?;
    let route = settings.proxies.route(item.task.proxy_hint.as_ref(), &profile.proxy, Instant::now())?;
    let patience = Patience::new(limits(core, item, &profile), timer);
    let mut attempt = Attempt { core, profile, learned, patience, route, expected_size: expected_size(item) };
    let mut transfer = match item.transfer.take() {
        Some(transfer) => transfer,
        None => destination(&settings.stores, item)?,
    };
    let mut range = if headers.has_range { None } else { plan(&transfer.partial) };
    if range.is_none() && transfer.partial.received > 0 {
        transfer.restart();
    }
    let mut condition = match before::look(item, &mut transfer) {
        Before::Ask(condition) => Some(condition),
        Before::Fetch => None,
    };
    let host = item.host.clone();
    let mut visited = vec![url];
    loop {
        let Some(url) = visited.last() else { return Err(Failure::new(Code::SystemInternal, "no URL")) };
        if attempt.profile.fetch.robots && is_http(url) {
            robots::check(&mut attempt, url, |delay| core.slow_down(&host, delay)).await?;
            answered();
        }
        let conditional = match &condition {
            Some(condition) if range.is_none() => before::conditional(condition, &headers, item, url, visited.len() == 1),
            _ => None,
        };
        let response = attempt.exchange(url, conditional.as_ref().unwrap_or(&headers), range.as_ref()).await?;
        answered();
        let status = response.head.status.as_u16();
        attempt.learned.http_status = status;
        if is_redirect(status) {
            let location = response.head.headers.get(header::LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            let next = next_hop(&visited, location.as_deref(), attempt.profile.fetch.max_redirects)
                .map_err(|failure| Failure::from(failure).status(status))?;
            if !same_origin(url, &next) {
                headers.cross();
            }
            attempt.learned.redirects += 1;
            attempt.learned.final_url = next.as_str().to_owned();
            body::discard(&mut attempt, response).await;
            visited.push(next);
            continue;
        }
        if status == 304 && conditional.is_some() {
            check_tags(&response.head, &attempt.profile)?;
            if let Some(kept) = before::confirmed(&mut attempt, item, &mut transfer, response).await {
                return Ok(kept);
            }
            // The object is gone, or this speaks of another: asked again, without a condition.
            before::forget(item, &mut transfer);
            condition = None;
            continue;
        }
        if range.is_some() {
            let etag = text(&response.head.headers, header::ETAG);
            let content_range = response.head.headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
            match judge(&transfer.partial, status, content_range, &etag) {
                Answer::Continue => {
                    check_framing(&response.head)?;
                    return body::receive(&mut attempt, item, transfer, response, true).await;
                }
                Answer::Whole => transfer.restart(),
                Answer::AskAgain => {
                    transfer.restart();
                    range = None;
                    body::discard(&mut attempt, response).await;
                    continue;
                }
                Answer::Failure => item.transfer = Some(std::mem::replace(&mut transfer, destination(&settings.stores, item)?)),
            }
        }
        if let Some(reason) = attempt.profile.filter.status(status) {
            body::discard(&mut attempt, response).await;
            return Err(filtered(reason, status));
        }
        if let Err(failure) = judge_head(&response.head, &headers, &attempt.profile) {
            body::discard(&mut attempt, response).await;
            return Err(failure);
        }
        check_framing(&response.head)?;
        if let Err(failure) = check_tags(&response.head, &attempt.profile) {
            body::discard(&mut attempt, response).await;
            return Err(failure);
        }
        let declared = response.head.headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let declared = declared.unwrap_or_default();
        if let Some(reason) = attempt.profile.filter.head(&declared, body::content_length(&response)) {
            attempt.learned.content_type = declared.into_owned();
            body::discard(&mut attempt, response).await;
            return Err(filtered(reason, status));
        }
        return body::receive(&mut attempt, item, transfer, response, false).await;
    }
}

/// What a job type's filters make of an answer.
pub fn filtered(reason: String, status: u16) -> Failure {
    Failure::new(Code::DownloadFiltered, reason).status(status)
}

fn limits(core: &Core, item: &Item, profile: &Profile) -> Limits {
    let now = TokioInstant::now();
    let total = seconds(profile.fetch.total_timeout);
    let total = (!total.is_zero()).then(|| (now + total, false));
    let deadline = core.until_deadline(&item.task).map(|left| (now + left, true));
    Limits {
        read: seconds(profile.fetch.read_timeout).max(std::time::Duration::from_millis(1)),
        end: total.into_iter().chain(deadline).min_by_key(|(at, _)| *at),
        min_speed: profile.fetch.min_speed,
    }
}

/// `expected_size` (or `size`) among the task's tags.
pub fn expected_size(item: &Item) -> Option<u64> {
    let tags = &item.task.attributes.as_ref()?.tags;
    tags.get("expected_size").or_else(|| tags.get("size"))?.trim().parse().ok()
}

/// Where the task's object goes.
pub fn destination(stores: &Stores, item: &Item) -> Result<Transfer, Failure> {
    let (task, profile) = (&item.task, &item.profile);
    let bad = |error: fetchbox_model::key::KeyError| Failure::new(Code::ValidationBadKey, error.to_string());
    let mut key = ObjectKey::of_task(task, &profile.template).map_err(bad)?;
    let hint = task.storage_hint.as_ref();
    if hint.is_none_or(|hint| hint.key_prefix.is_empty()) {
        key = key.under(&profile.key_prefix).map_err(bad)?;
    }
    let bucket = hint.map(|hint| hint.bucket.as_str()).filter(|bucket| !bucket.is_empty()).unwrap_or(&profile.bucket);
    let store = stores.of_bucket(bucket)?.clone();
    let checksum = task.attributes.as_ref().map(|attributes| attributes.checksum_hint.as_str()).filter(|text| !text.is_empty());
    let checksum = match checksum {
        Some(text) => Some(
            Hint::parse(text).ok_or_else(|| Failure::new(Code::ValidationBadChecksum, "checksum_hint is not sha256:, sha1: or md5:"))?,
        ),
        None => None,
    };
    Ok(Transfer::new(store, key, checksum))
}

impl Attempt<'_> {
    /// Sends one request and waits for the head of its response, through one proxy endpoint after the other if there are any.
    pub async fn exchange(&mut self, url: &Url, headers: &Headers, range: Option<&RangeRequest>) -> Result<Answered, Failure> {
        if self.route.is_empty() {
            return self.exchange_by(url, headers, range, None).await;
        }
        let mut last = Failure::new(Code::DownloadProxyFailed, "no proxy endpoint is left");
        while let Some(endpoint) = self.route.first().cloned() {
            match self.exchange_by(url, headers, range, Some(&endpoint)).await {
                Err(failure) if is_proxy_failure(&failure) => {
                    endpoint.failed(Instant::now());
                    self.core.metrics.proxy_failed(&endpoint.pool);
                    last = failure;
                    self.route.remove(0);
                }
                result => {
                    self.learned.proxy = endpoint.label.clone();
                    if result.is_ok() {
                        endpoint.worked();
                    }
                    return result;
                }
            }
        }
        Err(Failure { code: Code::DownloadProxyFailed, ..last })
    }

    /// The same by one route. A pooled connection that had gone stale is replaced at once and counts as nothing.
    async fn exchange_by(
        &mut self,
        url: &Url,
        headers: &Headers,
        range: Option<&RangeRequest>,
        proxy: Option<&Endpoint>,
    ) -> Result<Answered, Failure> {
        if self.profile.by_curl {
            // Boxed, so that lanes of the native transport do not carry room for it.
            return Box::pin(self.exchange_by_curl(url, headers, range, proxy)).await;
        }
        let via = proxy.map_or("", |endpoint| &endpoint.tag);
        let origin =
            format!("{}:{} {} {via}", &url[..url::Position::AfterHost], url.port_or_known_default().unwrap_or(0), self.profile.tag);
        let mut fresh = false;
        loop {
            let pooled = if fresh { None } else { self.core.pool.take(&origin, Instant::now()) };
            let reused = pooled.is_some();
            let mut link = match pooled {
                Some(link) => link,
                None => self.connect(url, proxy).await?,
            };
            let http2 = matches!(link, Link::H2(_));
            if let Err(error) = self.patience.wait(link.ready()).await? {
                if reused {
                    continue;
                }
                return Err(head_failure(&error));
            }
            let text = || if range.is_none() { headers.text(url) } else { None };
            let sent = Instant::now();
            let result = self.patience.wait(link.exchange(text, || headers.request(url, http2, range))).await;
            self.learned.times.first_byte += sent.elapsed();
            match result?? {
                Ok(response) => {
                    self.patience.progress(0);
                    if http2
                        && !reused
                        && let Some(shared) = link.share()
                    {
                        self.core.pool.put(&origin, shared, Instant::now());
                    }
                    let (head, body) = response.into_parts();
                    check_size(&head)?;
                    return Ok(Answered { link, origin, head, body });
                }
                Err(_) if reused && !link.saw_response() => fresh = true,
                Err(error) => return Err(head_failure(&error)),
            }
        }
    }
}

/// A header as text, bytes that are no UTF-8 replaced; empty when missing.
pub fn text(headers: &HeaderMap, name: header::HeaderName) -> String {
    let Some(value) = headers.get(name) else { return String::new() };
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
    }
}

/// Refuses an answer with a directive that the job type filters on.
fn check_tags(head: &Parts, profile: &Profile) -> Result<(), Failure> {
    let fetch = &profile.fetch;
    if !fetch.robots {
        return Ok(());
    }
    match tagged(&head.headers, &fetch.robots_tags, product(&fetch.user_agent)) {
        None => Ok(()),
        Some(directive) => Err(Failure::new(Code::DownloadRobotsDenied, format!("X-Robots-Tag: {directive}")).status(head.status.as_u16())),
    }
}

/// Whether the response's body is what was asked for.
pub fn judge_head(head: &Parts, headers: &Headers, profile: &Profile) -> Result<(), Failure> {
    let status = head.status.as_u16();
    if status == 206 && !headers.has_range {
        return Err(Failure::new(Code::DownloadBadResponse, "a part of the body although the whole was asked for").status(status));
    }
    let Some(mut code) = Code::from_http_status(status) else { return Ok(()) };
    if status == 401 && (profile.auth.is_some() || profile.login.is_some()) {
        code = Code::AuthOriginRefused;
    }
    let mut failure = Failure::new(code, format!("the origin answered {}", head.status)).status(status);
    failure.retry_after = head
        .headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| parse_retry_after(value, origin_time(&head.headers)));
    Err(failure)
}

/// hyper limits what it reads until a head is whole: one that came in a single read, and one of HTTP/2, are measured here.
pub fn check_size(head: &Parts) -> Result<(), Failure> {
    let bytes: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let bad = |what: String| Err(Failure::new(Code::DownloadBadResponse, what).status(head.status.as_u16()));
    if bytes >= MAX_HEAD_BYTES {
        return bad(format!("{bytes} bytes of headers, fewer than {MAX_HEAD_BYTES} are taken"));
    }
    if head.headers.len() > MAX_FIELDS {
        return bad(format!("{} header fields, at most {MAX_FIELDS} are taken", head.headers.len()));
    }
    Ok(())
}

/// What time it is for the origin: a date that it asks us to wait for is one of its own clock, whatever ours says.
fn origin_time(headers: &HeaderMap) -> std::time::SystemTime {
    let date = headers.get(header::DATE).and_then(|value| value.to_str().ok()).and_then(|value| httpdate::parse_http_date(value).ok());
    date.unwrap_or_else(std::time::SystemTime::now)
}

/// Lengths that contradict each other are how responses are smuggled: the body could be anything. Two different Content-Lengths do not get here,
/// because hyper refuses them.
pub fn check_framing(head: &Parts) -> Result<(), Failure> {
    let headers = &head.headers;
    let bad = |what: &str| Err(Failure::new(Code::DownloadBadFraming, what).status(head.status.as_u16()));
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if headers.contains_key(header::CONTENT_LENGTH) {
            return bad("Content-Length together with Transfer-Encoding");
        }
        if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return bad("a Transfer-Encoding other than chunked");
        }
    }
    Ok(())
}

/// What HTTP/2 calls an answer that is none: a head that is too large among them.
fn is_nonsense(reason: h2::Reason) -> bool {
    matches!(reason, h2::Reason::PROTOCOL_ERROR | h2::Reason::FRAME_SIZE_ERROR | h2::Reason::COMPRESSION_ERROR)
}

/// The failure of a request that got no whole head.
pub fn head_failure(error: &hyper::Error) -> Failure {
    let message = chain(error);
    let code = if find::<EndlessHead>(error).is_some() {
        Code::DownloadBadResponse
    } else if error.is_parse() {
        // hyper tells these apart in its text only; a test holds it to that.
        if message.contains("content-length") || message.contains("transfer-encoding") {
            Code::DownloadBadFraming
        } else {
            Code::DownloadBadResponse
        }
    } else if find::<std::io::Error>(error).is_some_and(is_exhaustion) {
        Code::SystemResources
    } else if find::<h2::Error>(error).and_then(h2::Error::reason).is_some_and(is_nonsense) {
        Code::DownloadBadResponse
    } else {
        Code::DownloadReset
    };
    Failure::new(code, format!("no response: {message}"))
}
