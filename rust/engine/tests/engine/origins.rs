//! Cases 13–20 of docs/hostile-cases.md: origins that break off, stall, lie and flood.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::support::origin::{Origin, Step, ok, send};
use crate::support::{Fetcher, assert_failed, assert_stored, is_retryable, task};

fn fails(steps: Vec<Step>, code: &str, retryable: bool) -> fetchbox_model::message::ResourceOutcome {
    let origin = Origin::always(steps);
    let mut fetcher = Fetcher::new(|config| config.fetch.read_timeout = 1.0);
    let outcome = fetcher.get(&origin.url("/"));
    assert_failed(&outcome, code);
    assert_eq!(is_retryable(code), retryable);
    assert!(fetcher.files().is_empty(), "{:?}", fetcher.files().keys());
    outcome
}

#[test]
fn case_13_body_shorter_than_content_length() {
    let outcome = fails(vec![send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"), Step::Close], "DOWNLOAD_TRUNCATED", true);
    assert_eq!(outcome.http_status, 200);
    assert_eq!(outcome.context["bytes_received"], "5");
}

#[test]
fn case_13_large_body_cut_short_leaves_no_file() {
    let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n".to_vec();
    bytes.resize(2_000_000, b'x');
    fails(vec![Step::Send(bytes), Step::Close], "DOWNLOAD_TRUNCATED", true);
}

#[test]
fn case_13_chunked_without_the_end() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in ["5\r\nhello\r\n", "5\r\nhel", "5\r\nhello", "5\r", ""] {
        fails(vec![send(&format!("{head}{body}")), Step::Close], "DOWNLOAD_TRUNCATED", true);
    }
}

#[test]
fn case_14_close_delimited_over_plain_http_is_stored_and_flagged() {
    for head in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n"] {
        let origin = Origin::always(vec![send(&format!("{head}until the end")), Step::Close]);
        let mut fetcher = Fetcher::new(|_| {});
        let outcome = fetcher.get(&origin.url("/"));
        assert_stored(&outcome);
        assert_eq!(outcome.context["length_unknown"], "true");
        assert_eq!(fetcher.only_file(), b"until the end");
    }
    let origin = Origin::always(ok(b"known"));
    assert!(!Fetcher::new(|_| {}).get(&origin.url("/")).context.contains_key("length_unknown"));
}

