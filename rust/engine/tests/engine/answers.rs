//! Cases 21, 22, 25, 26, 30 and 31 of docs/hostile-cases.md, retries and the whole outcome.

use std::time::{Duration, Instant};

use fetchbox_engine::FinishedKind;
use fetchbox_model::message::{DownloadTask, ResourceState, StorageHint, TaskAttributes};
use sha2::{Digest, Sha256};

use crate::origins::now_ms;
use crate::support::origin::{Origin, Step, ok, send};
use crate::support::{Fetcher, assert_failed, assert_stored, header, task};

fn status(line: &str, headers: &str) -> Vec<Step> {
    vec![send(&format!("HTTP/1.1 {line}\r\nContent-Length: 2\r\n{headers}\r\nno"))]
}

fn retrying(attempts: u32) -> Fetcher {
    Fetcher::new(move |config| config.fetch.max_attempts = attempts)
}

#[test]
fn the_outcome_says_everything() {
    let body = b"<!doctype html><p>hello";
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Type: text/plain\r\nETag: \"e1\"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n",
        body.len()
    );
    let origin = Origin::always(vec![Step::Send([head.as_bytes(), body].concat())]);
    let mut fetcher = Fetcher::new(|_| {});
    let mut task = task(&origin.url("/a?b=c"));
    (task.resource_index, task.generation, task.resource_id) = (7, 3, "../ü x".into());
    let finished = fetcher.run(task.clone());
    assert_eq!(*finished.task, task);
    assert!(finished.attempts.is_empty());
    let outcome = crate::support::outcome(finished);
    assert_stored(&outcome);
    assert_eq!((outcome.resource_index, outcome.generation, outcome.resource_id.as_str()), (7, 3, "../ü x"));
    assert_eq!((outcome.http_status, outcome.redirects, outcome.attempts), (200, 0, 1));
    assert_eq!((outcome.final_url.as_str(), outcome.context.len()), (origin.url("/a?b=c").as_str(), 0));
    assert_eq!((outcome.etag.as_str(), outcome.last_modified.as_str()), ("\"e1\"", "Sun, 06 Nov 1994 08:49:37 GMT"));
    assert_eq!((outcome.content_type.as_str(), outcome.sniffed_type.as_str()), ("text/plain", "text/html"));
    assert_eq!((outcome.size, &outcome.sha256[..]), (body.len() as u64, &Sha256::digest(body)[..]));
    assert!(outcome.task.is_none());
    let timings = outcome.timings.unwrap();
    assert!(timings.connect > 0 && timings.first_byte > 0 && timings.store > 0 && timings.tls == 0);
    assert!(outcome.finished_at_ms.abs_diff(now_ms()) < 60_000);
    let path = url::Url::parse(&outcome.storage_url).unwrap().to_file_path().unwrap();
    assert_eq!(std::fs::read(path).unwrap(), body);
    assert!(outcome.storage_url.ends_with("/resources/default/job/%252E.%252F%25C3%25BC%2520x"), "{}", outcome.storage_url);
}

