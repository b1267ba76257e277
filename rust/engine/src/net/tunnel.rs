//! A way through a proxy: CONNECT or SOCKS 5, by hyper-util.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use fetchbox_model::failure::Code;
use http::Uri;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tower_service::Service;

use super::connect::{Tls, handshake, tcp};
use super::socket::Socket;
use crate::failure::{Failure, chain};
use crate::proxy::{Endpoint, Scheme};

/// Hands out the one connection that is up already.
struct Given(Option<TokioIo<Socket>>);

impl Service<Uri> for Given {
    type Response = TokioIo<Socket>;
    type Error = io::Error;
    type Future = Ready<Result<TokioIo<Socket>, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

/// Opens a way to `target` (`host:port`, a vetted address unless the pool resolves names itself). Every failure is the proxy's.
pub async fn open(endpoint: &Endpoint, proxy: &[SocketAddr], config: &Arc<ClientConfig>, target: &str) -> Result<Socket, Failure> {
    let failed = |message: String| Failure::new(Code::DownloadProxyFailed, format!("proxy {}: {message}", endpoint.label));
    let mut socket = tcp(proxy).await.map_err(|failure| failed(failure.message))?;
    if endpoint.scheme == Scheme::Https {
        // HTTP/2 to a proxy is not spoken.
        let mut plain = ClientConfig::clone(config);
        plain.alpn_protocols = Vec::new();
        let tls = Tls { config: &Arc::new(plain), host: endpoint.host.trim_matches(['[', ']']) };
        socket = handshake(socket, &tls).await.map_err(|failure| failed(failure.message))?.0;
    }
    let given = Given(Some(TokioIo::new(socket)));
    let uri = |text: String| text.parse::<Uri>().map_err(|error| failed(error.to_string()));
    let (here, there) = (uri(format!("http://{}:{}", endpoint.host, endpoint.port))?, uri(format!("http://{target}"))?);
    let io = match endpoint.scheme {
        Scheme::Http | Scheme::Https => {
            let tunnel = Tunnel::new(here, given);
            let mut tunnel = match &endpoint.auth {
                Some(auth) => tunnel.with_auth(auth.clone()),
                None => tunnel,
            };
            tunnel.call(there).await.map_err(|error| {
                let message = chain(&error);
                // Only its text tells a 407 apart; a test holds hyper-util to it.
                let code = if message.contains("authorization required") { Code::AuthProxyRefused } else { Code::DownloadProxyFailed };
                Failure { code, ..failed(message) }
            })?
        }
        Scheme::Socks5 => {
            let socks = SocksV5::new(here, given);
            let mut socks = match &endpoint.login {
                Some((user, password)) => socks.with_auth(user.clone(), password.clone()),
                None => socks,
            };
            socks.call(there).await.map_err(|error| failed(format!("{error:?}")))?
        }
    };
    Ok(io.into_inner())
}
