//! HTTP/2: one connection for many, the same limits and the same judgement as on HTTP/1.1.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::support::{Fetcher, assert_failed, assert_stored, is_retryable, outcome, task};
use crate::tls::Authority;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// An HTTPS origin that speaks HTTP/2, and HTTP/1.1 with whoever does not.
struct Origin {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    _runtime: Runtime,
}

impl Origin {
    fn new(authority: &Authority, answer: impl Fn(&Request<Incoming>) -> Response<Body> + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut config = authority.server("localhost", |_| {});
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let [connections, requests, running, most]: [Arc<AtomicUsize>; 4] = Default::default();
        let (opened, seen, peak, answer) = (connections.clone(), requests.clone(), most.clone(), Arc::new(answer));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                opened.fetch_add(1, Ordering::SeqCst);
                let (acceptor, seen, running, peak, answer) =
                    (acceptor.clone(), seen.clone(), running.clone(), peak.clone(), answer.clone());
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        let (seen, running, peak, answer) = (seen.clone(), running.clone(), peak.clone(), answer.clone());
                        async move {
                            seen.fetch_add(1, Ordering::SeqCst);
                            peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            if request.uri().path().starts_with("/slow") {
                                tokio::time::sleep(Duration::from_millis(200)).await;
                            }
                            running.fetch_sub(1, Ordering::SeqCst);
                            Ok::<_, Infallible>(answer(&request))
                        }
                    });
                    // Its end is seen by the client.
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(tls), service)
                        .await;
                });
            }
        });
        Self { address, connections, requests, most, _runtime: runtime }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }
}

fn whole(body: &[u8]) -> Body {
    Full::new(Bytes::copy_from_slice(body)).map_err(|never| match never {}).boxed_unsync()
}

/// A body that does not know its length, so that the server does not hold it against Content-Length.
fn unsized_body(body: &[u8]) -> Body {
    StreamBody::new(stream::iter([Ok(Frame::data(Bytes::copy_from_slice(body)))])).boxed_unsync()
}

/// Pieces, then the stream is reset.
fn broken(pieces: &[&[u8]]) -> Body {
    let mut frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    frames.push(Err(std::io::Error::other("reset")));
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

fn fetcher(authority: &Authority, http2: bool) -> Fetcher {
    let path = authority.path();
    Fetcher::new(move |config| {
        config.fetch.ca_file = Some(path);
        config.fetch.http2 = http2;
        config.fetch.per_host_concurrency = 16;
        config.fetch.allow_networks.push("::1/128".parse().unwrap());
    })
}

#[test]
fn many_tasks_share_one_connection() {
    let authority = Authority::new();
    let origin = Origin::new(&authority, |request| {
        assert_eq!(request.version(), Version::HTTP_2);
        assert!(request.uri().authority().is_some() && !request.headers().contains_key("host"));
        Response::new(whole(request.uri().path().as_bytes()))
    });
    let mut fetcher = fetcher(&authority, true);
    // The first one opens the connection that the others find.
    assert_stored(&fetcher.get(&origin.url("/first")));
    for n in 0..16 {
        let mut task = task(&origin.url(&format!("/slow/{n}")));
        task.resource_id = n.to_string();
        fetcher.submit(task);
    }
    for finished in fetcher.drain(16) {
        assert_stored(&outcome(finished));
    }
    assert_eq!((origin.connections.load(Ordering::SeqCst), origin.requests.load(Ordering::SeqCst)), (1, 17));
    assert!(origin.most.load(Ordering::SeqCst) > 4, "requests run side by side");
    assert_eq!(fetcher.files()["resources/default/job/7"], b"/slow/7");
}

#[test]
fn http2_can_be_switched_off() {
    let authority = Authority::new();
    let origin = Origin::new(&authority, |request| Response::new(whole(format!("{:?}", request.version()).as_bytes())));
    let mut fetcher = fetcher(&authority, false);
    assert_stored(&fetcher.get(&origin.url("/")));
    assert_eq!(fetcher.only_file(), b"HTTP/1.1");
}

#[test]
fn bodies_of_every_size_arrive_whole() {
    for size in [0usize, 1, 65_535, 65_536, 1_000_000, 20_000_000] {
        let body: Vec<u8> = (0..size).map(|n| (n * 13 % 251) as u8).collect();
        let authority = Authority::new();
        let sent = body.clone();
        let origin = Origin::new(&authority, move |_| Response::new(whole(&sent)));
        let mut fetcher = fetcher(&authority, true);
        let outcome = fetcher.get(&origin.url("/"));
        assert_stored(&outcome);
        assert!(!outcome.context.contains_key("length_unknown"), "HTTP/2 marks its ends");
        assert!(fetcher.only_file() == body, "{size}");
    }
}

#[test]
fn case_13_a_stream_that_is_reset_or_ends_early_is_retried() {
    let authority = Authority::new();
    let origin = Origin::new(&authority, |request| match request.uri().path() {
        "/reset" => Response::new(broken(&[b"half"])),
        // Ends properly, but too early.
        _ => Response::builder().header("content-length", "100").body(unsized_body(b"half")).unwrap(),
    });
    let mut fetcher = fetcher(&authority, true);
    for (path, code) in [("/reset", "DOWNLOAD_RESET"), ("/short", "DOWNLOAD_TRUNCATED")] {
        assert_failed(&fetcher.get(&origin.url(path)), code);
        assert!(is_retryable(code));
    }
    assert!(fetcher.files().is_empty());
}

#[test]
fn case_16_large_heads_and_many_fields_are_refused() {
    let authority = Authority::new();
    let origin = Origin::new(&authority, |request| {
        let mut response = Response::new(whole(b"x"));
        let count: usize = request.uri().query().unwrap().parse().unwrap();
        let long = HeaderValue::from_str(&"a".repeat(if request.uri().path() == "/large" { count } else { 1 })).unwrap();
        for n in 0..if request.uri().path() == "/large" { 1 } else { count } {
            response.headers_mut().insert(HeaderName::try_from(format!("x-{n}")).unwrap(), long.clone());
        }
        response
    });
    let mut fetcher = fetcher(&authority, true);
    for path in ["/large?65536", "/large?200000", "/many?101", "/many?2000"] {
        assert_failed(&fetcher.get(&origin.url(path)), "DOWNLOAD_BAD_RESPONSE");
    }
    for path in ["/large?30000", "/many?90"] {
        assert_stored(&fetcher.get(&origin.url(path)));
    }
}

#[test]
fn case_19_an_endless_stream_stops_at_max_bytes() {
    let authority = Authority::new();
    let origin = Origin::new(&authority, |_| {
        let piece = Bytes::from(vec![b'x'; 65_536]);
        Response::new(StreamBody::new(stream::repeat_with(move || Ok(Frame::data(piece.clone())))).boxed_unsync())
    });
    let path = authority.path();
    let mut fetcher = Fetcher::new(move |config| {
        config.fetch.ca_file = Some(path);
        config.fetch.max_bytes = 1_000_000;
        config.fetch.allow_networks.push("::1/128".parse().unwrap());
    });
    assert_failed(&fetcher.get(&origin.url("/")), "DOWNLOAD_TOO_LARGE");
    assert!(fetcher.files().is_empty());
}
