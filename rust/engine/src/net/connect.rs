//! From vetted addresses to a connection with HTTP on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fetchbox_model::failure::Code;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::link::Link;
use super::socket::Socket;
use crate::failure::{Failure, chain, find, is_exhaustion};

/// Head start of one address before the next is tried beside it (RFC 8305).
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 6;

/// TLS for one connection.
pub struct Tls<'a> {
    /// Roots, protocols, verification.
    pub config: &'a Arc<ClientConfig>,
    /// The name in SNI and in the certificate.
    pub host: &'a str,
}

/// A connection that is up, and what its parts took.
pub struct Dialed {
    /// Ready for a request.
    pub link: Link,
    /// TCP.
    pub connect: Duration,
    /// The TLS handshake.
    pub tls: Duration,
}

/// Connects to the first address that answers. The addresses are vetted; nothing else is connected to.
pub async fn tcp(addresses: &[SocketAddr]) -> Result<Socket, Failure> {
    let mut queue = interleaved(addresses).into_iter().take(MAX_ADDRESSES);
    let mut running = FuturesUnordered::new();
    let mut last = None;
    loop {
        match queue.next() {
            Some(address) => running.push(TcpStream::connect(address)),
            None if running.is_empty() => {
                return Err(last.map_or_else(|| Failure::new(Code::DownloadConnectFailed, "no address"), connect_failure));
            }
            None => {}
        }
        let more = queue.len() > 0;
        let result = if more {
            match tokio::time::timeout(STAGGER, running.next()).await {
                Ok(result) => result,
                Err(_) => continue,
            }
        } else {
            running.next().await
        };
        match result {
            Some(Ok(stream)) => {
                // A request is one small write; waiting to fill a segment only delays it. Failing to set it costs nothing else.
                let _ = stream.set_nodelay(true);
                return Ok(Socket::Plain(stream));
            }
            Some(Err(error)) => last = Some(error),
            None => {}
        }
    }
}

/// Families alternate, so that a dead one costs one head start at most.
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let (v4, v6): (Vec<_>, Vec<_>) = addresses.iter().copied().partition(SocketAddr::is_ipv4);
    let longest = v4.len().max(v6.len());
    (0..longest).flat_map(|i| [v4.get(i).copied(), v6.get(i).copied()]).flatten().collect()
}

fn connect_failure(error: io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::TimedOut => Code::DownloadConnectTimeout,
        io::ErrorKind::ConnectionReset => Code::DownloadReset,
        _ if is_exhaustion(&error) => Code::SystemResources,
        _ => Code::DownloadConnectFailed,
    };
    Failure::new(code, format!("connect: {error}"))
}

/// The TLS handshake, and whether HTTP/2 was agreed on.
pub async fn handshake(socket: Socket, tls: &Tls<'_>) -> Result<(Socket, bool), Failure> {
    let name = ServerName::try_from(tls.host.trim_end_matches('.').to_owned())
        .map_err(|_| Failure::new(Code::DownloadBadUrl, "the host is no name that a certificate could hold"))?;
    let stream = TlsConnector::from(tls.config.clone()).connect(name, socket).await.map_err(handshake_failure)?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Socket::Tls(Box::new(stream)), http2))
}

fn handshake_failure(error: io::Error) -> Failure {
    if let Some(tls) = find::<rustls::Error>(&error) {
        return Failure::new(Code::DownloadTls, format!("TLS: {tls}"));
    }
    Failure::new(Code::DownloadReset, format!("the connection broke in the TLS handshake: {error}"))
}

/// HTTP over a socket that reaches the origin, with TLS for https.
pub async fn http(socket: Socket, tls: Option<Tls<'_>>, since: Instant) -> Result<Dialed, Failure> {
    let connected = Instant::now();
    let (socket, http2) = match &tls {
        Some(tls) => handshake(socket, tls).await?,
        None => (socket, false),
    };
    let secured = Instant::now();
    let link = if http2 {
        Link::http2(socket).await.map_err(|error| Failure::new(Code::DownloadBadResponse, chain(&error)))?
    } else {
        Link::http1(socket)
    };
    Ok(Dialed { link, connect: connected - since, tls: if tls.is_some() { secured - connected } else { Duration::ZERO } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let list = ["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1"].map(address);
        assert_eq!(interleaved(&list), ["1.0.0.1:1", "[::1]:1", "[::2]:1", "[::3]:1"].map(address));
    }
}
