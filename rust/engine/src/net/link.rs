//! One connection with HTTP on it, driven by whoever uses it.
//!
//! An HTTP/1 connection is polled inside the task that waits for its response: no second task, no wake-up across threads, and nothing to poll while
//! it rests in the pool. HTTP/2 connections are shared, so they have a task of their own.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::socket::{Meter, Metered, Socket};

/// Largest head of a response, in bytes.
pub const MAX_HEAD_BYTES: usize = 64 << 10;
/// Most fields of a response's head.
pub const MAX_FIELDS: usize = 100;
/// Interim responses (1xx) and the head together may have this many bytes.
const MAX_ALL_HEADS: u64 = 2 * MAX_HEAD_BYTES as u64;
/// Bytes of an HTTP/2 body that may be under way.
const H2_WINDOW: u32 = 256 << 10;

type NoBody = Empty<Bytes>;

/// A connection that can take a request.
pub enum Link {
    /// HTTP/1.1, exclusive.
    H1(Box<H1>),
    /// HTTP/2, shared.
    H2(http2::SendRequest<NoBody>),
}

/// An HTTP/1.1 connection and its two halves.
pub struct H1 {
    sender: http1::SendRequest<NoBody>,
    conn: http1::Connection<TokioIo<Metered>, NoBody>,
    meter: Arc<Meter>,
    ended: bool,
}

impl H1 {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.ended && Pin::new(&mut self.conn).poll(cx).is_ready() {
            self.ended = true;
        }
    }
}

impl Link {
    /// HTTP/1.1 over a connected socket.
    pub async fn http1(socket: Socket) -> Result<Self, hyper::Error> {
        let meter = Arc::new(Meter::default());
        meter.expect_body();
        let io = TokioIo::new(Metered::new(socket, meter.clone()));
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD_BYTES).max_header_size(MAX_HEAD_BYTES).max_headers(MAX_FIELDS);
        let (sender, conn) = builder.handshake(io).await?;
        Ok(Self::H1(Box::new(H1 { sender, conn, meter, ended: false })))
    }

    /// HTTP/2 over a connected socket; the connection lives in a task until its last handle is gone.
    pub async fn http2(socket: Socket) -> Result<Self, hyper::Error> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_WINDOW)
            .initial_connection_window_size(4 * H2_WINDOW)
            .max_frame_size(32 << 10)
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .keep_alive_interval(std::time::Duration::from_secs(20))
            .keep_alive_timeout(std::time::Duration::from_secs(10));
        let (sender, conn) = builder.handshake(TokioIo::new(socket)).await?;
        tokio::spawn(async move {
            // Its end shows in the requests that were on it.
            let _ = conn.await;
        });
        Ok(Self::H2(sender))
    }

    /// Another handle of a shared connection.
    pub fn share(&self) -> Option<Self> {
        match self {
            Self::H1(_) => None,
            Self::H2(sender) => Some(Self::H2(sender.clone())),
        }
    }

    /// Whether the connection is known to be of no more use.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::H1(h1) => h1.ended || h1.sender.is_closed(),
            Self::H2(sender) => sender.is_closed(),
        }
    }

    /// Whether any byte of a response came since the last request: if not, a pooled connection had gone stale.
    pub fn saw_response(&self) -> bool {
        match self {
            Self::H1(h1) => h1.meter.received() > 0,
            Self::H2(_) => false,
        }
    }

    /// Waits until a request can be sent.
    pub async fn ready(&mut self) -> Result<(), hyper::Error> {
        match self {
            Self::H1(h1) => {
                poll_fn(|cx| {
                    h1.drive(cx);
                    h1.sender.poll_ready(cx)
                })
                .await
            }
            Self::H2(sender) => poll_fn(|cx| sender.poll_ready(cx)).await,
        }
    }

    /// Sends a request and waits for the head of its response.
    pub async fn send(&mut self, request: Request<NoBody>) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::H1(h1) => {
                h1.meter.expect_head(MAX_ALL_HEADS);
                let H1 { sender, conn, ended, meter } = &mut **h1;
                let mut response = pin!(sender.send_request(request));
                let result = poll_fn(|cx| {
                    if let Poll::Ready(result) = response.as_mut().poll(cx) {
                        return Poll::Ready(result);
                    }
                    if !*ended && Pin::new(&mut *conn).poll(cx).is_ready() {
                        *ended = true;
                    }
                    response.as_mut().poll(cx)
                })
                .await;
                meter.expect_body();
                result
            }
            Self::H2(sender) => sender.send_request(request).await,
        }
    }

    /// The next piece of a body; `None` at its end. Trailers are read and dropped.
    pub fn poll_data(&mut self, body: &mut Incoming, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        loop {
            let frame = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    if let Self::H1(h1) = self {
                        h1.drive(cx);
                    }
                    match Pin::new(&mut *body).poll_frame(cx) {
                        Poll::Ready(frame) => frame,
                        Poll::Pending => return Poll::Pending,
                    }
                }
            };
            match frame {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}
