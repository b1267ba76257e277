//! One connection with HTTP on it, driven by whoever uses it.
//!
//! An HTTP/1 connection is polled inside the task that waits for its response: no second task, no wake-up across threads, and nothing to poll while
//! it rests in the pool. It does without hyper for as long as every answer is a plain one. HTTP/2 connections are shared, so they have a task of their own.

use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use fetchbox_model::failure::Code;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::plain::{Plain, Replay, Seen};
use super::socket::{Meter, Metered, Socket};
use crate::curl::Hearing;
use crate::failure::Failure;

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
    /// curl's, which keeps its connections itself; it has been asked already.
    Curl(Hearing),
}

/// An HTTP/1.1 connection.
pub struct H1 {
    wire: Wire,
    meter: Arc<Meter>,
}

enum Wire {
    Plain(Plain),
    Hyper(Box<Hyper>),
    /// On its way from one to the other; stays so when that was given up.
    Lost,
}

/// hyper's two halves.
struct Hyper {
    sender: http1::SendRequest<NoBody>,
    conn: http1::Connection<TokioIo<Replay>, NoBody>,
    ended: bool,
}

impl Hyper {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.ended && Pin::new(&mut self.conn).poll(cx).is_ready() {
            self.ended = true;
        }
    }

    async fn send(&mut self, request: Request<NoBody>) -> Result<Response<Reply>, hyper::Error> {
        let Self { sender, conn, ended } = self;
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
        result.map(|response| response.map(Reply::Hyper))
    }
}

impl H1 {
    /// From here on hyper does the talking, and sees what was said before.
    async fn hand_over(&mut self, seen: Seen) -> Result<(), hyper::Error> {
        if let Wire::Plain(plain) = std::mem::replace(&mut self.wire, Wire::Lost) {
            let mut builder = http1::Builder::new();
            // Of fields it takes MAX_FIELDS by itself; told to, it would clear room for so many with every head.
            builder.max_buf_size(MAX_HEAD_BYTES).max_header_size(MAX_HEAD_BYTES);
            let (sender, conn) = builder.handshake(TokioIo::new(plain.replay(seen))).await?;
            self.wire = Wire::Hyper(Box::new(Hyper { sender, conn, ended: false }));
        }
        Ok(())
    }

    async fn exchange(
        &mut self,
        text: impl FnOnce() -> Option<Vec<u8>>,
        request: impl FnOnce() -> Result<Request<NoBody>, Failure>,
    ) -> Result<Result<Response<Reply>, hyper::Error>, Failure> {
        if let Wire::Plain(plain) = &mut self.wire {
            let seen = match text() {
                Some(text) => match plain.ask(text).await {
                    Ok(fields) => {
                        let mut response = Response::new(Reply::Plain);
                        *response.headers_mut() = fields;
                        return Ok(Ok(response));
                    }
                    Err(seen) => seen,
                },
                None => Seen::default(),
            };
            if let Err(error) = self.hand_over(seen).await {
                return Ok(Err(error));
            }
        }
        let request = request()?;
        match &mut self.wire {
            Wire::Hyper(hyper) => Ok(hyper.send(request).await),
            Wire::Plain(_) | Wire::Lost => Err(Failure::new(Code::SystemInternal, "the connection is lost")),
        }
    }
}

/// The body of an answer, on its connection.
pub enum Reply {
    /// The connection knows how much of it is left.
    Plain,
    /// hyper's.
    Hyper(Incoming),
}

/// Why a body broke off.
#[derive(Debug)]
pub enum Broken {
    /// The connection ended or failed.
    Io(io::Error),
    /// In hyper's words.
    Hyper(hyper::Error),
    /// Judged already.
    Judged(Box<Failure>),
}

impl Broken {
    /// The error itself.
    pub fn error(&self) -> &(dyn Error + 'static) {
        match self {
            Self::Io(error) => error,
            Self::Hyper(error) => error,
            Self::Judged(failure) => &**failure,
        }
    }
}