#[test]
fn bodies_of_every_size_arrive_whole() {
    for size in [0usize, 1, 511, 1023, 1024, 65535, 65536, 65537, 262_143, 262_144, 262_145, 1_000_000, 20_000_000] {
        let body: Vec<u8> = (0..size).map(|n| (n * 31 % 251) as u8).collect();
        let digest = Sha256::digest(&body);
        for chunked in [false, true] {
            let steps = if chunked {
                let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                for chunk in body.chunks(10_007) {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\nX-Trailer: t\r\n\r\n");
                vec![Step::Send(bytes)]
            } else {
                ok(&body)
            };
            let origin = Origin::always(steps);
            for sync_files in [false, true] {
                let mut fetcher = Fetcher::new(|config| config.sync_files = sync_files);
                let outcome = fetcher.get(&origin.url("/"));
                assert_stored(&outcome);
                assert_eq!((outcome.size, &outcome.sha256[..]), (size as u64, &digest[..]), "{size} {chunked}");
                assert!(fetcher.only_file() == body, "{size} {chunked} {sync_files}");
            }
        }
    }
}

#[test]
fn statuses_are_judged_and_retried_by_their_class() {
    let table = [
        ("400 Bad Request", "DOWNLOAD_HTTP_4XX", 1),
        ("401 Unauthorized", "DOWNLOAD_HTTP_4XX", 1),
        ("404 Not Found", "DOWNLOAD_HTTP_4XX", 1),
        ("408 Request Timeout", "DOWNLOAD_HTTP_408", 3),
        ("425 Too Early", "DOWNLOAD_HTTP_425", 3),
        ("429 Too Many", "DOWNLOAD_HTTP_429", 3),
        ("499 Closed", "DOWNLOAD_HTTP_499", 3),
        ("500 Oops", "DOWNLOAD_HTTP_5XX", 3),
        ("501 Not Implemented", "DOWNLOAD_HTTP_501", 1),
        ("503 Unavailable", "DOWNLOAD_HTTP_5XX", 3),
        ("505 Version", "DOWNLOAD_HTTP_505", 1),
        ("304 Not Modified", "DOWNLOAD_HTTP_3XX", 1),
        ("300 Choices", "DOWNLOAD_HTTP_3XX", 1),
        ("302 No Location", "DOWNLOAD_HTTP_3XX", 1),
    ];
    for (line, code, attempts) in table {
        let origin = Origin::always(status(line, ""));
        let outcome = retrying(3).get(&origin.url("/"));
        assert_failed(&outcome, code);
        assert_eq!((outcome.attempts, origin.requests().len()), (attempts, attempts as usize), "{line}");
        assert_eq!(outcome.http_status, line[..3].parse::<u32>().unwrap());
    }
    let origin = Origin::always(vec![send("HTTP/1.1 204 No Content\r\n\r\n")]);
    let outcome = retrying(1).get(&origin.url("/"));
    assert_stored(&outcome);
    assert_eq!((outcome.size, outcome.context.len()), (0, 0));
}

#[test]
fn a_retry_that_succeeds_reports_the_failed_attempts() {
    let origin = Origin::new(|n, _| if n < 2 { vec![Step::Reset] } else { ok(b"third time") });
    let mut fetcher = retrying(5);
    let mut task = task(&origin.url("/"));
    task.attempt = 1;
    let finished = fetcher.run(task);
    let attempts: Vec<_> = finished.attempts.iter().map(|attempt| (attempt.attempt, attempt.code.as_str())).collect();
    assert_eq!(attempts, [(2, "DOWNLOAD_RESET"), (3, "DOWNLOAD_RESET")]);
    let outcome = crate::support::outcome(finished);
    assert_stored(&outcome);
    assert_eq!(outcome.attempts, 4);
}

#[test]
fn case_21_short_retry_after_is_waited_for() {
    for value in [|| "1".to_owned(), || httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(2))] {
        let origin =
            Origin::new(move |n, _| if n == 0 { status("429 Slow down", &format!("Retry-After: {}\r\n", value())) } else { ok(b"now") });
        let started = Instant::now();
        assert_stored(&retrying(2).get(&origin.url("/")));
        assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    }
}

#[test]
fn case_21_long_retry_after_is_handed_back_and_ten_years_are_clamped() {
    for (value, expected) in [("60", 60), ("315360000", 3600), ("99999999999999999999", 3600), ("Fri, 31 Dec 2100 23:59:59 GMT", 3600)] {
        for line in ["429 Slow down", "503 Busy"] {
            let origin = Origin::always(status(line, &format!("Retry-After: {value}\r\n")));
            let mut fetcher = retrying(2);
            let finished = fetcher.run(task(&origin.url("/")));
            assert_eq!(finished.attempts.len(), 1);
            match finished.result {
                FinishedKind::Later { not_before_ms, code, .. } => {
                    let wait = not_before_ms.saturating_sub(now_ms()) / 1000;
                    assert!((expected - 5..=expected).contains(&wait), "{value}: {wait}");
                    assert!(code == "DOWNLOAD_HTTP_429" || code == "DOWNLOAD_HTTP_5XX");
                }
                other => panic!("{value}: {other:?}"),
            }
        }
    }
}

#[test]
fn case_21_negative_and_garbage_retry_after_are_ignored() {
    for value in ["-5", "soon", "1e9", "", "0x10"] {
        let origin = Origin::new(move |n, _| if n == 0 { status("503 Busy", &format!("Retry-After: {value}\r\n")) } else { ok(b"now") });
        let started = Instant::now();
        assert_stored(&retrying(2).get(&origin.url("/")));
        assert!(started.elapsed() < Duration::from_secs(1), "{value}");
    }
}

const WHOLE: &[u8] = b"0123456789abcdefghij";

