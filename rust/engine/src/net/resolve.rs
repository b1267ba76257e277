//! Names to addresses, with a cache of our own: bounded, with a floor and a ceiling on times to live, and negative entries.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fetchbox_model::failure::Code;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::{Resolver as Hickory, TokioResolver};

use crate::api::EngineError;
use crate::failure::{Failure, chain};
use crate::sync::lock;

const MIN_TTL: Duration = Duration::from_secs(5);
const MAX_TTL: Duration = Duration::from_secs(3600);
/// A name that does not exist may be made at any moment.
const NEGATIVE_TTL: Duration = Duration::from_secs(30);
/// A failing name server is not asked again for the same name at once.
const FAILURE_TTL: Duration = Duration::from_secs(2);
const MAX_ENTRIES: usize = 20_000;

type Answer = Result<Arc<[IpAddr]>, (Code, String)>;
type Pending = Shared<BoxFuture<'static, (Answer, Instant)>>;

enum Slot {
    Known(Answer, Instant),
    Asking(Pending),
}

/// The resolver and its cache.
pub struct Resolver {
    hickory: TokioResolver,
    cache: Mutex<HashMap<Arc<str>, Slot>>,
}

impl Resolver {
    /// Asks `servers` (`ip` or `ip:port`), or those of /etc/resolv.conf when there are none; /etc/hosts comes first.
    pub fn new(servers: &[String]) -> Result<Self, EngineError> {
        let wrong = |error: NetError| EngineError::Config(format!("name servers: {error}"));
        let mut builder = if servers.is_empty() {
            match Hickory::builder_tokio() {
                Ok(builder) => builder,
                // Machines without resolv.conf ask themselves, as the C library does.
                Err(_) => Hickory::builder_with_config(configured(&["127.0.0.1".to_owned()])?, TokioRuntimeProvider::default()),
            }
        } else {
            Hickory::builder_with_config(configured(servers)?, TokioRuntimeProvider::default())
        };
        let options = builder.options_mut();
        options.cache_size = 0;
        options.timeout = Duration::from_secs(3);
        options.attempts = 2;
        options.max_active_requests = 256;
        Ok(Self { hickory: builder.build().map_err(wrong)?, cache: Mutex::default() })
    }

    /// The addresses of a name, and whether they were known already.
    pub async fn resolve(&self, host: &str, now: Instant) -> Result<Arc<[IpAddr]>, Failure> {
        let name = host.trim_end_matches('.');
        if name == "localhost" || name.ends_with(".localhost") {
            // RFC 6761: never asked of anyone.
            return Ok(Arc::new([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]));
        }
        let pending = match self.lookup(name, now) {
            Slot::Known(answer, _) => return answer.map_err(Failure::from),
            Slot::Asking(pending) => pending,
        };
        let (answer, until) = pending.await;
        self.remember(name, answer.clone(), until);
        answer.map_err(Failure::from)
    }

    fn lookup(&self, name: &str, now: Instant) -> Slot {
        let mut cache = lock(&self.cache);
        match cache.get(name) {
            Some(Slot::Known(answer, until)) if *until > now => return Slot::Known(answer.clone(), *until),
            Some(Slot::Asking(pending)) => return Slot::Asking(pending.clone()),
            Some(Slot::Known(..)) | None => {}
        }
        if cache.len() >= MAX_ENTRIES {
            cache.retain(|_, slot| matches!(slot, Slot::Known(_, until) if *until > now) || matches!(slot, Slot::Asking(_)));
            let excess = (cache.len() + MAX_ENTRIES / 8).saturating_sub(MAX_ENTRIES);
            let victims: Vec<_> = cache.keys().take(excess).cloned().collect();
            for victim in victims {
                cache.remove(&victim);
            }
        }
        let pending = ask(self.hickory.clone(), format!("{name}.")).boxed().shared();
        cache.insert(name.into(), Slot::Asking(pending.clone()));
        Slot::Asking(pending)
    }

    fn remember(&self, name: &str, answer: Answer, until: Instant) {
        if let Some(slot) = lock(&self.cache).get_mut(name) {
            *slot = Slot::Known(answer, until);
        }
    }
}

fn configured(servers: &[String]) -> Result<ResolverConfig, EngineError> {
    let mut config = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
    for server in servers {
        let address = server
            .parse::<SocketAddr>()
            .or_else(|_| server.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
            .map_err(|_| EngineError::Config(format!("fetch.dns_servers: {server:?} is neither an address nor an address with a port")))?;
        let mut entry = NameServerConfig::udp_and_tcp(address.ip());
        for connection in &mut entry.connections {
            connection.port = address.port();
        }
        config.add_name_server(entry);
    }
    Ok(config)
}

/// Asks the name servers. Runs inside a shared future: it ends even when the task that began it is cancelled, as long as another waits.
async fn ask(hickory: TokioResolver, name: String) -> (Answer, Instant) {
    match hickory.lookup_ip(name).await {
        Ok(found) => {
            let now = Instant::now();
            let ttl = found.valid_until().saturating_duration_since(now).clamp(MIN_TTL, MAX_TTL);
            let mut addresses: Vec<IpAddr> = found.iter().collect();
            addresses.dedup();
            if addresses.is_empty() {
                return (Err((Code::DownloadDnsNxdomain, "the name has no address".to_owned())), now + NEGATIVE_TTL);
            }
            (Ok(addresses.into()), now + ttl)
        }
        Err(error) => {
            let (code, message) = classify(&error);
            let ttl = if code == Code::DownloadDnsNxdomain { NEGATIVE_TTL } else { FAILURE_TTL };
            (Err((code, message)), Instant::now() + ttl)
        }
    }
}

fn classify(error: &NetError) -> (Code, String) {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => (Code::DownloadDnsNxdomain, "the name does not exist".to_owned()),
            ResponseCode::NoError => (Code::DownloadDnsNxdomain, "the name has no address".to_owned()),
            code => (Code::DownloadDnsServfail, format!("the name servers answered {code}")),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => (Code::DownloadDnsServfail, format!("the name servers answered {code}")),
        NetError::Timeout => (Code::DownloadDnsTimeout, "the name servers did not answer".to_owned()),
        NetError::Io(io) if io.kind() == std::io::ErrorKind::TimedOut => {
            (Code::DownloadDnsTimeout, "the name servers did not answer".to_owned())
        }
        NetError::Proto(error) => (Code::DownloadBadUrl, format!("not a name that DNS knows: {}", chain(error))),
        other => (Code::DownloadDnsServfail, chain(other)),
    }
}
