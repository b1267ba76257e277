//! What a connection is made of, whatever carries it: two halves, and the limits that a network needs.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

/// Frames that come in.
pub type Reader = FramedRead<Box<dyn AsyncRead + Send + Unpin>, LengthDelimitedCodec>;
/// Frames that go out.
pub type Writer = FramedWrite<Box<dyn AsyncWrite + Send + Unpin>, LengthDelimitedCodec>;

/// Longest limit on silence; instants cannot be added to without end.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Both directions of a connection that nobody has greeted on yet.
pub struct Halves {
    read: Box<dyn AsyncRead + Send + Unpin>,
    write: Box<dyn AsyncWrite + Send + Unpin>,
    /// A network lies between: the other end may vanish without a word.
    pub remote: bool,
}

impl Halves {
    /// Of a Unix socket.
    pub fn local(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self { read: Box::new(read), write: Box::new(write), remote: false }
    }

    /// Of a TCP connection.
    pub fn tcp(stream: TcpStream) -> Self {
        let (read, write) = stream.into_split();
        Self { read: Box::new(read), write: Box::new(write), remote: true }
    }

    /// Of whatever runs over one.
    pub fn over_tcp(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self { read: Box::new(read), write: Box::new(write), remote: true }
    }

    /// As frames of at most so many bytes; reading fails once nothing has come for `silence`.
    pub fn frames(self, largest_in: usize, largest_out: usize, silence: Option<Duration>) -> (Reader, Writer) {
        let codec = |limit| LengthDelimitedCodec::builder().max_frame_length(limit).new_codec();
        let read = match silence {
            Some(limit) => Box::new(Patient::new(self.read, limit)),
            None => self.read,
        };
        (FramedRead::new(read, codec(largest_in)), FramedWrite::new(self.write, codec(largest_out)))
    }
}

/// Sends small frames at once, and has the kernel give up on a peer that acknowledges nothing any more.
pub fn tune(stream: &TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_user_timeout(Some(patience))
}

/// Host and port of `tcp://host:port`.
pub fn tcp_address(url: &str) -> Option<(String, u16)> {
    let (host, port) = url.strip_prefix("tcp://")?.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (!host.is_empty()).then_some(())?;
    Some((host.to_owned(), port.parse().ok()?))
}

/// Whether only this machine is reached by that name.
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Reads as long as something comes once in a while, were it a single byte of a large frame.
struct Patient {
    inner: Box<dyn AsyncRead + Send + Unpin>,
    limit: Duration,
    heard: Instant,
    /// Rings at the earliest moment at which it may have been too long; it is not set back for every read.
    alarm: Pin<Box<Sleep>>,
}

impl Patient {
    fn new(inner: Box<dyn AsyncRead + Send + Unpin>, limit: Duration) -> Self {
        let limit = limit.min(LONGEST);
        let heard = Instant::now();
        Self { inner, limit, heard, alarm: Box::pin(tokio::time::sleep_until(heard + limit)) }
    }
}

impl AsyncRead for Patient {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // What has arrived comes first: after a stop of this process itself the signs of life are there, only late.
        if let Poll::Ready(result) = Pin::new(&mut this.inner).poll_read(context, into) {
            this.heard = Instant::now();
            return Poll::Ready(result);
        }
        while this.alarm.as_mut().poll(context).is_ready() {
            let due = this.heard + this.limit;
            if due <= Instant::now() {
                let message = format!("no sign of life for {} s", this.limit.as_secs_f64());
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
            }
            this.alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn addresses_of_urls() {
        for (url, address) in [
            ("tcp://hub.test:8090", Some(("hub.test", 8090))),
            ("tcp://[::1]:1", Some(("::1", 1))),
            ("tcp://10.0.0.1:65536", None),
            ("tcp://:1", None),
            ("tcp://hub", None),
            ("unix:///x:1", None),
        ] {
            assert_eq!(tcp_address(url), address.map(|(host, port): (&str, u16)| (host.to_owned(), port)), "{url}");
        }
        for (host, local) in [("LOCALHOST", true), ("127.9.9.9", true), ("::1", true), ("0.0.0.0", false), ("localhost.test", false)] {
            assert_eq!(is_loopback(host), local, "{host}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_read_and_slowness_does_not() {
        let (mut there, here) = tokio::io::duplex(64);
        let mut patient = Patient::new(Box::new(here), Duration::from_secs(10));
        let writing = tokio::spawn(async move {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                there.write_all(b"x").await.unwrap();
            }
            there
        });
        let mut all = [0; 20];
        patient.read_exact(&mut all).await.unwrap();
        let _there = writing.await.unwrap();
        let begun = Instant::now();
        let error = patient.read_u8().await.unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::TimedOut, "no sign of life for 10 s"));
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
    }
}
