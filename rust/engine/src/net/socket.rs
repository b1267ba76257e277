//! A connected stream, plain or TLS (inside TLS, for an https proxy), that counts what it reads.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connected stream.
pub enum Socket {
    /// TCP.
    Plain(TcpStream),
    /// TLS over whatever else.
    Tls(Box<TlsStream<Socket>>),
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Counts the bytes of one response and limits those of its head.
#[derive(Debug, Default)]
pub struct Meter {
    received: AtomicU64,
    limit: AtomicU64,
}

/// More bytes came before the end of a response's head than any sane head has.
#[derive(Debug, thiserror::Error)]
#[error("the response's head does not end")]
pub struct EndlessHead;

impl Meter {
    /// A request begins: at most `limit` bytes until its response's head is whole.
    pub fn expect_head(&self, limit: u64) {
        self.received.store(0, Ordering::Relaxed);
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// The head is whole.
    pub fn expect_body(&self) {
        self.limit.store(u64::MAX, Ordering::Relaxed);
    }

    /// Bytes since the request began.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) -> io::Result<()> {
        let received = self.received.load(Ordering::Relaxed) + bytes;
        self.received.store(received, Ordering::Relaxed);
        if received > self.limit.load(Ordering::Relaxed) { Err(io::Error::other(EndlessHead)) } else { Ok(()) }
    }
}

/// A socket that reports to a meter.
pub struct Metered {
    socket: Socket,
    meter: Arc<Meter>,
}

impl Metered {
    /// The socket, reporting to `meter`.
    pub fn new(socket: Socket, meter: Arc<Meter>) -> Self {
        Self { socket, meter }
    }
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.socket).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => Poll::Ready(self.meter.add((buf.filled().len() - before) as u64)),
            other => other,
        }
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
