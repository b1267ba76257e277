//! Cases 1–4, 7–12 of docs/hostile-cases.md: addresses and URLs.

use std::net::TcpListener;

use crate::support::origin::{Origin, ok, send};
use crate::support::{Fetcher, assert_failed, assert_stored, header, task};

fn strict() -> Fetcher {
    Fetcher::new(|config| config.fetch.allow_networks.clear())
}

#[test]
fn case_01_special_ipv4_literals_are_blocked_and_nobody_is_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut fetcher = strict();
    for host in [
        "127.0.0.1",
        "127.9.9.9",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "192.0.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let outcome = fetcher.get(&format!("http://{host}:{port}/"));
        assert_failed(&outcome, "DOWNLOAD_BLOCKED_ADDRESS");
        assert_eq!(outcome.context["blocked_address"], host);
        assert_eq!(outcome.attempts, 1);
    }
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn case_02_special_ipv6_literals_are_blocked() {
    let mut fetcher = strict();
    for host in ["::", "::1", "fc00::1", "fd12::1", "fe80::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::8.8.8.8"]
    {
        assert_failed(&fetcher.get(&format!("http://[{host}]/")), "DOWNLOAD_BLOCKED_ADDRESS");
    }
}

#[test]
fn case_03_embedded_ipv4_is_blocked_even_around_public_addresses() {
    let mut fetcher = strict();
    for host in
        ["64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::1", "2001::1", "2001:0:4136:e378::1"]
    {
        assert_failed(&fetcher.get(&format!("https://[{host}]/")), "DOWNLOAD_BLOCKED_ADDRESS");
    }
}

#[test]
fn case_04_other_spellings_of_a_literal_are_the_same_literal() {
    let mut fetcher = strict();
    for host in
        ["2130706433", "0177.0.0.1", "0x7f.1", "127.1", "127.0.0.1.", "127%2e0.0.1", "%31%32%37.0.0.1", "0x7f000001", "１２７.0.0.1"]
    {
        assert_failed(&fetcher.get(&format!("http://{host}/")), "DOWNLOAD_BLOCKED_ADDRESS");
    }
}

#[test]
fn case_05_localhost_by_name_is_loopback() {
    let mut fetcher = strict();
    for host in ["localhost", "LOCALHOST", "localhost.", "foo.localhost"] {
        assert_failed(&fetcher.get(&format!("http://{host}/")), "DOWNLOAD_BLOCKED_ADDRESS");
    }
    let origin = Origin::always(ok(b"here"));
    let mut allowed = Fetcher::new(|config| config.fetch.allow_networks.push("::1/128".parse().unwrap()));
    assert_stored(&allowed.get(&format!("http://localhost:{}/", origin.address.port())));
}

