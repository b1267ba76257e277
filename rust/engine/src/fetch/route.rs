//! From a URL to a connection: names resolved, addresses vetted, proxies asked in turn.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fetchbox_model::failure::Code;
use url::{Host, Url};

use super::attempt::Attempt;
use crate::failure::Failure;
use crate::net::connect::{Tls, http, tcp};
use crate::net::link::Link;
use crate::net::tunnel;
use crate::profile::{Profile, seconds};
use crate::proxy::Endpoint;

/// Whether the failure is the proxy's, so that the next endpoint may do better.
pub fn is_proxy_failure(failure: &Failure) -> bool {
    matches!(failure.code, Code::DownloadProxyFailed | Code::AuthProxyRefused)
}

impl Attempt<'_> {
    /// A new connection to the URL's origin, by vetted addresses only.
    pub async fn connect(&mut self, url: &Url, proxy: Option<&Endpoint>) -> Result<Link, Failure> {
        let limit = seconds(self.profile.fetch.connect_timeout);
        let profile = self.profile.clone();
        let times = &mut self.learned.times;
        let resolving = AtomicBool::new(false);
        let work = async {
            let started = Instant::now();
            resolving.store(true, Ordering::Relaxed);
            let name = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
            let by_name = proxy.is_some_and(|endpoint| endpoint.remote_dns) && is_remote_name(url);
            let addresses = if by_name { Vec::new() } else { vetted(&profile, url).await? };
            let proxy_addresses = match proxy {
                Some(endpoint) => resolve(&profile, &endpoint.host, endpoint.port)
                    .await
                    .map_err(|failure| Failure { code: Code::DownloadProxyFailed, ..failure })?,
                None => Vec::new(),
            };
            resolving.store(false, Ordering::Relaxed);
            let since = Instant::now();
            times.dns += since - started;
            let socket = match (proxy, addresses.first()) {
                (None, _) => tcp(&addresses).await?,
                (Some(endpoint), Some(address)) => tunnel::open(endpoint, &proxy_addresses, &profile.tls, &address.to_string()).await?,
                (Some(endpoint), None) => {
                    let target = format!("{name}:{}", url.port_or_known_default().unwrap_or(0));
                    tunnel::open(endpoint, &proxy_addresses, &profile.tls, &target).await?
                }
            };
            let tls = (url.scheme() == "https").then_some(Tls { config: &profile.tls, host: name });
            let dialed = http(socket, tls, since).await?;
            times.connect += dialed.connect;
            times.tls += dialed.tls;
            Ok(dialed.link)
        };
        let result = match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(late(proxy, resolving.load(Ordering::Relaxed), limit.as_secs_f64())),
        };
        self.patience.progress(0);
        result
    }
}

pub fn late(proxy: Option<&Endpoint>, resolving: bool, seconds: f64) -> Failure {
    match proxy {
        Some(endpoint) => Failure::new(Code::DownloadProxyFailed, format!("proxy {}: no connection within {seconds} s", endpoint.label)),
        None if resolving => Failure::new(Code::DownloadDnsTimeout, "the name servers did not answer in time"),
        None => Failure::new(Code::DownloadConnectTimeout, format!("no connection within {seconds} s")),
    }
}

/// Names that a proxy may resolve: literals and loopback's own names are vetted here all the same.
pub fn is_remote_name(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name != "localhost" && !name.ends_with(".localhost")
        }
        _ => false,
    }
}

async fn vetted(profile: &Profile, url: &Url) -> Result<Vec<SocketAddr>, Failure> {
    vetted_at(profile, url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0)).await
}

/// A host's addresses, if all of them may be connected to.
pub async fn vetted_at(profile: &Profile, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let addresses = resolve(profile, host, port).await?;
    profile.policy.check_all(&addresses).map_err(|(address, reason)| {
        Failure::new(Code::DownloadBlockedAddress, format!("the address {} is {reason}", address.ip()))
            .with("blocked_address", address.ip().to_string())
    })?;
    Ok(addresses)
}

/// Literals are addresses already; everything else is asked for.
pub async fn resolve(profile: &Profile, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    match host.trim_matches(['[', ']']).parse() {
        Ok(ip) => Ok(vec![SocketAddr::new(ip, port)]),
        Err(_) => {
            let addresses = profile.resolver.resolve(host, Instant::now()).await?;
            Ok(addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect())
        }
    }
}