impl Link {
    /// HTTP/1.1 over a connected socket.
    pub fn http1(socket: Socket) -> Self {
        let meter = Arc::new(Meter::default());
        meter.expect_body();
        Self::H1(Box::new(H1 { wire: Wire::Plain(Plain::new(Metered::new(socket, meter.clone()))), meter }))
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
            Self::H1(_) | Self::Curl(_) => None,
            Self::H2(sender) => Some(Self::H2(sender.clone())),
        }
    }

    /// Whether the connection is known to be of no more use.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::H1(h1) => match &h1.wire {
                Wire::Plain(plain) => !plain.is_at_rest(),
                Wire::Hyper(hyper) => hyper.ended || hyper.sender.is_closed(),
                Wire::Lost => true,
            },
            Self::H2(sender) => sender.is_closed(),
            Self::Curl(_) => true,
        }
    }

    /// Whether any byte of a response came since the last request: if not, a pooled connection had gone stale.
    pub fn saw_response(&self) -> bool {
        match self {
            Self::H1(h1) => h1.meter.received() > 0,
            Self::H2(_) | Self::Curl(_) => false,
        }
    }

    /// Waits until a request can be sent.
    pub async fn ready(&mut self) -> Result<(), hyper::Error> {
        match self {
            Self::H1(h1) => {
                if let Wire::Plain(plain) = &mut h1.wire {
                    match poll_fn(|cx| Poll::Ready(plain.look(cx))).await {
                        None => return Ok(()),
                        // It closed, or spoke out of turn: hyper has the words for that.
                        Some(seen) => h1.hand_over(seen).await?,
                    }
                }
                let Wire::Hyper(hyper) = &mut h1.wire else { return Ok(()) };
                poll_fn(|cx| {
                    hyper.drive(cx);
                    hyper.sender.poll_ready(cx)
                })
                .await
            }
            Self::H2(sender) => poll_fn(|cx| sender.poll_ready(cx)).await,
            Self::Curl(_) => Ok(()),
        }
    }

    /// Whether a connection can be used again whose last answer is read to its end. What is not so now is not worth waiting for.
    pub async fn rests(&mut self) -> bool {
        let Self::H1(h1) = self else { return false };
        match &mut h1.wire {
            Wire::Plain(plain) => plain.is_at_rest(),
            Wire::Hyper(hyper) => {
                poll_fn(|cx| {
                    hyper.drive(cx);
                    Poll::Ready(!matches!(hyper.sender.poll_ready(cx), Poll::Ready(Err(_))))
                })
                .await
            }
            Wire::Lost => false,
        }
    }

    /// Sends a request and waits for the head of its response. `text` is the request in full, if it can be told without hyper.
    pub async fn exchange(
        &mut self,
        text: impl FnOnce() -> Option<Vec<u8>>,
        request: impl FnOnce() -> Result<Request<NoBody>, Failure>,
    ) -> Result<Result<Response<Reply>, hyper::Error>, Failure> {
        match self {
            Self::H1(h1) => {
                h1.meter.expect_head(MAX_ALL_HEADS);
                let result = h1.exchange(text, request).await;
                h1.meter.expect_body();
                result
            }
            Self::H2(sender) => {
                let response = sender.send_request(request()?).await;
                Ok(response.map(|response| response.map(Reply::Hyper)))
            }
            Self::Curl(_) => Err(Failure::new(Code::SystemInternal, "curl has been asked already")),
        }
    }

    /// The next piece of a body; `None` at its end. Trailers are read and dropped.
    pub fn poll_data(&mut self, reply: &mut Reply, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        let body = match reply {
            Reply::Hyper(body) => body,
            Reply::Plain => {
                return match self {
                    Self::H1(h1) => match &mut h1.wire {
                        Wire::Plain(plain) => plain.poll_data(cx).map(|piece| piece.map(|piece| piece.map_err(Broken::Io))),
                        Wire::Hyper(_) | Wire::Lost => Poll::Ready(Some(Err(Broken::Io(io::ErrorKind::NotConnected.into())))),
                    },
                    Self::Curl(hearing) => hearing.poll_data(cx).map_err(|failure| Broken::Judged(Box::new(failure))),
                    Self::H2(_) => Poll::Ready(Some(Err(Broken::Io(io::ErrorKind::NotConnected.into())))),
                };
            }
        };
        loop {
            let frame = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    if let Self::H1(h1) = self
                        && let Wire::Hyper(hyper) = &mut h1.wire
                    {
                        hyper.drive(cx);
                    }
                    match Pin::new(&mut *body).poll_frame(cx) {
                        Poll::Ready(frame) => frame,
                        Poll::Pending => return Poll::Pending,
                    }
                }
            };
            match frame {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(Broken::Hyper(error)))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}
