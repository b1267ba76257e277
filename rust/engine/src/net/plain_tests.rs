use std::future::poll_fn;

use fetchbox_model::message::{DownloadTask, HttpHeader};
use http::{HeaderMap, Request};
use http_body_util::Empty;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use super::*;
use crate::EngineConfig;
use crate::fetch::attempt::{check_framing, check_size, head_failure};
use crate::fetch::body::body_failure;
use crate::fetch::request::Headers;
use crate::net::link::Link;
use crate::net::socket::Socket;
use crate::profile::Profiles;

const REQUEST: &str = "GET /a/b?c HTTP/1.1\r\naccept: */*\r\nhost: h\r\n\r\n";

fn text() -> Vec<u8> {
    REQUEST.as_bytes().to_vec()
}

fn request() -> Request<Empty<Bytes>> {
    Request::get("/a/b?c").header("accept", "*/*").header("host", "h").body(Empty::new()).unwrap()
}

/// An answer's status, fields and body, or the code of what is wrong with it.
type Told = Result<(u16, Vec<(String, String)>, Result<Vec<u8>, &'static str>), &'static str>;

async fn exchange(link: &mut Link, plainly: bool) -> Told {
    let response = match link.exchange(|| plainly.then(text), || Ok(request())).await.unwrap() {
        Ok(response) => response,
        Err(error) => return Err(head_failure(&error).code.as_str()),
    };
    let (head, mut body) = response.into_parts();
    if let Err(failure) = check_size(&head).and_then(|()| check_framing(&head)) {
        return Err(failure.code.as_str());
    }
    let mut whole = Vec::new();
    let ended = loop {
        match poll_fn(|cx| link.poll_data(&mut body, cx)).await {
            None => break Ok(()),
            Some(Ok(piece)) => whole.extend_from_slice(&piece),
            Some(Err(error)) => break Err(body_failure(&error).code.as_str()),
        }
    };
    Ok((head.status.as_u16(), told(&head.headers), ended.map(|()| whole)))
}

fn told(fields: &HeaderMap) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect()
}

/// A connection to somebody who answers each request of `answers.len()` with the next one, piece by piece, and hangs up after the last. Resolves to
/// all that was sent to it.
async fn origin(answers: Vec<Vec<u8>>, piece: usize) -> (Link, tokio::task::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    peer.set_nodelay(true).unwrap();
    let answering = tokio::spawn(async move {
        let mut heard = Vec::new();
        for (number, answer) in answers.iter().enumerate() {
            while heard.len() < (number + 1) * REQUEST.len() {
                if peer.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                    return heard;
                }
            }
            for part in answer.chunks(piece) {
                if peer.write_all(part).await.is_err() {
                    return heard;
                }
                tokio::task::yield_now().await;
            }
        }
        let _ = peer.shutdown().await;
        while peer.read_buf(&mut heard).await.unwrap_or(0) > 0 {}
        heard
    });
    (Link::http1(Socket::Plain(stream)), answering)
}

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [head.replace('\n', "\r\n").as_bytes(), b"\r\n\r\n", body].concat()
}

