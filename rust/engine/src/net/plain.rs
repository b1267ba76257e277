//! HTTP/1.1 for the answer that nearly all have: 200, a plain length, nothing else to say of the connection.
//!
//! Such an exchange is one write, one or two reads and a look at the head, a fraction of what a whole HTTP implementation does for it. Whatever is
//! not exactly like that goes to hyper from its first byte on ([`Replay`]): it is never half understood here, and everything odd is judged in one place.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::socket::Metered;
use super::spare::{self, FIRST_READ};

/// Bytes of one read at most.
const MOST_READ: usize = 64 << 10;
/// Room behind what is expected: a read that fills its buffer says nothing of what comes next, and would be asked again.
const SLACK: usize = 512;
/// A plain head has fewer bytes, and fewer fields.
const MAX_HEAD: usize = 8 << 10;
const MAX_FIELDS: usize = 32;
/// A connection on which every answer so far was a plain one.
pub struct Plain {
    socket: Metered,
    /// Of the body, read with its head and not handed on.
    first: Bytes,
    /// Bytes of the body that are still to be read.
    left: u64,
    /// More came than was asked for.
    spoiled: bool,
    used: bool,
    /// Bytes of the next first read.
    room: usize,
}

/// What happened on a connection before hyper was asked.
#[derive(Default)]
pub struct Seen {
    sent: Vec<u8>,
    unsendable: Option<io::Error>,
    data: Bytes,
    end: Option<io::Result<()>>,
}

impl Plain {
    /// A connection that nothing was sent on.
    pub fn new(socket: Metered) -> Self {
        Self { socket, first: Bytes::new(), left: 0, spoiled: false, used: false, room: FIRST_READ }
    }

    /// Whether the last answer is read to its end and nothing follows it.
    pub fn is_at_rest(&self) -> bool {
        self.left == 0 && self.first.is_empty() && !self.spoiled
    }

    /// What a connection did that should have rested; `None` when it did.
    pub fn look(&mut self, cx: &mut Context<'_>) -> Option<Seen> {
        if !self.used {
            return None;
        }
        match self.poll_take(cx, SLACK) {
            Poll::Pending => None,
            Poll::Ready(taken) => Some(Seen::after(Vec::new(), taken)),
        }
    }

    /// The connection for hyper, which sees all of it as if it had been there from the start.
    pub fn replay(self, seen: Seen) -> Replay {
        Replay { socket: self.socket, seen, reader: None }
    }

    /// Sends a request and reads the head of its answer: its fields, if it is a plain one. The body is read by [`Plain::poll_data`].
    pub async fn ask(&mut self, request: Vec<u8>) -> Result<HeaderMap, Seen> {
        self.used = true;
        let mut sent = 0;
        if let Err(error) = poll_fn(|cx| self.poll_send(&request, &mut sent, cx)).await {
            let mut request = request;
            request.truncate(sent);
            return Err(Seen { sent: request, unsendable: Some(error), ..Seen::default() });
        }
        let room = self.room;
        let mut data = match poll_fn(|cx| self.poll_take(cx, room)).await {
            Ok(data) if !data.is_empty() => data,
            taken => return Err(Seen::after(request, taken)),
        };
        let Some((head, length, fields)) = plain_head(&data) else { return Err(Seen::after(request, Ok(data))) };
        data.advance(head);
        self.begin_body(compact(data, room), length);
        self.room = (head as u64 + length).saturating_add(SLACK as u64).clamp(FIRST_READ as u64, MOST_READ as u64) as usize;
        Ok(fields)
    }

    fn poll_send(&mut self, request: &[u8], sent: &mut usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while *sent < request.len() {
            match ready!(Pin::new(&mut self.socket).poll_write(cx, &request[*sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => *sent += written,
            }
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// One read; nothing at the end of the stream. No buffer is held while nothing comes.
    fn poll_take(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<BytesMut>> {
        let mut buffer = spare::buffer(room);
        match std::future::Future::poll(pin!(self.socket.read_buf(&mut buffer)), cx) {
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(buffer)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                spare::keep(buffer);
                Poll::Pending
            }
        }
    }

    fn begin_body(&mut self, mut first: Bytes, length: u64) {
        if first.len() as u64 > length {
            self.spoiled = true;
            first.truncate(length as usize);
        }
        self.left = length - first.len() as u64;
        self.first = first;
    }

    /// The next piece of the body; `None` at its end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.first))));
        }
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let room = self.left.saturating_add(SLACK as u64).min(MOST_READ as u64) as usize;
        let data = ready!(self.poll_take(cx, room))?;
        if data.is_empty() {
            let what = "end of file before message length reached";
            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, what))));
        }
        self.begin_body(compact(data, room), self.left);
        Poll::Ready(Some(Ok(std::mem::take(&mut self.first))))
    }
}