fn first_half(etag: &str) -> Vec<Step> {
    vec![send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 20\r\nAccept-Ranges: bytes\r\nETag: {etag}\r\n\r\n0123456789")), Step::Close]
}

fn second(head: &str, body: &[u8]) -> Vec<Step> {
    vec![Step::Send([format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat())]
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let origin = Origin::new(|n, _| {
        if n == 0 { first_half("\"v1\"") } else { second("206 x\r\nContent-Range: bytes 10-19/20\r\nETag: \"v1\"", &WHOLE[10..]) }
    });
    let mut fetcher = retrying(3);
    let outcome = fetcher.get(&origin.url("/"));
    assert_stored(&outcome);
    assert_eq!(fetcher.only_file(), WHOLE);
    assert_eq!(&outcome.sha256[..], &Sha256::digest(WHOLE)[..]);
    assert_eq!(outcome.attempts, 2);
    let request = &origin.requests()[1];
    assert!(request.contains("range: bytes=10-\r\n") && request.contains("if-range: \"v1\"\r\n"), "{request}");
}

#[test]
fn case_22_wrong_content_range_starts_over() {
    for head in [
        "206 x\r\nContent-Range: bytes 9-19/20",
        "206 x\r\nContent-Range: bytes 10-19/21",
        "206 x",
        "416 x\r\nContent-Range: bytes */20",
        "206 x\r\nContent-Range: bytes 10-19/20\r\nETag: \"v2\"",
    ] {
        let origin = Origin::new(move |n, _| match n {
            0 => first_half("\"v1\""),
            1 => second(head, &WHOLE[10..]),
            _ => ok(WHOLE),
        });
        let mut fetcher = retrying(3);
        assert_stored(&fetcher.get(&origin.url("/")));
        assert_eq!(fetcher.only_file(), WHOLE, "{head}");
        assert!(!origin.requests()[2].contains("range:"), "{head}");
    }
}

#[test]
fn case_22_200_to_a_range_request_is_the_whole() {
    let origin = Origin::new(|n, _| if n == 0 { first_half("\"v1\"") } else { second("200 OK\r\nETag: \"v2\"", b"another body entirely") });
    let mut fetcher = retrying(3);
    let outcome = fetcher.get(&origin.url("/"));
    assert_stored(&outcome);
    assert_eq!(fetcher.only_file(), b"another body entirely");
    assert_eq!((outcome.etag.as_str(), &outcome.sha256[..]), ("\"v2\"", &Sha256::digest(b"another body entirely")[..]));
}

#[test]
fn case_22_weak_validators_are_not_resumed() {
    for etag in ["W/\"v1\"", "v1", ""] {
        let origin = Origin::new(move |n, _| if n == 0 { first_half(etag) } else { ok(WHOLE) });
        let mut fetcher = retrying(3);
        assert_stored(&fetcher.get(&origin.url("/")));
        assert!(!origin.requests()[1].contains("range:"));
        assert_eq!(fetcher.only_file(), WHOLE);
    }
}

#[test]
fn case_25_no_secret_crosses_an_origin() {
    let other = Origin::always(ok(b"other"));
    let target = other.url("/there");
    let origin = Origin::new(move |n, _| {
        let location = if n == 0 { "/same" } else { &target };
        vec![send(&format!("HTTP/1.1 302 x\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"))]
    });
    let mut fetcher = Fetcher::new(|config| {
        let job_type = serde_json::json!({"default_headers": {"x-default": "d"}, "auth": {"username": "u", "password": "p"}});
        config.job_types.insert("default".into(), serde_json::from_value(job_type).unwrap());
    });
    let mut task = task(&origin.url("/"));
    task.headers = vec![
        header("cookie", "c=1"),
        header("x-api-key", "k"),
        header("accept", "image/png"),
        header("user-agent", "mine/1"),
        header("referer", "http://r/"),
    ];
    assert_stored(&fetcher.outcome(task));
    for request in origin.requests() {
        for expected in ["authorization: basic dtpw", "cookie: c=1", "x-api-key: k", "x-default: d", "user-agent: mine/1"] {
            assert!(request.contains(expected), "{expected} in {request}");
        }
    }
    let crossed = &other.requests()[0];
    for secret in ["authorization", "cookie", "x-api-key", "x-default", "referer"] {
        assert!(!crossed.contains(secret), "{secret} in {crossed}");
    }
    assert!(crossed.contains("accept: image/png") && crossed.contains("user-agent: mine/1"));
    assert!(crossed.contains(&format!("host: {}", other.address)));
}

#[test]
fn case_26_keys_never_come_from_the_origin() {
    let long = "n".repeat(4096);
    for name in ["../../etc/passwd", "..%2f..%2fx", "a\\b", &long] {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Disposition: attachment; filename=\"{name}\"\r\nContent-Length: 1\r\n\r\nx");
        let origin = Origin::always(vec![send(&head)]);
        let mut fetcher = Fetcher::new(|_| {});
        assert_stored(&fetcher.get(&origin.url("/%2e%2e/%2e%2e/%00/..;/x")));
        assert_eq!(fetcher.files().keys().collect::<Vec<_>>(), ["resources/default/job/r"]);
    }
}

#[test]
fn case_26_ids_and_keys_of_direct_producers_stay_inside() {
    let origin = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|_| {});
    for (job, id) in [("..", ".."), ("/etc", "passwd"), ("a/../..", "\0"), ("", "")] {
        let task = DownloadTask { job_id: job.into(), resource_id: id.into(), ..task(&origin.url("/")) };
        assert_stored(&fetcher.outcome(task));
    }
    assert!(fetcher.files().keys().all(|name| name.starts_with("resources/default/")), "{:?}", fetcher.files().keys());
    for key in ["../x", "/abs", "a//b", "manifests/x"] {
        let hint = StorageHint { key: key.into(), ..StorageHint::default() };
        let task = DownloadTask { storage_hint: Some(hint), ..task(&origin.url("/")) };
        assert_failed(&fetcher.outcome(task), "VALIDATION_BAD_KEY");
    }
    let hint = StorageHint { bucket: "elsewhere".into(), ..StorageHint::default() };
    let task = DownloadTask { storage_hint: Some(hint), ..task(&origin.url("/")) };
    assert_failed(&fetcher.outcome(task), "VALIDATION_UNKNOWN_BUCKET");
}