/// Answers of every kind, and whether they are plain.
fn answers() -> Vec<(Vec<u8>, bool)> {
    let long = vec![7; 200_000];
    let fields = |count: usize| (0..count).map(|n| format!("\nx-{n}: y")).collect::<String>();
    let plain = [
        answer("HTTP/1.1 200 OK\nContent-Length: 5", b"hello"),
        answer("HTTP/1.1 200 OK\ncontent-length: 0\nETag: \"x\"", b""),
        answer("HTTP/1.1 200\nCONTENT-LENGTH:5\nConnection: Keep-Alive\nAccept-Ranges: bytes\nLast-Modified: now\nServer: s", b"hello"),
        answer("HTTP/1.1 200 OK\nContent-Length: 200000\nContent-Type: text/\u{e9}\nContent-Encoding: gzip", &long),
        answer("HTTP/1.1 200 OK\nContent-Length: 5", b"hello, and what nobody asked for"),
        answer("HTTP/1.1 200 OK\nContent-Length: 15", b"cut off"),
        answer("HTTP/1.1 200 OK\nContent-Length: 300000", &long),
        answer("HTTP/1.1 200 OK\nETag: a\nX-Robots-Tag: noindex\nETag: b\nContent-Length: 1\nx-ROBOTS-tag: other: none", b"x"),
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_vec(),
        b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(),
    ];
    let other = [
        answer("HTTP/1.0 200 OK\nContent-Length: 5", b"hello"),
        answer("HTTP/1.1 200 OK\nContent-Length: 5\nConnection: close", b"hello"),
        answer("HTTP/1.1 200 OK\nContent-Length: 5\nConnection: keep-alive\nConnection: close", b"hello"),
        answer("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
        answer("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nContent-Length: 5", b"5\r\nhello\r\n0\r\n\r\n"),
        answer("HTTP/1.1 200 OK\nContent-Length: 5\nContent-Length: 5", b"hello"),
        answer("HTTP/1.1 200 OK\nContent-Length: 5\nContent-Length: 6", b"hello!"),
        answer("HTTP/1.1 200 OK\nContent-Length: 5, 5", b"hello"),
        answer("HTTP/1.1 200 OK\nContent-Length: +5", b"hello"),
        answer("HTTP/1.1 200 OK\nContent-Length: -5", b"hello"),
        answer("HTTP/1.1 200 OK\nContent-Length: ", b"hello"),
        answer("HTTP/1.1 200 OK\nContent-Length: 99999999999999999999999", b"hello"),
        answer("HTTP/1.1 200 OK", b"until the end"),
        answer("HTTP/1.1 204 No Content", b""),
        answer("HTTP/1.1 404 Not Found\nContent-Length: 4", b"gone"),
        answer("HTTP/1.1 302 Found\nLocation: /x\nContent-Length: 0", b""),
        answer("HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\nContent-Length: 2", b"ok"),
        answer("HTTP/1.1 101 Switching Protocols\nUpgrade: x\nConnection: upgrade", b"?"),
        answer("HTTP/1.1 200 OK\nUpgrade: h2c\nContent-Length: 2", b"ok"),
        answer(&format!("HTTP/1.1 200 OK{}\nContent-Length: 2", fields(60)), b"ok"),
        answer(&format!("HTTP/1.1 200 OK{}\nContent-Length: 2", fields(101)), b"ok"),
        answer(&format!("HTTP/1.1 200 OK\nX: {}\nContent-Length: 2", "x".repeat(9_000)), b"ok"),
        answer(&format!("HTTP/1.1 200 OK\nX: {}\nContent-Length: 2", "x".repeat(70_000)), b"ok"),
        answer("HTTP/1.1 200 OK\nContent Length: 5", b"hello"),
        answer("HTTP/1.1 200 OK\n folded: 5\nContent-Length: 2", b"ok"),
        answer("HTTP/3 200 OK\nContent-Length: 2", b"ok"),
        b"HTTP/1.1 200 OK\r\nContent-Le".to_vec(),
        b"SSH-2.0-OpenSSH\r\n".to_vec(),
        b"\0\x01\x02".to_vec(),
        Vec::new(),
    ];
    plain.into_iter().map(|answer| (answer, true)).chain(other.into_iter().map(|answer| (answer, false))).collect()
}

#[tokio::test]
async fn every_answer_is_told_as_hyper_tells_it() {
    for (answer, _) in answers() {
        for piece in [answer.len().max(1), answer.len().div_ceil(2).max(1), 40] {
            if answer.len() / piece > 300 {
                continue;
            }
            let name = String::from_utf8_lossy(&answer[..answer.len().min(90)]).into_owned();
            let (mut link, _) = origin(vec![answer.clone()], piece).await;
            let told = exchange(&mut link, true).await;
            let (mut link, _) = origin(vec![answer.clone()], piece).await;
            let expected = exchange(&mut link, false).await;
            assert_eq!(told, expected, "{name:?} in pieces of {piece}");
        }
    }
}

/// What is sent to an origin whose answer is none.
async fn sent(text: Option<Vec<u8>>, request: Request<Empty<Bytes>>) -> String {
    let (mut link, heard) = origin(vec![b"\0".to_vec()], 1).await;
    assert!(link.exchange(|| text, || Ok(request)).await.unwrap().is_err());
    drop(link);
    String::from_utf8_lossy(&heard.await.unwrap()).into_owned()
}

#[tokio::test]
async fn a_request_is_put_as_hyper_puts_it() {
    let profiles = Profiles::new(&EngineConfig::default(), 0).unwrap();
    let profile = profiles.of("any");
    let header = |name: &str, value: &str| HttpHeader { name: name.into(), value: value.into() };
    let tasks = [vec![], vec![header("x-a", "1"), header("cookie", "b=c; d"), header("x-a", "\u{e9} 2"), header("user-agent", "me")]];
    let urls = ["/", "/?", "/a/b.bin", "//a", "/a?b=c&d=%20?e", "/~!$&'()*+,;=:@-._", "/%7B%00", "/a#f"];
    for headers in tasks {
        let task = DownloadTask { headers, ..DownloadTask::default() };
        let headers = Headers::of(&task, profile).unwrap();
        for url in urls {
            let url = Url::parse(&format!("http://user@[::1]:81{url}")).unwrap();
            let text = headers.text(&url);
            assert!(text.is_some(), "{url}");
            let plain = sent(text, headers.request(&url, false, None).unwrap()).await;
            assert_eq!(plain, sent(None, headers.request(&url, false, None).unwrap()).await);
            assert!(plain.starts_with("GET /") && plain.ends_with("\r\nhost: [::1]:81\r\n\r\n"), "{plain}");
        }
    }
    let odd = Url::parse("http://h/a|b").unwrap();
    assert!(Headers::of(&DownloadTask::default(), profile).unwrap().text(&odd).is_none());
}

#[test]
fn only_plain_heads_are_read_here() {
    for (answer, plain) in answers() {
        assert_eq!(plain_head(&answer).is_some(), plain, "{:?}", String::from_utf8_lossy(&answer[..answer.len().min(90)]));
    }
}

#[tokio::test]
async fn one_connection_serves_answers_of_all_kinds_and_every_request_is_sent_once() {
    let plain = answer("HTTP/1.1 200 OK\nContent-Length: 5", b"hello");
    let chunked = answer("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n");
    let (mut link, heard) = origin(vec![plain.clone(), plain.clone(), chunked.clone(), plain, chunked], 7).await;
    for expected in ["hello", "hello", "abc", "hello", "abc"] {
        assert!(link.ready().await.is_ok());
        assert_eq!(exchange(&mut link, true).await.unwrap().2.unwrap(), expected.as_bytes());
        assert!(link.rests().await && !link.is_closed());
    }
    drop(link);
    assert_eq!(String::from_utf8(heard.await.unwrap()).unwrap(), REQUEST.repeat(5));
}

#[tokio::test]
async fn a_connection_that_closed_or_spoke_out_of_turn_is_not_used_again() {
    for surplus in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"] {
        let (mut link, answering) =
            origin(vec![[&answer("HTTP/1.1 200 OK\nContent-Length: 5", b"hello"), surplus].concat()], 1 << 20).await;
        assert!(link.ready().await.is_ok());
        assert!(exchange(&mut link, true).await.is_ok());
        // What follows comes in its own time.
        let mut usable = link.rests().await;
        while usable {
            usable = !link.is_closed() && link.ready().await.is_ok();
            tokio::task::yield_now().await;
        }
        drop(link);
        assert_eq!(answering.await.unwrap().len(), REQUEST.len());
    }
}
