//! Bodies: from the connection into a transfer, under every limit.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fetchbox_model::failure::Code;
use http::{Version, header};

use super::attempt::{Answered, Attempt, filtered, text};
use super::transfer::{Kept, Transfer};
use crate::core::Item;
use crate::failure::{Failure, chain, find};
use crate::net::link::{Broken, Link};
use crate::resume::{Partial, plan};
use crate::store::remote::ObjectFacts;
use crate::verify::{SNIFF_BYTES, sniff};

/// A body that nobody wants is read up to here, so that its connection can be used again.
const DISCARD: u64 = 16 << 10;
/// And for no longer than this.
const DISCARD_TIME: Duration = Duration::from_millis(500);
/// Longest metadata value, and all of them together, in bytes: S3 allows 2 KB.
const MAX_METADATA_VALUE: usize = 512;
const MAX_METADATA: usize = 1800;

async fn next_piece(attempt: &mut Attempt<'_>, response: &mut Answered) -> Result<Option<Result<Bytes, Broken>>, Failure> {
    poll_fn(|cx| match response.link.poll_data(&mut response.body, cx) {
        Poll::Ready(piece) => Poll::Ready(Ok(piece)),
        Poll::Pending => attempt.patience.poll(cx).map(Err),
    })
    .await
}

/// The first bytes of a body, up to `most`.
pub async fn beginning(attempt: &mut Attempt<'_>, mut response: Answered, most: usize) -> Result<Vec<u8>, Failure> {
    let mut read = Vec::new();
    loop {
        match next_piece(attempt, &mut response).await? {
            Some(Ok(data)) => {
                attempt.patience.progress(data.len() as u64);
                read.extend_from_slice(&data);
                if read.len() >= most {
                    read.truncate(most);
                    return Ok(read);
                }
            }
            Some(Err(error)) => return Err(body_failure(&error)),
            None => {
                keep(attempt, response).await;
                return Ok(read);
            }
        }
    }
}

/// Reads a response's body into the store. A broken one is left in `item` when it can go on later.
pub async fn receive(
    attempt: &mut Attempt<'_>,
    item: &mut Item,
    mut transfer: Transfer,
    mut response: Answered,
    resumed: bool,
) -> Result<Kept, Failure> {
    let status = response.head.status.as_u16();
    let length = content_length(&response);
    learn(attempt, &response);
    if !resumed {
        let partial = Partial {
            received: 0,
            total: length,
            etag: text(&response.head.headers, header::ETAG),
            accepts_ranges: accepts_ranges(&response),
        };
        let facts = if transfer.keeps_facts() { facts(item, attempt) } else { ObjectFacts::default() };
        transfer.begin(partial, facts);
    }
    let max = attempt.profile.sizes.max_bytes;
    let too_large = |size: u64| Failure::new(Code::DownloadTooLarge, format!("{size} bytes or more, max_bytes is {max}")).status(status);
    if let Some(total) = transfer.partial.total.filter(|total| *total > max) {
        return Err(too_large(total));
    }
    attempt.patience.begin_body();
    let started = Instant::now();
    let stored_before = transfer.store_time;
    let failure = loop {
        let data = match next_piece(attempt, &mut response).await {
            Ok(Some(Ok(data))) => data,
            Ok(Some(Err(error))) => break body_failure(&error),
            Ok(None) => match transfer.partial.total.filter(|total| *total != transfer.partial.received) {
                Some(total) => break Failure::new(Code::DownloadTruncated, format!("{} of {total} bytes", transfer.partial.received)),
                None => {
                    if let Some(reason) = unwanted_whole(attempt, &transfer) {
                        keep(attempt, response).await;
                        return Err(filtered(reason, status));
                    }
                    return finish(attempt, transfer, response, started, stored_before, resumed).await;
                }
            },
            Err(failure) => break failure,
        };
        let size = data.len();
        attempt.patience.progress(size as u64);
        transfer.push(data);
        if let Some(reason) = unwanted(attempt, &transfer, size) {
            return Err(filtered(reason, status));
        }
        if transfer.partial.received > max {
            return Err(too_large(transfer.partial.received));
        }
        if transfer.wants_flush() {
            let waited = Instant::now();
            transfer.flush(&attempt.core.memory, attempt.profile.sizes).await?;
            attempt.patience.excuse(waited.elapsed());
        }
        if let Some(pace) = &attempt.profile.pace {
            let until = pace.book(size, tokio::time::Instant::now());
            if let Err(failure) = attempt.patience.pause(until).await {
                break failure;
            }
        }
        // Ten million one-byte chunks may not keep the others from running.
        tokio::task::coop::consume_budget().await;
    };
    attempt.learned.times.body = started.elapsed().saturating_sub(transfer.store_time - stored_before);
    if let Some(endpoint) = attempt.route.first() {
        // Who broke it off cannot be told; another endpoint will show.
        endpoint.failed(Instant::now());
    }
    let received = transfer.partial.received;
    if failure.code.is_retryable() && plan(&transfer.partial).is_some() {
        item.transfer = Some(transfer);
    }
    Err(failure.status(status).with("bytes_received", received.to_string()))
}