fn hinted(url: &str, checksum: &str, size: &str) -> DownloadTask {
    let mut attributes = TaskAttributes { checksum_hint: checksum.into(), ..TaskAttributes::default() };
    if !size.is_empty() {
        attributes.tags.insert("expected_size".into(), size.into());
    }
    DownloadTask { attributes: Some(attributes), ..task(url) }
}

#[test]
fn case_30_checksum_and_size_mismatches_are_permanent() {
    let origin = Origin::always(ok(b"abc"));
    let table = [
        ("sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "3", ""),
        ("sha1:a9993e364706816aba3e25717850c26c9cd0d89d", "", ""),
        ("md5:900150983cd24fb0d6963f7d28e17f72", "", ""),
        ("md5:00000000000000000000000000000000", "", "DOWNLOAD_CHECKSUM_MISMATCH"),
        ("sha1:0000000000000000000000000000000000000000", "", "DOWNLOAD_CHECKSUM_MISMATCH"),
        ("", "4", "DOWNLOAD_SIZE_MISMATCH"),
        ("crc32:00000000", "", "VALIDATION_BAD_CHECKSUM"),
    ];
    for (checksum, size, code) in table {
        let mut fetcher = retrying(3);
        let outcome = fetcher.outcome(hinted(&origin.url("/"), checksum, size));
        if code.is_empty() {
            assert_stored(&outcome);
        } else {
            assert_failed(&outcome, code);
            assert_eq!(outcome.attempts, 1);
            assert!(fetcher.files().is_empty());
        }
    }
}

#[test]
fn case_31_a_link_past_its_deadline_is_not_tried() {
    let origin = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|_| {});
    let mut expired = task(&origin.url("/"));
    expired.deadline_ms = now_ms() - 1;
    let outcome = fetcher.outcome(expired);
    assert_failed(&outcome, "DOWNLOAD_EXPIRED");
    assert_eq!((outcome.attempts, origin.connections()), (0, 0));
    let mut ample = task(&origin.url("/"));
    ample.deadline_ms = now_ms() + 60_000;
    assert_eq!(fetcher.outcome(ample).state(), ResourceState::Stored);
}

#[test]
fn a_connection_is_used_again_and_a_stale_one_costs_no_attempt() {
    let origin = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|_| {});
    for _ in 0..5 {
        assert_stored(&fetcher.get(&origin.url("/")));
    }
    assert_eq!(origin.connections(), 1);
    // Says keep-alive and closes with the second request in hand.
    let origin = Origin::new(|n, _| if n % 2 == 0 { ok(b"x") } else { vec![Step::Reset] });
    for _ in 0..3 {
        let outcome = fetcher.get(&origin.url("/"));
        assert_stored(&outcome);
        assert_eq!(outcome.attempts, 1);
    }
    assert!(origin.connections() > 1);
}
