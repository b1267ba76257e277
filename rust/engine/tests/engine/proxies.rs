//! Cases 11 and 29 of docs/hostile-cases.md: proxies, good and bad.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use fetchbox_engine::{EngineConfig, ProxyPoolConfig};
use fetchbox_model::message::ProxyHint;

use crate::support::origin::{Origin, Step, ok, send};
use crate::support::{Fetcher, assert_failed, assert_stored, is_retryable, task};

/// A proxy that notes what it was asked for.
struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn new(serve: impl Fn(TcpStream, &Mutex<Vec<String>>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (seen, serve) = (asked.clone(), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, serve) = (seen.clone(), serve.clone());
                thread::spawn(move || serve(stream, &seen));
            }
        });
        Self { address, asked }
    }

    /// CONNECT; names lead to `names`.
    fn connect(names: SocketAddr) -> Self {
        Self::new(move |mut stream, asked| {
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            asked.lock().unwrap().push(head.to_ascii_lowercase());
            let origin = TcpStream::connect(target.parse().unwrap_or(names)).unwrap();
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
            splice(stream, origin);
        })
    }

    /// SOCKS 5 with user `u` and password `p`.
    fn socks() -> Self {
        Self::new(|mut stream, asked| {
            let mut bytes = [0; 2];
            stream.read_exact(&mut bytes).unwrap();
            stream.read_exact(&mut vec![0; usize::from(bytes[1])]).unwrap();
            stream.write_all(&[5, 2]).unwrap();
            let mut login = [0; 5];
            stream.read_exact(&mut login).unwrap();
            assert_eq!(login, [1, 1, b'u', 1, b'p']);
            stream.write_all(&[1, 0]).unwrap();
            let mut request = [0; 10];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(request[..4], [5, 1, 0, 1], "an IPv4 address");
            let port = u16::from_be_bytes([request[8], request[9]]);
            let target = SocketAddr::from(([request[4], request[5], request[6], request[7]], port));
            asked.lock().unwrap().push(target.to_string());
            stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
            splice(stream, TcpStream::connect(target).unwrap());
        })
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn splice(mut a: TcpStream, mut b: TcpStream) {
    let (mut a2, mut b2) = (a.try_clone().unwrap(), b.try_clone().unwrap());
    thread::spawn(move || drop(std::io::copy(&mut a2, &mut b2)));
    let _ = std::io::copy(&mut b, &mut a);
}

fn pool(endpoints: &[String], fallbacks: &[&str], remote_dns: bool) -> ProxyPoolConfig {
    let fallbacks = fallbacks.iter().map(|name| (*name).to_owned()).collect();
    ProxyPoolConfig { endpoints: endpoints.to_vec(), fallbacks, remote_dns, backoff_base: 60.0, ..ProxyPoolConfig::default() }
}

fn by_proxy(url: &str) -> fetchbox_model::message::DownloadTask {
    let hint = ProxyHint { primary_pool: "main".into(), fallbacks: Vec::new() };
    fetchbox_model::message::DownloadTask { proxy_hint: Some(hint), ..task(url) }
}

fn fetcher(pools: &[(&str, ProxyPoolConfig)]) -> Fetcher {
    let pools = pools.iter().map(|(name, pool)| ((*name).to_owned(), pool.clone())).collect();
    Fetcher::new(move |config: &mut EngineConfig| config.proxy_pools = pools)
}

#[test]
fn case_11_connect_and_socks_ask_for_the_vetted_address() {
    let origin = Origin::always(ok(b"through"));
    let url = format!("http://localhost:{}/", origin.address.port());
    let connect = Proxy::connect(origin.address);
    let socks = Proxy::socks();
    let endpoints = [format!("http://u:p@{}", connect.address), format!("socks5://u:p@{}", socks.address)];
    for endpoint in endpoints {
        let main = pool(std::slice::from_ref(&endpoint), &[], false);
        let mut fetcher = Fetcher::new(move |config| {
            config.proxy_pools.insert("main".into(), main);
            config.fetch.allow_networks.push("::1/128".parse().unwrap());
        });
        let outcome = fetcher.outcome(by_proxy(&url));
        assert_stored(&outcome);
        assert_eq!(outcome.proxy, endpoint.replace("u:p@", ""), "no credentials");
    }
    let asked = &connect.asked()[0];
    assert!(asked.starts_with(&format!("connect 127.0.0.1:{} ", origin.address.port())), "{asked}");
    assert!(asked.contains("proxy-authorization: basic dtpw"));
    assert_eq!(socks.asked(), [format!("127.0.0.1:{}", origin.address.port())]);
    for request in origin.requests() {
        assert!(request.contains("host: localhost") && !request.contains("proxy-authorization"), "{request}");
    }
}

#[test]
fn case_11_what_may_not_be_connected_to_is_not_asked_of_a_proxy_either() {
    let proxy = Proxy::connect("127.0.0.1:1".parse().unwrap());
    for remote_dns in [false, true] {
        let mut fetcher = fetcher(&[("main", pool(&[format!("http://{}", proxy.address)], &[], remote_dns))]);
        for url in ["http://10.0.0.1/", "http://[::1]/", "http://localhost/", "http://0x0a000001/", "http://x.localhost/"] {
            assert_failed(&fetcher.outcome(by_proxy(url)), "DOWNLOAD_BLOCKED_ADDRESS");
        }
    }
    assert_eq!(proxy.asked(), Vec::<String>::new());
}

#[test]
fn case_11_remote_dns_gives_the_proxy_the_name() {
    let origin = Origin::always(ok(b"far"));
    let proxy = Proxy::connect(origin.address);
    let mut fetcher = fetcher(&[("main", pool(&[format!("http://{}", proxy.address)], &[], true))]);
    assert_stored(&fetcher.outcome(by_proxy("http://only.the.proxy.knows.invalid/")));
    assert!(proxy.asked()[0].starts_with("connect only.the.proxy.knows.invalid:80 "), "{:?}", proxy.asked());
}

#[test]
fn case_29_bad_endpoints_are_passed_over_and_the_next_tier_is_asked() {
    let origin = Origin::always(ok(b"at last"));
    let refuses = Origin::always(vec![send("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")]);
    let forbids = Origin::always(vec![send("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")]);
    let closes = Origin::always(vec![Step::Close]);
    let garbage = Origin::always(vec![send("not http at all\r\n\r\n"), Step::Close]);
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let good = Proxy::connect(origin.address);
    let bad: Vec<String> = [refuses.address, forbids.address, closes.address, garbage.address, dead]
        .iter()
        .map(|at| format!("http://user:secret@{at}"))
        .collect();
    let bad = [bad, vec![format!("https://user:secret@{}", garbage.address), format!("socks5://user:secret@{}", garbage.address)]].concat();
    let mut fetcher =
        fetcher(&[("main", pool(&bad, &["second"], false)), ("second", pool(&[format!("http://{}", good.address)], &[], false))]);
    let finished = fetcher.run(by_proxy(&origin.url("/")));
    assert!(finished.attempts.is_empty(), "the next endpoint is asked within the attempt");
    let outcome = crate::support::outcome(finished);
    assert_stored(&outcome);
    assert_eq!(outcome.proxy, format!("http://{}", good.address));
    assert!(
        fetcher.engine().metrics_text().contains("fetchbox_proxy_failures_total{pool=\"main\"} 7"),
        "{}",
        fetcher.engine().metrics_text()
    );
    // They rest: the next task does not ask them again.
    let before = refuses.connections();
    assert_stored(&fetcher.outcome(by_proxy(&origin.url("/"))));
    assert_eq!(refuses.connections(), before);
}

#[test]
fn case_29_a_silent_proxy_costs_one_connect_timeout() {
    let origin = Origin::always(ok(b"at last"));
    let silent = Origin::always(vec![Step::Hang]);
    let good = Proxy::connect(origin.address);
    let main = pool(&[silent.address, good.address].map(|at| format!("http://{at}")), &[], false);
    let mut fetcher = Fetcher::new(move |config| {
        config.proxy_pools.insert("main".into(), main);
        config.fetch.connect_timeout = 0.5;
    });
    let finished = fetcher.run(by_proxy(&origin.url("/")));
    assert!(finished.attempts.is_empty());
    assert_stored(&crate::support::outcome(finished));
    assert_eq!(silent.requests().len(), 1);
}

#[test]
fn case_29_exhausted_pools_are_retried_and_then_final_and_no_credentials_show() {
    let refuses = Origin::always(vec![send("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")]);
    let main = pool(&[format!("http://user:secret@{}", refuses.address)], &[], false);
    let mut fetcher = Fetcher::new(move |config| {
        config.proxy_pools.insert("main".into(), ProxyPoolConfig { backoff_base: 0.001, ..main });
        config.fetch.max_attempts = 3;
    });
    let finished = fetcher.run(by_proxy("http://127.0.0.1:1/"));
    assert_eq!(finished.attempts.len(), 3);
    assert!(finished.attempts.iter().all(|attempt| attempt.code == "DOWNLOAD_PROXY_FAILED" && is_retryable(&attempt.code)));
    let said = format!("{finished:?}");
    assert!(!said.contains("secret"), "{said}");
    let outcome = crate::support::outcome(finished);
    assert_failed(&outcome, "DOWNLOAD_PROXY_EXHAUSTED");
    assert!(!is_retryable(&outcome.code));
}

#[test]
fn case_29_a_truncating_proxy_rests_and_the_retry_takes_another() {
    let body = vec![7; 100_000];
    let origin = Origin::always(ok(&body));
    let target = origin.address;
    let truncates = Proxy::new(move |mut stream, _| {
        let mut head = [0; 4096];
        let _ = stream.read(&mut head);
        let mut origin = TcpStream::connect(target).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let read = stream.read(&mut head).unwrap();
        origin.write_all(&head[..read]).unwrap();
        let _ = std::io::copy(&mut origin.take(50_000), &mut stream);
    });
    let good = Proxy::connect(origin.address);
    let endpoints = [truncates.address, good.address].map(|at| format!("http://{at}"));
    let main = pool(&endpoints, &[], false);
    let mut fetcher = Fetcher::new(move |config| {
        config.proxy_pools.insert("main".into(), main);
        config.fetch.max_attempts = 2;
    });
    let finished = fetcher.run(by_proxy(&origin.url("/")));
    assert_eq!(finished.attempts[0].code, "DOWNLOAD_TRUNCATED");
    assert_stored(&crate::support::outcome(finished));
    assert_eq!(fetcher.only_file(), body);
}

#[test]
fn two_logins_at_one_proxy_do_not_share_connections() {
    let origin = Origin::always(ok(b"body"));
    let proxy = Proxy::connect(origin.address);
    let endpoint = |user: &str| pool(&[format!("http://{user}:secret@{}", proxy.address)], &[], false);
    let mut fetcher = fetcher(&[("main", endpoint("one")), ("second", endpoint("two"))]);
    for name in ["main", "second", "main", "second"] {
        let mut task = by_proxy(&origin.url("/"));
        task.proxy_hint = Some(ProxyHint { primary_pool: name.into(), fallbacks: Vec::new() });
        assert_stored(&fetcher.outcome(task));
    }
    assert_eq!(proxy.asked().len(), 2, "a tunnel each, used twice: {:?}", proxy.asked());
}