/// A few bytes may not keep the large buffer that they were read into.
fn compact(data: BytesMut, room: usize) -> Bytes {
    if data.len() >= room / 2 {
        return data.freeze();
    }
    let few = Bytes::copy_from_slice(&data);
    spare::keep(data);
    few
}

/// Length of the head, length of the body and the fields of a plain answer; `None` for every other.
fn plain_head(data: &[u8]) -> Option<(usize, u64, HeaderMap)> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = response.parse(data) else { return None };
    if head > MAX_HEAD || response.version != Some(1) || response.code != Some(200) {
        return None;
    }
    let mut map = HeaderMap::with_capacity(response.headers.len());
    let mut length = None;
    // All values are parts of one copy.
    let shared = Bytes::copy_from_slice(&data[..head]);
    for field in response.headers.iter() {
        let name = match kind(field.name) {
            Kind::Other => HeaderName::from_bytes(field.name.as_bytes()).ok()?,
            Kind::Framing => return None,
            Kind::Connection if field.value.eq_ignore_ascii_case(b"keep-alive") => header::CONNECTION,
            Kind::Connection => return None,
            Kind::Length if length.is_some() => return None,
            Kind::Length => {
                length = Some(plain_length(field.value)?);
                header::CONTENT_LENGTH
            }
            Kind::Known(name) => name,
        };
        let begin = field.value.as_ptr().addr().checked_sub(data.as_ptr().addr()).filter(|begin| begin + field.value.len() <= head);
        let value = match begin {
            Some(begin) => HeaderValue::from_maybe_shared(shared.slice(begin..begin + field.value.len())),
            None => HeaderValue::from_bytes(field.value),
        };
        map.append(name, value.ok()?);
    }
    Some((head, length?, map))
}

/// What a field is to this file.
enum Kind {
    /// Says how the body is sent, in a way that is not plain.
    Framing,
    Connection,
    Length,
    /// A common one.
    Known(HeaderName),
    Other,
}

fn kind(name: &str) -> Kind {
    let is = |other: &HeaderName| name.eq_ignore_ascii_case(other.as_str());
    // Lengths tell nearly all names apart.
    let (known, kind) = match name.len() {
        4 => (header::ETAG, Kind::Known(header::ETAG)),
        7 => (header::UPGRADE, Kind::Framing),
        10 => (header::CONNECTION, Kind::Connection),
        12 => (header::CONTENT_TYPE, Kind::Known(header::CONTENT_TYPE)),
        13 if is(&header::ACCEPT_RANGES) => return Kind::Known(header::ACCEPT_RANGES),
        13 => (header::LAST_MODIFIED, Kind::Known(header::LAST_MODIFIED)),
        14 => (header::CONTENT_LENGTH, Kind::Length),
        16 => (header::CONTENT_ENCODING, Kind::Known(header::CONTENT_ENCODING)),
        17 => (header::TRANSFER_ENCODING, Kind::Framing),
        _ => return Kind::Other,
    };
    if is(&known) { kind } else { Kind::Other }
}

/// Digits and nothing else, and not more of them than fit.
fn plain_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

impl Seen {
    fn after(sent: Vec<u8>, taken: io::Result<BytesMut>) -> Self {
        let (data, end) = match taken {
            Ok(data) if data.is_empty() => (Bytes::new(), Some(Ok(()))),
            Ok(data) => (data.freeze(), None),
            Err(error) => (Bytes::new(), Some(Err(error))),
        };
        Self { sent, unsendable: None, data, end }
    }
}

/// A socket whose last exchange is told again: what was sent is taken in once more without being sent, then comes what was read, then the rest.
pub struct Replay {
    socket: Metered,
    seen: Seen,
    /// Waits for what comes after the request.
    reader: Option<Waker>,
}

impl AsyncRead for Replay {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.seen.sent.is_empty() {
            this.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !this.seen.data.is_empty() {
            let size = this.seen.data.len().min(buf.remaining());
            buf.put_slice(&this.seen.data[..size]);
            this.seen.data.advance(size);
            return Poll::Ready(Ok(()));
        }
        match this.seen.end.take() {
            None => Pin::new(&mut this.socket).poll_read(cx, buf),
            Some(Ok(())) => {
                this.seen.end = Some(Ok(()));
                Poll::Ready(Ok(()))
            }
            Some(Err(error)) => Poll::Ready(Err(error)),
        }
    }
}

impl AsyncWrite for Replay {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let again = buf.len().min(this.seen.sent.len());
        if again > 0 {
            if this.seen.sent[..again] != buf[..again] {
                return Poll::Ready(Err(io::Error::other("the request was sent in other words")));
            }
            this.seen.sent.drain(..again);
            if this.seen.sent.is_empty()
                && let Some(reader) = this.reader.take()
            {
                reader.wake();
            }
            return Poll::Ready(Ok(again));
        }
        match this.seen.unsendable.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => Pin::new(&mut this.socket).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.seen.sent.is_empty()
            && let Some(error) = self.seen.unsendable.take()
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "plain_tests.rs"]
mod tests;
