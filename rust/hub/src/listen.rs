//! The hub's door to the network: TCP, with TLS when there is a certificate.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::config::HubConfig;
use crate::error::HubOpenError;
use crate::stream::{Halves, tcp_address, tune};

/// Strangers at the door at once: connections that have not said yet who they are. More wait in the listener's queue.
const STRANGERS: usize = 256;

/// A listening socket that nobody is served on yet.
pub struct Door {
    listener: Mutex<Option<std::net::TcpListener>>,
    /// Where it listens.
    pub address: SocketAddr,
    tls: Option<Certificate>,
}

impl Door {
    /// Binds what the configuration says; `None` when it says nothing.
    pub fn open(config: &HubConfig) -> Result<Option<Door>, HubOpenError> {
        let Some(url) = &config.listen else { return Ok(None) };
        let cannot = |why: String| HubOpenError::Listen(format!("cannot listen on {url} (hub.listen): {why}"));
        let address = tcp_address(url).ok_or_else(|| cannot("it is not tcp://host:port".to_owned()))?;
        let tls = match (&config.tls_cert, &config.tls_key) {
            (Some(chain), Some(key)) => Some(Certificate::open(chain.clone(), key.clone()).map_err(HubOpenError::Listen)?),
            _ => None,
        };
        let found: Vec<SocketAddr> = address.to_socket_addrs().map_err(|error| cannot(error.to_string()))?.collect();
        let bound = std::net::TcpListener::bind(&found[..]).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        });
        let (address, listener) = bound.map_err(|error| cannot(error.to_string()))?;
        Ok(Some(Door { listener: Mutex::new(Some(listener)), address, tls }))
    }

    /// Begins to serve; once.
    pub fn listener(&self) -> io::Result<Listener> {
        let listener = self.listener.lock().take().ok_or_else(|| io::Error::other("it is served already"))?;
        Ok(Listener { tcp: tokio::net::TcpListener::from_std(listener)?, room: Arc::new(Semaphore::new(STRANGERS)) })
    }

    /// The connection as both sides will use it, TLS and all, within `limit`; why not, for whoever counts.
    pub async fn admit(&self, stream: TcpStream, limit: Duration, patience: Duration) -> io::Result<Halves> {
        tune(&stream, patience)?;
        let Some(tls) = &self.tls else { return Ok(Halves::tcp(stream)) };
        let handshake = TlsAcceptor::from(tls.current()).accept(stream);
        Ok(Halves::over_tcp(tokio::time::timeout(limit, handshake).await.map_err(io::Error::from)??))
    }
}

/// Where connections come in.
pub struct Listener {
    tcp: tokio::net::TcpListener,
    room: Arc<Semaphore>,
}

impl Listener {
    /// The next stranger, and its place at the door until it is none any more.
    pub async fn accept(&self) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
        let place = Arc::clone(&self.room).acquire_owned().await.map_err(io::Error::other)?;
        Ok((self.tcp.accept().await?.0, place))
    }
}

/// What the hub shows of itself. Read again when the files have changed, so that a renewed certificate needs no restart.
struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    current: Mutex<(Option<Stamp>, Arc<ServerConfig>)>,
}

type Stamp = (SystemTime, SystemTime);

impl Certificate {
    fn open(chain: PathBuf, key: PathBuf) -> Result<Self, String> {
        let stamp = stamp(&chain, &key);
        let current = Mutex::new((stamp, Arc::new(load(&chain, &key)?)));
        Ok(Self { chain, key, current })
    }

    fn current(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock();
        let now = stamp(&self.chain, &self.key);
        // Files that are being replaced, or replaced by something useless, change nothing.
        if now.is_some()
            && now != current.0
            && let Ok(fresh) = load(&self.chain, &self.key)
        {
            *current = (now, Arc::new(fresh));
        }
        Arc::clone(&current.1)
    }
}

fn stamp(chain: &Path, key: &Path) -> Option<Stamp> {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|about| about.modified()).ok();
    Some((modified(chain)?, modified(key)?))
}

fn load(chain: &Path, key: &Path) -> Result<ServerConfig, String> {
    let wrong = |name: &str, path: &Path, error: &dyn std::fmt::Display| format!("hub.{name} {} cannot be used: {error}", path.display());
    let bad_chain = |error: &dyn std::fmt::Display| wrong("tls_cert", chain, error);
    let bad_key = |error: &dyn std::fmt::Display| wrong("tls_key", key, error);
    let certificates: Vec<_> = CertificateDer::pem_file_iter(chain).and_then(Iterator::collect).map_err(|error| bad_chain(&error))?;
    if certificates.is_empty() {
        return Err(bad_chain(&"there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| bad_key(&error))?;
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|error| bad_chain(&error))
}