/// Whether a body is to be left out, now that `more` bytes have come.
fn unwanted(attempt: &Attempt<'_>, transfer: &Transfer, more: usize) -> Option<String> {
    let filter = &attempt.profile.filter;
    let received = transfer.partial.received;
    let begun = SNIFF_BYTES as u64;
    let shows = filter.has_types() && received >= begun && received - (more as u64) < begun;
    let sniffed = || filter.sniffed(&attempt.learned.content_type, sniff(transfer.head()));
    filter.size(received).or_else(|| if shows { sniffed() } else { None })
}

/// The same of a body that is whole.
fn unwanted_whole(attempt: &Attempt<'_>, transfer: &Transfer) -> Option<String> {
    let filter = &attempt.profile.filter;
    let shows = filter.has_types() && transfer.partial.received < SNIFF_BYTES as u64;
    let sniffed = || filter.sniffed(&attempt.learned.content_type, sniff(transfer.head()));
    filter.too_small(transfer.partial.received).or_else(|| if shows { sniffed() } else { None })
}

async fn finish(
    attempt: &mut Attempt<'_>,
    transfer: Transfer,
    response: Answered,
    started: Instant,
    stored_before: Duration,
    resumed: bool,
) -> Result<Kept, Failure> {
    let status = response.head.status.as_u16();
    attempt.learned.times.body = started.elapsed().saturating_sub(transfer.store_time.saturating_sub(stored_before));
    keep(attempt, response).await;
    let result = transfer.finish(attempt.expected_size, &attempt.core.pairs).await;
    match result {
        Ok((kept, store_time)) => {
            attempt.learned.times.store = store_time;
            Ok(kept)
        }
        // Pieces of two bodies are no clean transfer.
        Err(failure) if resumed && failure.code == Code::DownloadChecksumMismatch => {
            Err(Failure::new(Code::DownloadTruncated, format!("the resumed body is not one piece: {}", failure.message)).status(status))
        }
        Err(failure) => Err(failure.status(status)),
    }
}

/// Gives a connection back that has nothing more to read.
async fn keep(attempt: &Attempt<'_>, mut response: Answered) {
    if response.link.rests().await {
        attempt.core.pool.put(&response.origin, response.link, Instant::now());
    }
}

/// Reads what little is left of an unwanted body, or drops the connection.
pub async fn discard(attempt: &mut Attempt<'_>, mut response: Answered) {
    // What a 304 says of a length is said of the body that it spares.
    let empty = matches!(response.head.status.as_u16(), 204 | 304);
    if !empty
        && content_length(&response).is_none_or(|length| length > DISCARD)
        && response.head.headers.contains_key(header::CONTENT_LENGTH)
    {
        return;
    }
    let drain = async {
        let mut seen = 0;
        while let Ok(Some(Ok(data))) = next_piece(attempt, &mut response).await {
            seen += data.len() as u64;
            if seen > DISCARD {
                return false;
            }
        }
        true
    };
    if let Ok(true) = tokio::time::timeout(DISCARD_TIME, drain).await {
        keep(attempt, response).await;
    }
}

pub fn content_length(response: &Answered) -> Option<u64> {
    response.head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.split(',').next()?.trim().parse().ok()
}

