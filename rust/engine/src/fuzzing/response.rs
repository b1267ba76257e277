//! Responses: bytes on a connection, through hyper and all that judges a head and a body here.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream as StdStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fetchbox_model::failure::Code;
use fetchbox_model::message::DownloadTask;
use http::header;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use url::Url;

use super::profile;
use crate::fetch::attempt::{check_framing, check_size, head_failure, judge_head, text};
use crate::fetch::body::body_failure;
use crate::fetch::request::Headers;
use crate::net::link::{Link, MAX_FIELDS, MAX_HEAD_BYTES};
use crate::net::socket::Socket;

/// As much as the socket pair holds, so that nobody has to read while it is written.
const MAX_INPUT: usize = 96 << 10;

thread_local! {
    static RUNTIME: Option<Runtime> = Builder::new_current_thread().enable_all().build().ok();
}

/// Everything that an origin sends until it closes.
pub fn response_heads(data: &[u8]) {
    let data = &data[..data.len().min(MAX_INPUT)];
    // Made once, and outside of any runtime.
    profile();
    RUNTIME.with(|runtime| {
        if let Some(runtime) = runtime {
            let exchanged = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), exchange(data)).await });
            assert!(exchanged.is_ok(), "a response that was sent whole is waited for");
        }
    });
}

/// A socket of the kind that the engine has, with all of `data` in it. TCP itself would only cost time.
fn connected(data: &[u8]) -> Option<(Socket, UnixStream)> {
    let (ours, mut theirs) = UnixStream::pair().ok()?;
    theirs.write_all(data).ok()?;
    theirs.shutdown(Shutdown::Write).ok()?;
    ours.set_nonblocking(true).ok()?;
    theirs.set_nonblocking(true).ok()?;
    let stream = TcpStream::from_std(StdStream::from(OwnedFd::from(ours))).ok()?;
    Some((Socket::Plain(stream), theirs))
}

async fn exchange(data: &[u8]) {
    let Some((socket, mut peer)) = connected(data) else { return };
    let mut link = Link::http1(socket);
    let Ok(url) = Url::parse("http://origin.example/x") else { return };
    let Ok(headers) = Headers::of(&DownloadTask::default(), profile()) else { return };
    let response = match link.exchange(|| headers.text(&url), || headers.request(&url, false, None)).await {
        Ok(Ok(response)) => response,
        Err(failure) => unreachable!("{failure:?}"),
        Ok(Err(error)) => {
            let code = head_failure(&error).code;
            assert!(matches!(code, Code::DownloadBadResponse | Code::DownloadBadFraming | Code::DownloadReset), "{code}");
            return;
        }
    };
    let mut sent = [0; 1024];
    // An answer that is there already may be taken before the request is out.
    let read = peer.read(&mut sent).unwrap_or(0);
    assert!(read == 0 || sent[..read].starts_with(b"GET /x HTTP/1.1\r\n"));
    let (head, mut body) = response.into_parts();
    if let Err(failure) = check_size(&head).and_then(|()| judge_head(&head, &headers, profile())).and_then(|()| check_framing(&head)) {
        assert!(!failure.message.is_empty());
        assert!(failure.retry_after.is_none_or(|wait| wait <= Duration::from_secs(300_000_000_000)));
        return;
    }
    assert!((200..300).contains(&head.status.as_u16()) && head.status != 206, "{}", head.status);
    assert!(head.headers.len() <= MAX_FIELDS);
    assert!(head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() < MAX_HEAD_BYTES);
    for name in [header::ETAG, header::LAST_MODIFIED, header::CONTENT_TYPE] {
        assert!(!text(&head.headers, name).contains(['\r', '\n', '\0']));
    }
    let length = head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.split(',').next()?.trim().parse().ok());
    let mut received = 0u64;
    loop {
        match std::future::poll_fn(|cx| link.poll_data(&mut body, cx)).await {
            Some(Ok(piece)) => received += piece.len() as u64,
            Some(Err(error)) => {
                let code = body_failure(&error).code;
                assert!(matches!(code, Code::DownloadTruncated | Code::DownloadBadFraming | Code::DownloadReset), "{code}");
                break;
            }
            // A body with a length ends there or in an error.
            None => {
                assert!(length.is_none_or(|length: u64| length == received || head.status == 204), "{received} of {length:?}");
                break;
            }
        }
        assert!(received <= data.len() as u64);
    }
}
