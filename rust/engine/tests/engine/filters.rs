//! What a job type leaves out: no object, no failure, and the reason.

use fetchbox_model::message::{ResourceOutcome, ResourceState};

use crate::support::origin::{Origin, Step};
use crate::support::{Fetcher, assert_failed, assert_stored, outcome, task};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";

/// An origin that answers with a status, further header lines and a body, with or without saying how long that is.
fn origin(status: &str, fields: &str, body: &[u8], sized: bool) -> Origin {
    let framing = if sized { format!("Content-Length: {}", body.len()) } else { "Transfer-Encoding: chunked".to_owned() };
    let mut answer = format!("HTTP/1.1 {status}\r\n{framing}\r\n{fields}\r\n").into_bytes();
    if sized {
        answer.extend_from_slice(body);
    } else {
        for piece in body.chunks(700) {
            answer.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            answer.extend_from_slice(piece);
            answer.extend_from_slice(b"\r\n");
        }
        answer.extend_from_slice(b"0\r\n\r\n");
    }
    Origin::new(move |_, _| vec![Step::Send(answer.clone())])
}

fn assert_filtered(fetcher: &mut Fetcher, url: &str, message: &str) -> ResourceOutcome {
    let finished = fetcher.run(task(url));
    assert!(finished.attempts.is_empty(), "a resource that is left out has not failed");
    let outcome = outcome(finished);
    assert_eq!((outcome.state(), outcome.code.as_str()), (ResourceState::Filtered, "DOWNLOAD_FILTERED"), "{outcome:?}");
    assert_eq!(outcome.message, message);
    assert!(outcome.task.is_none() && outcome.storage_url.is_empty());
    assert!(fetcher.files().is_empty());
    outcome
}

#[test]
fn by_declared_and_sniffed_type() {
    let mut fetcher = Fetcher::new(|config| config.fetch.filter_types = vec!["image/*".into()]);
    let page = b"<!doctype html><title>sorry</title>".repeat(300);
    for sized in [true, false] {
        let declared = origin("200 OK", "Content-Type: text/html; charset=utf-8\r\n", PNG, sized);
        let left_out = assert_filtered(&mut fetcher, &declared.url("/a"), "the declared type text/html is not among filter_types");
        assert_eq!((left_out.http_status, left_out.content_type.as_str()), (200, "text/html; charset=utf-8"));
        for body in [&page[..40], &page[..]] {
            for fields in ["Content-Type: image/jpeg\r\n", "Content-Type: application/octet-stream\r\n", ""] {
                let lies = origin("200 OK", fields, body, sized);
                assert_filtered(&mut fetcher, &lies.url("/a"), "the sniffed type text/html is not among filter_types");
            }
        }
    }
    assert_stored(&fetcher.get(&origin("200 OK", "Content-Type: image/png\r\n", PNG, false).url("/a")));
    assert_stored(&fetcher.get(&origin("200 OK", "", PNG, true).url("/a")));
}

#[test]
fn by_size() {
    let mut fetcher = Fetcher::new(|config| (config.fetch.filter_min_bytes, config.fetch.filter_max_bytes) = (100, 200_000));
    for sized in [true, false] {
        let small = origin("200 OK", "", &[b'a'; 99], sized);
        assert_filtered(&mut fetcher, &small.url("/a"), "99 bytes are below filter_min_bytes, 100");
        let large = origin("200 OK", "", &[b'a'; 300_000], sized);
        let left_out = fetcher.get(&large.url("/a"));
        assert_eq!((left_out.state(), left_out.code.as_str()), (ResourceState::Filtered, "DOWNLOAD_FILTERED"), "{left_out:?}");
        assert!(left_out.message.ends_with("bytes or more are above filter_max_bytes, 200000"), "{}", left_out.message);
        assert!(fetcher.files().is_empty());
    }
    for size in [100, 200_000] {
        assert_stored(&fetcher.get(&origin("200 OK", "", &vec![b'a'; size], false).url("/a")));
    }
}

#[test]
fn by_status() {
    let mut fetcher = Fetcher::new(|config| config.fetch.filter_statuses = vec!["404".into(), "5xx".into()]);
    for status in ["404 Not Found", "503 Busy"] {
        let gone = origin(status, "Retry-After: 1\r\n", b"sorry", true);
        assert_filtered(&mut fetcher, &gone.url("/a"), &format!("status {} is among filter_statuses", &status[..3]));
        assert_eq!(gone.requests().len(), 1);
    }
    assert_failed(&fetcher.get(&origin("410 Gone", "", b"", true).url("/a")), "DOWNLOAD_HTTP_4XX");
}