fn accepts_ranges(response: &Answered) -> bool {
    let value = response.head.headers.get(header::ACCEPT_RANGES);
    value.is_some_and(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"bytes"))
}

fn learn(attempt: &mut Attempt<'_>, response: &Answered) {
    let headers = &response.head.headers;
    let learned = &mut *attempt.learned;
    learned.etag = text(headers, header::ETAG);
    learned.last_modified = text(headers, header::LAST_MODIFIED);
    learned.content_type = text(headers, header::CONTENT_TYPE);
    let encoding = text(headers, header::CONTENT_ENCODING);
    if !encoding.is_empty() && encoding != "identity" {
        learned.context.push(("content_encoding", encoding));
    }
    let framed = headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING);
    let empty = matches!(response.head.status.as_u16(), 204 | 304);
    let by_http1 = matches!(response.link, Link::H1(_) | Link::Curl(_)) && response.head.version != Version::HTTP_2;
    if !framed && !empty && by_http1 {
        learned.context.push(("length_unknown", "true".to_owned()));
    }
}

fn facts(item: &Item, attempt: &Attempt<'_>) -> ObjectFacts {
    let learned = &attempt.learned;
    let mut metadata = attempt.profile.metadata.clone();
    if let Some(hint) = &item.task.storage_hint {
        metadata.extend(hint.metadata.clone());
    }
    let encoding = learned.context.iter().find(|(key, _)| *key == "content_encoding").map(|(_, value)| clean(value)).unwrap_or_default();
    ObjectFacts { content_type: clean(&learned.content_type), content_encoding: encoding, metadata: clean_metadata(metadata) }
}

/// Printable ASCII only: header values of a store's request.
fn clean(value: &str) -> String {
    let mut cleaned: String = value.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    cleaned.truncate(MAX_METADATA_VALUE);
    cleaned.trim().to_owned()
}

fn clean_metadata(metadata: BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut total = 0;
    let cleaned = metadata.into_iter().map(|(name, value)| {
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c.to_ascii_lowercase() } else { '-' })
            .take(128)
            .collect();
        (name, clean(&value))
    });
    cleaned
        .filter(|(name, value)| {
            total += name.len() + value.len();
            !name.is_empty() && total <= MAX_METADATA
        })
        .collect()
}

/// The failure of a body that broke off.
pub fn body_failure(broken: &Broken) -> Failure {
    if let Broken::Judged(failure) = broken {
        return Failure::clone(failure);
    }
    let error = broken.error();
    let message = chain(error);
    let code = match find::<io::Error>(error).map(io::Error::kind) {
        Some(io::ErrorKind::UnexpectedEof) => Code::DownloadTruncated,
        Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) if find::<rustls::Error>(error).is_none() => {
            Code::DownloadBadFraming
        }
        Some(_) => Code::DownloadReset,
        None if find::<hyper::Error>(error).is_some_and(hyper::Error::is_incomplete_message) => Code::DownloadTruncated,
        // A stream that ends before its length, in HTTP/2's words.
        None if find::<h2::Error>(error).and_then(h2::Error::reason) == Some(h2::Reason::PROTOCOL_ERROR) => Code::DownloadTruncated,
        None => Code::DownloadReset,
    };
    Failure::new(code, format!("the body broke off: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_cleaned_and_bounded() {
        let metadata = BTreeMap::from([
            ("Title é".to_owned(), "a\r\nX-Evil: 1\0".to_owned()),
            ("big".to_owned(), "x".repeat(5000)),
            ("ok_name".to_owned(), " v ".to_owned()),
        ]);
        let cleaned = clean_metadata(metadata);
        assert_eq!(cleaned[0], ("title--".to_owned(), "a??X-Evil: 1?".to_owned()));
        assert_eq!(cleaned[1].1.len(), MAX_METADATA_VALUE);
        assert_eq!(cleaned[2], ("ok_name".to_owned(), "v".to_owned()));
        let many = (0..100).map(|n| (format!("k{n}"), "v".repeat(100))).collect();
        let total: usize = clean_metadata(many).iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(total <= MAX_METADATA);
    }
}