#[test]
fn case_15_two_different_content_lengths() {
    fails(vec![send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")], "DOWNLOAD_BAD_FRAMING", false);
    fails(vec![send("HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!")], "DOWNLOAD_BAD_FRAMING", false);
    fails(vec![send("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello!")], "DOWNLOAD_BAD_FRAMING", false);
    fails(vec![send("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nhello!")], "DOWNLOAD_BAD_FRAMING", false);
}

#[test]
fn case_15_content_length_with_chunked() {
    let body = "5\r\nhello\r\n0\r\n\r\n";
    fails(
        vec![send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))],
        "DOWNLOAD_BAD_FRAMING",
        false,
    );
    fails(
        vec![send(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n{body}"))],
        "DOWNLOAD_BAD_FRAMING",
        false,
    );
    fails(vec![send(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n{body}"))], "DOWNLOAD_BAD_FRAMING", false);
    fails(
        vec![send(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))],
        "DOWNLOAD_BAD_FRAMING",
        false,
    );
    fails(vec![send("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")], "DOWNLOAD_BAD_FRAMING", false);
}

#[test]
fn case_15_bad_chunk_sizes() {
    for body in ["zz\r\nhello\r\n0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n", "fffffffffffffffffffff\r\nhello\r\n", "5\r\nhelloXX0\r\n\r\n"] {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        fails(vec![send(&format!("{head}{body}"))], "DOWNLOAD_BAD_FRAMING", false);
    }
}

#[test]
fn case_16_64_kib_of_headers() {
    let large = format!("HTTP/1.1 200 OK\r\nX-Big: {}\r\nContent-Length: 1\r\n\r\nx", "a".repeat(65 << 10));
    fails(vec![send(&large)], "DOWNLOAD_BAD_RESPONSE", false);
    // In one piece with its end and the body, so that it is there whole before anybody has measured it.
    for filler in ["a".repeat(64 << 10), "a".repeat((64 << 10) - 30)] {
        fails(vec![send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX-Big: {filler}\r\n\r\nx"))], "DOWNLOAD_BAD_RESPONSE", false);
    }
    let large = (0..64).map(|n| format!("X-{n:02}: {}\r\n", "a".repeat(1017))).collect::<String>();
    fails(vec![send(&format!("HTTP/1.1 200 OK\r\n{large}Content-Length: 1\r\n\r\nx"))], "DOWNLOAD_BAD_RESPONSE", false);
    let endless = vec![send("HTTP/1.1 200 OK\r\nX-Big: "), Step::Endless(vec![b'a'; 4096])];
    fails(endless, "DOWNLOAD_BAD_RESPONSE", false);
    // What is below the limit is taken.
    let origin = Origin::always(vec![send(&format!("HTTP/1.1 200 OK\r\nX-Big: {}\r\nContent-Length: 1\r\n\r\nx", "a".repeat(30 << 10)))]);
    assert_stored(&Fetcher::new(|_| {}).get(&origin.url("/")));
}

#[test]
fn case_16_more_than_100_fields() {
    let fields = |count: usize| (0..count).map(|n| format!("X-{n}: v\r\n")).collect::<String>();
    fails(vec![send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n{}\r\nx", fields(100)))], "DOWNLOAD_BAD_RESPONSE", false);
    let origin = Origin::always(vec![send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n{}\r\nx", fields(99)))]);
    assert_stored(&Fetcher::new(|_| {}).get(&origin.url("/")));
}

#[test]
fn case_16_endless_1xx() {
    fails(vec![Step::Endless(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(50))], "DOWNLOAD_BAD_RESPONSE", false);
    let origin = Origin::always([vec![send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n")], ok(b"final")].concat());
    assert_stored(&Fetcher::new(|_| {}).get(&origin.url("/")));
}

#[test]
fn case_16_garbage_instead_of_http() {
    for text in [
        "garbage\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "HTTP/1.1 99999 x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "\0\0\0\0\0\0\0\0",
        // Nobody asked for another protocol.
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        fails(vec![send(text), Step::Hang], "DOWNLOAD_BAD_RESPONSE", false);
    }
    fails(
        vec![send("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/10\r\nContent-Length: 1\r\n\r\nx")],
        "DOWNLOAD_BAD_RESPONSE",
        false,
    );
}

#[test]
fn case_17_one_byte_a_second() {
    let mut steps = vec![send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")];
    for _ in 0..100 {
        steps.extend([send("x"), Step::Pause(Duration::from_millis(100))]);
    }
    let origin = Origin::always(steps);
    let mut fetcher = Fetcher::new(|config| {
        config.fetch.read_timeout = 1.0;
        config.fetch.min_speed = 1000;
    });
    assert_failed(&fetcher.get(&origin.url("/")), "DOWNLOAD_TOO_SLOW");
    assert!(is_retryable("DOWNLOAD_TOO_SLOW"));
    assert!(fetcher.files().is_empty());
}

#[test]
fn case_17_headers_that_never_come() {
    fails(vec![Step::Hang], "DOWNLOAD_TIMEOUT", true);
    fails(vec![send("HTTP/1.1 200 OK\r\nContent-Le"), Step::Hang], "DOWNLOAD_TIMEOUT", true);
}

#[test]
fn case_17_stall_in_the_body() {
    let started = Instant::now();
    fails(vec![send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), Step::Hang], "DOWNLOAD_TIMEOUT", true);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn case_17_total_timeout_and_deadline_end_a_steady_trickle() {
    let mut steps = vec![send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")];
    for _ in 0..100 {
        steps.extend([send("x"), Step::Pause(Duration::from_millis(50))]);
    }
    let origin = Origin::always(steps);
    let mut fetcher = Fetcher::new(|config| config.fetch.total_timeout = 0.5);
    assert_failed(&fetcher.get(&origin.url("/")), "DOWNLOAD_TIMEOUT");
    let mut fetcher = Fetcher::new(|_| {});
    let mut task = task(&origin.url("/"));
    task.deadline_ms = now_ms() + 700;
    assert_failed(&fetcher.outcome(task), "DOWNLOAD_EXPIRED");
}

pub fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

#[test]
fn case_18_compressed_bodies_are_stored_as_sent() {
    for coding in ["gzip", "br", "zstd", "gzip, gzip"] {
        let body = b"\x1f\x8b\x08\0not really compressed";
        let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n", body.len());
        let origin = Origin::always(vec![Step::Send([head.as_bytes(), body].concat())]);
        let mut fetcher = Fetcher::new(|_| {});
        let outcome = fetcher.get(&origin.url("/"));
        assert_stored(&outcome);
        assert_eq!(fetcher.only_file(), body);
        assert_eq!(outcome.context["content_encoding"], coding);
        assert!(origin.requests()[0].contains("accept-encoding: identity"));
    }
}

#[test]
fn case_19_endless_body_stops_at_max_bytes() {
    for head in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"] {
        let origin = Origin::always(vec![send(head), Step::Endless(vec![b'x'; 65536])]);
        let mut fetcher = Fetcher::new(|config| config.fetch.max_bytes = 1_000_000);
        let outcome = fetcher.get(&origin.url("/"));
        assert_failed(&outcome, "DOWNLOAD_TOO_LARGE");
        assert!(fetcher.files().is_empty());
    }
    let origin = Origin::always(ok(&[7; 1000]));
    assert_stored(&Fetcher::new(|config| config.fetch.max_bytes = 1000).get(&origin.url("/")));
    assert_failed(&Fetcher::new(|config| config.fetch.max_bytes = 999).get(&origin.url("/")), "DOWNLOAD_TOO_LARGE");
}

#[test]
fn case_20_a_million_one_byte_chunks_are_taken_and_others_go_on() {
    const CHUNKS: usize = 1_000_000;
    let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    bytes.extend(b"1\r\nx\r\n".repeat(CHUNKS));
    bytes.extend(b"0\r\n\r\n");
    let chunky = Origin::always(vec![Step::Send(bytes)]);
    let plain = Origin::always(ok(b"quick"));
    let mut fetcher = Fetcher::new(|config| config.runtime_threads = 1);
    fetcher.submit(task(&chunky.url("/chunky")));
    let mut slowest = Duration::ZERO;
    let mut finished = 0;
    while finished == 0 {
        let started = Instant::now();
        let mut quick = task(&plain.url("/quick"));
        quick.resource_id = "quick".into();
        fetcher.submit(quick);
        let mut done = fetcher.drain(1);
        if done.iter().any(|item| item.task.url.ends_with("/chunky")) {
            finished += 1;
            if done.len() < 2 {
                done.extend(fetcher.drain(1));
            }
        } else {
            slowest = slowest.max(started.elapsed());
        }
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    assert_eq!(fetcher.files()["resources/default/job/r"].len(), CHUNKS);
}

#[test]
fn case_24_refused_reset_and_black_hole() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut fetcher = Fetcher::new(|_| {});
    let outcome = fetcher.get(&format!("http://{free}/"));
    assert_failed(&outcome, "DOWNLOAD_CONNECT_FAILED");
    assert!(is_retryable(&outcome.code));

    for steps in [vec![Step::Reset], vec![Step::Close], vec![send("HTTP/1.1 200 OK\r\nConte"), Step::Reset]] {
        fails(steps, "DOWNLOAD_RESET", true);
    }
    let reset_in_body =
        vec![send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), Step::Pause(Duration::from_millis(100)), Step::Reset];
    fails(reset_in_body, "DOWNLOAD_RESET", true);

    // A listener whose backlog is full drops further SYNs.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let _held: Vec<_> = (0..3).filter_map(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()).collect();
    let mut fetcher = Fetcher::new(|config| config.fetch.connect_timeout = 0.5);
    let outcome = fetcher.get(&format!("http://{address}/"));
    assert_failed(&outcome, "DOWNLOAD_CONNECT_TIMEOUT");
    assert!(is_retryable(&outcome.code));
}
