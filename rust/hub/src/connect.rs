//! The client's way to the hub: a Unix socket, or TCP with TLS. Every step has a limit, and says in one sentence what is wrong.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::client::ClientOptions;
use crate::stream::{Halves, is_loopback, tcp_address, tune};

/// For one address to answer, and for a name to be looked up.
const CONNECT: Duration = Duration::from_secs(5);
/// For the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A hub that says nothing for so long is gone, or the way to it is: it gives a sign of life every two seconds.
pub const SILENCE: Duration = Duration::from_secs(10);
/// How a TLS alert begins, which is what comes back from a hub that wanted TLS.
const ALERT: [u8; 2] = [0x15, 0x03];

/// A connection, with nothing said on it yet.
pub async fn connect(options: &ClientOptions) -> Result<Halves, String> {
    if let Some(path) = options.url.strip_prefix("unix://") {
        let stream = UnixStream::connect(path).await;
        return stream.map(Halves::local).map_err(|error| format!("cannot connect to {path}: {error}"));
    }
    let Some((host, port)) = tcp_address(&options.url) else {
        return Err(format!("the hub's url {} is neither unix:///path nor tcp://host:port", options.url));
    };
    let roots = match &options.tls_ca {
        Some(path) => Some(roots_of(path)?),
        // Beyond this machine a token is never shown to somebody who has not proved who he is.
        None if !is_loopback(&host) => Some(system_roots()),
        None => None,
    };
    let stream = dial(&host, port).await?;
    tune(&stream, SILENCE).map_err(|error| format!("cannot connect to {host}:{port}: {error}"))?;
    match roots {
        Some(roots) => handshake(stream, &host, port, roots).await,
        None => Ok(Halves::tcp(stream)),
    }
}

/// What to look at when the hub at a TCP address hangs up instead of greeting, by the first bytes that came back.
pub fn hint(options: &ClientOptions, answer: &[u8]) -> &'static str {
    let plain = options.tls_ca.is_none() && tcp_address(&options.url).is_some_and(|(host, _)| is_loopback(&host));
    match plain {
        true if answer.starts_with(&ALERT) => ": it speaks TLS, so set hub.tls_ca",
        true => ": if it speaks TLS, set hub.tls_ca",
        false => "",
    }
}

/// Tries the addresses of a name one after the other.
async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let looked_up = tokio::time::timeout(CONNECT, tokio::net::lookup_host((host, port))).await;
    let found: Vec<SocketAddr> = match looked_up {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Err(format!("the hub's name {host} cannot be resolved: {error}")),
        Err(_) => return Err(format!("the hub's name {host} cannot be resolved within {} s", CONNECT.as_secs())),
    };
    let mut trouble = format!("the hub's name {host} has no address");
    for address in found {
        trouble = match tokio::time::timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => format!("cannot connect to the hub at {host}:{port} ({address}): {error}"),
            Err(_) => format!("cannot connect to the hub at {host}:{port} ({address}): no answer within {} s", CONNECT.as_secs()),
        };
    }
    Err(trouble)
}

async fn handshake(stream: TcpStream, host: &str, port: u16, roots: RootCertStore) -> Result<Halves, String> {
    let failed = |why: String| format!("no TLS with the hub at {host}:{port}: {why}");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.to_string()))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => Ok(Halves::over_tcp(stream)),
        Ok(Err(error)) => Err(failed(reason(&error))),
        Err(_) => Err(failed(format!("no handshake within {} s", HANDSHAKE.as_secs()))),
    }
}

/// Why a handshake failed, and what to do about it.
fn reason(error: &std::io::Error) -> String {
    use rustls::{CertificateError, Error, InvalidMessage};
    let advice = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            "nothing in hub.tls_ca has signed its certificate"
        }
        Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => "renew its certificate",
        Some(Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })) => {
            "hub.url must name it as its certificate does"
        }
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) | None => "is its hub.tls_cert set?",
        _ => return error.to_string(),
    };
    format!("{error}: {advice}")
}

fn roots_of(path: &Path) -> Result<RootCertStore, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("hub.tls_ca {} cannot be used: {error}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
        roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
    }
    if roots.is_empty() {
        return Err(wrong(&"there is no certificate in it"));
    }
    Ok(roots)
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