#[test]
fn case_07_redirects_are_vetted_like_the_first_url() {
    let table = [
        ("http://10.0.0.1/", "DOWNLOAD_BLOCKED_ADDRESS"),
        ("http://[::1]/", "DOWNLOAD_BLOCKED_ADDRESS"),
        ("//localhost:1/", "DOWNLOAD_BLOCKED_ADDRESS"),
        ("file:///etc/passwd", "DOWNLOAD_BAD_SCHEME"),
        ("gopher://example.com/", "DOWNLOAD_BAD_SCHEME"),
        ("ftp://example.com/", "DOWNLOAD_BAD_SCHEME"),
        ("http://", "DOWNLOAD_BAD_URL"),
    ];
    for (location, code) in table {
        let origin = Origin::always(vec![send(&format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"))]);
        // Only IPv4 loopback is allowed; localhost also is ::1.
        let mut fetcher = Fetcher::new(|_| {});
        let outcome = fetcher.get(&origin.url("/"));
        assert_failed(&outcome, code);
        assert_eq!(origin.connections(), 1);
    }
    let mut fetcher = strict();
    for url in ["ftp://example.com/x", "file:///etc/passwd", "data:,x"] {
        assert_failed(&fetcher.get(url), "DOWNLOAD_BAD_SCHEME");
    }
}

#[test]
fn case_08_eleven_hops_and_loops_end() {
    let origin = Origin::new(|n, _| vec![send(&format!("HTTP/1.1 302 Found\r\nLocation: /{n}\r\nContent-Length: 0\r\n\r\n"))]);
    let mut fetcher = Fetcher::new(|_| {});
    let outcome = fetcher.get(&origin.url("/start"));
    assert_failed(&outcome, "DOWNLOAD_TOO_MANY_REDIRECTS");
    assert_eq!((origin.requests().len(), outcome.redirects), (11, 10));
    assert_eq!(origin.connections(), 1, "redirects use the connection again");

    let origin = Origin::new(|n, _| vec![send(&format!("HTTP/1.1 302 Found\r\nLocation: /{}\r\nContent-Length: 0\r\n\r\n", n % 2))]);
    assert_failed(&fetcher.get(&origin.url("/1")), "DOWNLOAD_TOO_MANY_REDIRECTS");
    assert_eq!(origin.requests().len(), 2);

    let origin = Origin::new(|n, _| {
        if n < 10 { vec![send(&format!("HTTP/1.1 307 x\r\nLocation: /{n}\r\nContent-Length: 0\r\n\r\n"))] } else { ok(b"end") }
    });
    let outcome = fetcher.get(&origin.url("/start"));
    assert_stored(&outcome);
    assert_eq!((outcome.redirects, outcome.final_url), (10, origin.url("/9")));
    assert_eq!(outcome.context["url"], origin.url("/start"));
}

#[test]
fn case_09_userinfo_and_broken_urls_of_direct_producers_are_refused() {
    let mut fetcher = Fetcher::new(|_| {});
    for url in
        ["http://user:secret@127.0.0.1/", "http://user@127.0.0.1/", "", "http://", "not a url", "http://a b/", "http://127.0.0.1:99999/"]
    {
        assert_failed(&fetcher.get(url), "DOWNLOAD_BAD_URL");
    }
}

#[test]
fn case_10_our_own_ports_are_blocked_inside_allowed_networks() {
    let own = Origin::always(ok(b"secret"));
    let other = Origin::always(ok(b"fine"));
    let blocked = own.address.to_string();
    let mut fetcher = Fetcher::new(move |config| config.blocked_endpoints = vec![blocked]);
    assert_failed(&fetcher.get(&own.url("/metrics")), "DOWNLOAD_BLOCKED_ADDRESS");
    assert_stored(&fetcher.get(&other.url("/")));
    assert_eq!(own.connections(), 0);
    let everywhere = format!("0.0.0.0:{}", own.address.port());
    let mut fetcher = Fetcher::new(move |config| config.blocked_endpoints = vec![everywhere]);
    assert_failed(&fetcher.get(&own.url("/")), "DOWNLOAD_BLOCKED_ADDRESS");
}

#[test]
fn case_12_proxy_variables_and_netrc_are_ignored() {
    let proxy = Origin::always(ok(b"proxied"));
    let origin = Origin::always(ok(b"direct"));
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(".netrc"), "machine 127.0.0.1 login u password p\n").unwrap();
    // The variables are read, if at all, when a client is built or used: run the engine in a child that has them.
    let exe = std::env::current_exe().unwrap();
    let status = std::process::Command::new(exe)
        .args(["--exact", "addresses::child_of_case_12", "--ignored"])
        .env("HTTP_PROXY", proxy.url("/"))
        .env("http_proxy", proxy.url("/"))
        .env("ALL_PROXY", proxy.url("/"))
        .env("HOME", home.path())
        .env("CASE_12_URL", origin.url("/"))
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(proxy.connections(), 0);
    assert_eq!(origin.requests().len(), 1);
    assert!(!origin.requests()[0].contains("authorization"), "{:?}", origin.requests());
}

#[test]
#[ignore = "run by case 12"]
fn child_of_case_12() {
    let mut fetcher = Fetcher::new(|_| {});
    assert_stored(&fetcher.get(&std::env::var("CASE_12_URL").unwrap()));
    assert_eq!(fetcher.only_file(), b"direct");
}

#[test]
fn a_direct_task_with_bad_headers_fails_and_connection_headers_are_dropped() {
    let origin = Origin::always(ok(b"x"));
    let mut fetcher = Fetcher::new(|_| {});
    let mut bad = task(&origin.url("/"));
    bad.headers = vec![header("x", "a\r\nb: c")];
    assert_failed(&fetcher.outcome(bad), "VALIDATION_BAD_HEADER");
    let mut dropped = task(&origin.url("/"));
    dropped.headers =
        vec![header("Host", "evil"), header("Transfer-Encoding", "chunked"), header("Content-Length", "5"), header("x-mine", "1")];
    assert_stored(&fetcher.outcome(dropped));
    let request = &origin.requests()[0];
    assert!(
        request.contains("x-mine: 1") && !request.contains("evil") && !request.contains("chunked") && !request.contains("content-length")
    );
}
