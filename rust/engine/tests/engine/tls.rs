//! Cases 14 and 23 of docs/hostile-cases.md: TLS, with certificates made on the spot.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::{Fetcher, assert_failed, assert_stored, is_retryable};

pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: tempfile::NamedTempFile,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(issuer.pem().as_bytes()).unwrap();
        Self { issuer, file }
    }

    pub fn server(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        server_config(vec![certificate.der().clone()], &key)
    }

    pub fn path(&self) -> String {
        self.file.path().to_str().unwrap().to_owned()
    }
}

fn server_config(chain: Vec<rustls::pki_types::CertificateDer<'static>>, key: &KeyPair) -> ServerConfig {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(aws_lc_rs::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

/// Serves one fixed answer per connection, then closes with or without close_notify.
fn serve(config: ServerConfig, answer: &'static [u8], notify: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::new(config);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut tls = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
            let mut seen: Vec<u8> = Vec::new();
            let mut chunk = [0; 1024];
            while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                match tls.read(&mut chunk) {
                    Ok(read) if read > 0 => seen.extend(&chunk[..read]),
                    // The client did not like the certificate.
                    _ => break,
                }
            }
            if tls.write_all(answer).is_ok() && notify {
                tls.conn.send_close_notify();
            }
            // A client that has gone makes this fail, as it may.
            let _ = tls.flush();
            let _: &TcpStream = &tls.sock;
        }
    });
    address
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret";

fn fetcher(authority: &Authority, http2: bool) -> Fetcher {
    let path = authority.path();
    Fetcher::new(move |config| {
        config.fetch.ca_file = Some(path);
        config.fetch.http2 = http2;
        config.fetch.allow_networks.push("::1/128".parse().unwrap());
    })
}

#[test]
fn a_certificate_of_the_own_authority_is_good() {
    let authority = Authority::new();
    let address = serve(authority.server("localhost", |_| {}), OK, true);
    let mut fetcher = fetcher(&authority, true);
    let outcome = fetcher.get(&format!("https://localhost:{}/", address.port()));
    assert_stored(&outcome);
    assert!(outcome.timings.unwrap().tls > 0);
    let address = serve(authority.server("127.0.0.1", |_| {}), OK, true);
    assert_stored(&fetcher.get(&format!("https://{address}/")));
}

#[test]
fn case_23_expired_self_signed_and_wrong_host_are_permanent() {
    let authority = Authority::new();
    let mut fetcher = fetcher(&authority, true);
    let expired = authority.server("localhost", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
    });
    let future = authority.server("localhost", |params| {
        params.not_before = date_time_ymd(2190, 1, 1);
        params.not_after = date_time_ymd(2191, 2, 1);
    });
    let wrong_host = authority.server("elsewhere.test", |_| {});
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let self_signed = server_config(vec![own.cert.der().clone()], &own.signing_key);
    for config in [expired, future, wrong_host, self_signed] {
        let address = serve(config, OK, true);
        let outcome = fetcher.get(&format!("https://localhost:{}/", address.port()));
        assert_failed(&outcome, "DOWNLOAD_TLS");
        assert_eq!(outcome.attempts, 1);
    }
    assert!(!is_retryable("DOWNLOAD_TLS"));
    assert!(fetcher.files().is_empty());
}

#[test]
fn case_23_verification_can_be_switched_off() {
    let own = rcgen::generate_simple_self_signed(vec!["elsewhere.test".to_owned()]).unwrap();
    let address = serve(server_config(vec![own.cert.der().clone()], &own.signing_key), OK, true);
    let mut fetcher = Fetcher::new(|config| config.fetch.verify_tls = false);
    assert_stored(&fetcher.get(&format!("https://{address}/")));
}

#[test]
fn case_23_plain_http_where_tls_should_be_is_permanent() {
    let origin = crate::support::origin::Origin::always(crate::support::origin::ok(b"x"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // What a client hello gets from a web server.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let mut fetcher = Fetcher::new(|_| {});
    assert_failed(&fetcher.get(&format!("https://{address}/")), "DOWNLOAD_TLS");
    assert_stored(&fetcher.get(&origin.url("/")));
}

#[test]
fn case_14_close_delimited_under_tls_needs_close_notify() {
    const UNTIL_CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nuntil the end";
    let authority = Authority::new();
    let mut fetcher = fetcher(&authority, false);
    let clean = serve(authority.server("localhost", |_| {}), UNTIL_CLOSE, true);
    let outcome = fetcher.get(&format!("https://localhost:{}/", clean.port()));
    assert_stored(&outcome);
    assert_eq!(outcome.context["length_unknown"], "true");
    let cut = serve(authority.server("localhost", |_| {}), UNTIL_CLOSE, false);
    let outcome = fetcher.get(&format!("https://localhost:{}/", cut.port()));
    assert_failed(&outcome, "DOWNLOAD_TRUNCATED");
    assert!(is_retryable(&outcome.code));
    assert_eq!(fetcher.only_file(), b"until the end");
}

#[test]
fn a_bad_ca_file_is_named_at_the_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    for path in [path, "/nonexistent/ca.pem".to_owned()] {
        let mut config = crate::support::config();
        config.storage.url = "file:///tmp/fetchbox-never-used".into();
        config.fetch.ca_file = Some(path.clone());
        let error = fetchbox_engine::Engine::start(config, None, Arc::new(|| {})).err().unwrap().to_string();
        assert!(error.contains(&path), "{error}");
    }
}
