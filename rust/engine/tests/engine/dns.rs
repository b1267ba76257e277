//! Cases 5, 6, 28 of docs/hostile-cases.md: names, against a scripted name server.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::origin::{Origin, ok};
use crate::support::{Fetcher, assert_failed, assert_stored, is_retryable, task};

const NXDOMAIN: u8 = 3;
const SERVFAIL: u8 = 2;

/// What the name server does with a question.
enum Reply {
    Addresses(Vec<IpAddr>),
    Code(u8),
    Silence,
}

struct NameServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

fn ips(list: &[&str]) -> Reply {
    Reply::Addresses(list.iter().map(|ip| ip.parse().unwrap()).collect())
}

impl NameServer {
    /// `script` is given the name and how often it was asked for an A record before.
    fn new(script: impl Fn(&str, usize) -> Reply + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = asked.clone();
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((size, peer)) = socket.recv_from(&mut buffer) {
                let (name, kind, end) = question(&buffer[..size]);
                let earlier = seen.lock().unwrap().iter().filter(|other| **other == name).count();
                if kind == 1 {
                    seen.lock().unwrap().push(name.clone());
                }
                let response = match script(&name, earlier) {
                    Reply::Silence => continue,
                    Reply::Code(code) => respond(&buffer[..end], code, &[], kind),
                    Reply::Addresses(list) => respond(&buffer[..end], 0, &list, kind),
                };
                socket.send_to(&response, peer).unwrap();
            }
        });
        Self { address, asked }
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|other| *other == name).count()
    }
}

/// The name, the record type and where the question ends.
fn question(query: &[u8]) -> (String, u16, usize) {
    let mut at = 12;
    let mut labels = Vec::new();
    while query[at] != 0 {
        let len = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + len]).to_lowercase());
        at += 1 + len;
    }
    (labels.join("."), u16::from_be_bytes([query[at + 1], query[at + 2]]), at + 5)
}

fn respond(query: &[u8], code: u8, addresses: &[IpAddr], kind: u16) -> Vec<u8> {
    let records: Vec<Vec<u8>> = addresses
        .iter()
        .filter_map(|ip| match ip {
            IpAddr::V4(v4) if kind == 1 => Some(v4.octets().to_vec()),
            IpAddr::V6(v6) if kind == 28 => Some(v6.octets().to_vec()),
            _ => None,
        })
        .collect();
    let mut out = query[..2].to_vec();
    out.extend([0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    out.extend(&query[12..]);
    for record in records {
        // A pointer to the question's name, the type, class IN, no time to live.
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 0]);
        out.extend((record.len() as u16).to_be_bytes());
        out.extend(record);
    }
    out
}

fn fetcher(server: &NameServer, allow: &str) -> Fetcher {
    let (address, allow) = (server.address.to_string(), allow.parse().unwrap());
    Fetcher::new(move |config| {
        config.fetch.dns_servers = vec![address];
        config.fetch.allow_networks = vec![allow];
    })
}

#[test]
fn case_05_only_the_vetted_address_is_connected_to() {
    let origin = Origin::always(ok(b"here"));
    let server = NameServer::new(|_, earlier| if earlier == 0 { ips(&["127.0.0.1"]) } else { ips(&["10.0.0.1"]) });
    let mut fetcher = fetcher(&server, "127.0.0.1/32");
    let url = format!("http://rebind.test:{}/", origin.address.port());
    for _ in 0..3 {
        assert_stored(&fetcher.get(&url));
    }
    assert_eq!(server.asked("rebind.test"), 1, "a time to live of zero is raised to the floor");
    assert!(origin.requests()[0].contains(&format!("host: rebind.test:{}", origin.address.port())));
}

#[test]
fn case_05_a_name_that_turns_to_a_private_address_is_blocked() {
    let server = NameServer::new(|_, _| ips(&["10.0.0.1"]));
    let mut fetcher = fetcher(&server, "127.0.0.1/32");
    let outcome = fetcher.get("http://inside.test/");
    assert_failed(&outcome, "DOWNLOAD_BLOCKED_ADDRESS");
    assert_eq!(outcome.context["blocked_address"], "10.0.0.1");
}

#[test]
fn case_06_answers_that_mix_public_and_private_are_blocked() {
    let origin = Origin::always(ok(b"here"));
    let server = NameServer::new(|name, _| match name {
        "mixed.test" => ips(&["93.184.216.34", "127.0.0.1"]),
        "mixed6.test" => ips(&["93.184.216.34", "::ffff:10.0.0.1"]),
        _ => ips(&["127.0.0.1", "10.0.0.1"]),
    });
    let mut fetcher = fetcher(&server, "10.0.0.0/8");
    for name in ["mixed.test", "mixed6.test", "other.test"] {
        assert_failed(&fetcher.get(&format!("http://{name}:{}/", origin.address.port())), "DOWNLOAD_BLOCKED_ADDRESS");
    }
    assert_eq!(origin.connections(), 0);
}

#[test]
fn case_28_nxdomain_is_permanent_and_remembered() {
    let server = NameServer::new(|_, _| Reply::Code(NXDOMAIN));
    let mut fetcher = fetcher(&server, "127.0.0.1/32");
    for _ in 0..3 {
        assert_failed(&fetcher.get("http://nowhere.test/"), "DOWNLOAD_DNS_NXDOMAIN");
    }
    assert_eq!(server.asked("nowhere.test"), 1);
    assert!(!is_retryable("DOWNLOAD_DNS_NXDOMAIN"));
}

#[test]
fn case_28_a_name_without_addresses_is_like_none() {
    let server = NameServer::new(|_, _| ips(&[]));
    let mut fetcher = fetcher(&server, "127.0.0.1/32");
    assert_failed(&fetcher.get("http://empty.test/"), "DOWNLOAD_DNS_NXDOMAIN");
}

#[test]
fn case_28_servfail_is_retryable() {
    let server = NameServer::new(|_, _| Reply::Code(SERVFAIL));
    let mut fetcher = fetcher(&server, "127.0.0.1/32");
    assert_failed(&fetcher.get("http://broken.test/"), "DOWNLOAD_DNS_SERVFAIL");
    assert!(is_retryable("DOWNLOAD_DNS_SERVFAIL"));
}

#[test]
fn case_28_silence_is_a_timeout() {
    let server = NameServer::new(|_, _| Reply::Silence);
    let address = server.address.to_string();
    let mut fetcher = Fetcher::new(move |config| {
        config.fetch.dns_servers = vec![address];
        config.fetch.connect_timeout = 1.0;
    });
    let started = Instant::now();
    assert_failed(&fetcher.get("http://silent.test/"), "DOWNLOAD_DNS_TIMEOUT");
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(is_retryable("DOWNLOAD_DNS_TIMEOUT"));
}

#[test]
fn one_question_serves_many_tasks() {
    let origin = Origin::always(ok(b"here"));
    let server = NameServer::new(|_, _| {
        thread::sleep(Duration::from_millis(100));
        ips(&["127.0.0.1"])
    });
    let mut fetcher = fetcher(&server, "127.0.0.1/32");
    for n in 0..8 {
        let mut task = task(&format!("http://many.test:{}/", origin.address.port()));
        task.resource_id = n.to_string();
        fetcher.submit(task);
    }
    fetcher.drain(8);
    assert_eq!(server.asked("many.test"), 1);
}
