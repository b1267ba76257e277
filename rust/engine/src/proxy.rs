//! Proxy pools: which endpoint is asked next, and which rests after it failed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fetchbox_model::failure::Code;
use fetchbox_model::message::ProxyHint;
use http::HeaderValue;
use percent_encoding::percent_decode_str;
use url::Url;

use crate::api::EngineError;
use crate::config::{ProxyChoice, ProxyPoolConfig};
use crate::failure::Failure;
use crate::profile::{basic, seconds};
use crate::sync::lock;

/// A failing endpoint rests no longer than this.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// How long it rests at first unless the pool says otherwise.
const FIRST_REST: Duration = Duration::from_secs(1);

/// How long after its rest an endpoint that nobody has asked since still counts as one that does not work.
const DOUBT: Duration = Duration::from_secs(10);

/// How an endpoint is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// CONNECT over TCP.
    Http,
    /// CONNECT over TLS.
    Https,
    /// SOCKS 5.
    Socks5,
}

/// One proxy.
pub struct Endpoint {
    /// The pool's name.
    pub pool: String,
    /// How it is spoken to.
    pub scheme: Scheme,
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `Proxy-Authorization`.
    pub auth: Option<HeaderValue>,
    /// User name and password for SOCKS.
    pub login: Option<(String, String)>,
    /// What outcomes and logs call it: no credentials.
    pub label: String,
    /// Tells its connections from those of all others: with other credentials the same proxy may be another way out.
    pub tag: String,
    /// Whether it is given names instead of vetted addresses.
    pub remote_dns: bool,
    first_rest: Duration,
    rest: Mutex<Rest>,
}

#[derive(Default)]
struct Rest {
    /// Waves of them.
    failures: u32,
    /// Each one since it worked last.
    misses: u32,
    until: Option<Instant>,
}

impl Endpoint {
    fn parse(pool: &str, config: &ProxyPoolConfig, (generation, index): (usize, usize), text: &str) -> Result<Self, EngineError> {
        let wrong = |what: &str| EngineError::Config(format!("proxy.pools.{pool}: an endpoint {what}"));
        let url = Url::parse(text).map_err(|_| wrong("is no URL"))?;
        let (scheme, port) = match url.scheme() {
            "http" => (Scheme::Http, 80),
            "https" => (Scheme::Https, 443),
            "socks5" | "socks5h" => (Scheme::Socks5, 1080),
            _ => return Err(wrong("is not http://, https:// or socks5://")),
        };
        let host = url.host_str().ok_or_else(|| wrong("has no host"))?.to_owned();
        let port = url.port_or_known_default().unwrap_or(port);
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let login = (!url.username().is_empty()).then(|| (decoded(url.username()), decoded(url.password().unwrap_or_default())));
        let auth = match &login {
            Some((user, password)) => Some(basic(user, password).map_err(|_| wrong("has credentials that no header can hold"))?),
            None => None,
        };
        let first_rest = if config.backoff_base > 0.0 { seconds(config.backoff_base) } else { FIRST_REST };
        Ok(Self {
            pool: pool.to_owned(),
            scheme,
            tag: format!("{pool}/{index}/{generation}"),
            label: format!("{}://{host}:{port}", url.scheme()),
            host,
            port,
            auth,
            login,
            remote_dns: config.remote_dns,
            first_rest,
            rest: Mutex::default(),
        })
    }

    fn rests_until(&self, now: Instant) -> Option<Instant> {
        lock(&self.rest).until.filter(|until| *until > now)
    }

    /// Whether it failed the last times it was asked, and that was not long ago. One failure may be an origin's.
    fn is_out(&self, now: Instant) -> bool {
        let rest = lock(&self.rest);
        rest.misses > 1 && rest.until.is_some_and(|until| until + DOUBT > now)
    }

    /// It failed: it rests, longer each time. Failures of one wave count once.
    pub fn failed(&self, now: Instant) {
        let mut rest = lock(&self.rest);
        rest.misses = rest.misses.saturating_add(1);
        if rest.until.is_some_and(|until| until > now) {
            return;
        }
        let time = self.first_rest.saturating_mul(1 << rest.failures.min(16)).min(LONGEST_REST);
        rest.failures += 1;
        rest.until = Some(now + time);
    }

    /// It worked.
    pub fn worked(&self) {
        *lock(&self.rest) = Rest::default();
    }
}

struct Pool {
    endpoints: Vec<Arc<Endpoint>>,
    fallbacks: Vec<String>,
    max_attempts: usize,
    turn: Mutex<usize>,
}

/// All pools.
#[derive(Default)]
pub struct Pools(HashMap<String, Pool>);

impl Pools {
    /// Reads the configuration. `generation` tells its endpoints' connections from those of an earlier one.
    pub fn new(config: &BTreeMap<String, ProxyPoolConfig>, generation: usize) -> Result<Self, EngineError> {
        let mut pools = HashMap::new();
        for (name, pool) in config {
            let endpoint = |(index, text): (usize, &String)| Endpoint::parse(name, pool, (generation, index), text).map(Arc::new);
            let parsed = pool.endpoints.iter().enumerate().map(endpoint);
            let endpoints: Result<Vec<_>, _> = parsed.collect();
            if let Some(unknown) = pool.fallbacks.iter().find(|fallback| !config.contains_key(*fallback)) {
                return Err(EngineError::Config(format!("proxy.pools.{name}: fallback {unknown:?} is not configured")));
            }
            let max_attempts = if pool.max_attempts == 0 { usize::MAX } else { pool.max_attempts as usize };
            pools.insert(
                name.clone(),
                Pool { endpoints: endpoints?, fallbacks: pool.fallbacks.clone(), max_attempts, turn: Mutex::default() },
            );
        }
        Ok(Self(pools))
    }

    /// Names of the pools of which no endpoint works at the moment, in order.
    pub fn out(&self, now: Instant) -> Vec<String> {
        let out = |pool: &Pool| !pool.endpoints.is_empty() && pool.endpoints.iter().all(|endpoint| endpoint.is_out(now));
        let mut names: Vec<String> = self.0.iter().filter(|(_, pool)| out(pool)).map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// The endpoints for one attempt, tier by tier, in the order in which they are to be asked. Empty means: no proxy.
    pub fn route(&self, hint: Option<&ProxyHint>, choice: &ProxyChoice, now: Instant) -> Result<Vec<Arc<Endpoint>>, Failure> {
        let hinted = hint.filter(|hint| !hint.primary_pool.is_empty());
        let (primary, fallbacks) = match hinted {
            Some(hint) => (&hint.primary_pool, &hint.fallbacks),
            None => (&choice.primary, &choice.fallbacks),
        };
        if primary.is_empty() {
            return Ok(Vec::new());
        }
        let mut names: Vec<&str> = Vec::new();
        let mut next: Vec<&str> = std::iter::once(primary).chain(fallbacks).map(String::as_str).rev().collect();
        while let Some(name) = next.pop() {
            // A pool that was asked already ends a cycle.
            if !names.contains(&name) {
                let pool = self
                    .0
                    .get(name)
                    .ok_or_else(|| Failure::new(Code::ValidationUnknownPool, format!("proxy pool {name:?} is not configured")))?;
                names.push(name);
                next.extend(pool.fallbacks.iter().rev().map(String::as_str));
            }
        }
        let pools = || names.iter().filter_map(|name| self.0.get(*name));
        let route: Vec<_> = pools().flat_map(|pool| tier(pool, now)).collect();
        if !route.is_empty() {
            return Ok(route);
        }
        // All of them rest: the one that has rested enough first is asked all the same, and what it says is the reason that people see.
        let first = pools().flat_map(|pool| &pool.endpoints).min_by_key(|endpoint| endpoint.rests_until(now));
        first
            .map(|endpoint| vec![endpoint.clone()])
            .ok_or_else(|| Failure::new(Code::DownloadProxyFailed, "the proxy pools have no endpoint"))
    }
}

/// Endpoints of a pool in turn, those that rest left out.
fn tier(pool: &Pool, now: Instant) -> Vec<Arc<Endpoint>> {
    let start = {
        let mut turn = lock(&pool.turn);
        *turn = turn.wrapping_add(1);
        *turn - 1
    };
    let count = pool.endpoints.len();
    let order = (0..count).map(|i| &pool.endpoints[(start + i) % count]);
    order.filter(|endpoint| endpoint.rests_until(now).is_none()).take(pool.max_attempts).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(list: &[(&str, &[&str], &[&str])]) -> Pools {
        let config = list.iter().map(|(name, endpoints, fallbacks)| {
            let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
            (name.to_string(), ProxyPoolConfig { endpoints: own(endpoints), fallbacks: own(fallbacks), ..ProxyPoolConfig::default() })
        });
        Pools::new(&config.collect(), 0).unwrap()
    }

    fn labels(pools: &Pools, primary: &str, now: Instant) -> Vec<String> {
        let choice = ProxyChoice { primary: primary.to_owned(), fallbacks: Vec::new() };
        pools.route(None, &choice, now).map(|route| route.iter().map(|endpoint| endpoint.label.clone()).collect()).unwrap_or_default()
    }

    #[test]
    fn endpoints_take_turns_and_fallbacks_follow_even_in_cycles() {
        let pools = pools(&[("a", &["http://one:1", "http://two:2"], &["b"]), ("b", &["socks5://u:p@three"], &["a"])]);
        let now = Instant::now();
        assert_eq!(labels(&pools, "a", now), ["http://one:1", "http://two:2", "socks5://three:1080"]);
        assert_eq!(labels(&pools, "a", now), ["http://two:2", "http://one:1", "socks5://three:1080"]);
        assert_eq!(labels(&pools, "", now), Vec::<String>::new());
    }

    #[test]
    fn failing_endpoints_rest_longer_each_time() {
        let pools = pools(&[("a", &["http://one:1", "http://two:2"], &[])]);
        let mut now = Instant::now();
        let one = pools.0["a"].endpoints[0].clone();
        for rest in [1, 2, 4] {
            one.failed(now);
            one.failed(now);
            assert_eq!(labels(&pools, "a", now), ["http://two:2"]);
            assert_eq!(one.rests_until(now), Some(now + Duration::from_secs(rest)));
            now += Duration::from_secs(rest);
        }
        assert_eq!(labels(&pools, "a", now).len(), 2);
        // When all rest, the one that is ready first is asked.
        pools.0["a"].endpoints[1].failed(now);
        one.failed(now);
        assert_eq!(labels(&pools, "a", now), ["http://two:2"]);
        one.worked();
        assert_eq!(labels(&pools, "a", now), ["http://one:1"]);
        pools.0["a"].endpoints[1].worked();
        assert_eq!(labels(&pools, "a", now).len(), 2);
    }

    #[test]
    fn a_pool_is_out_while_all_of_its_endpoints_are() {
        let pools = pools(&[("a", &["http://one:1", "http://two:2"], &["b"]), ("b", &["http://three:3"], &[]), ("none", &[], &[])]);
        let now = Instant::now();
        assert_eq!(pools.out(now), Vec::<String>::new());
        let fail = |pool: &str, endpoint: usize| pools.0[pool].endpoints[endpoint].failed(now);
        fail("b", 0);
        assert_eq!(pools.out(now), Vec::<String>::new());
        fail("b", 0);
        fail("a", 0);
        fail("a", 0);
        assert_eq!(pools.out(now), ["b"]);
        fail("a", 1);
        fail("a", 1);
        assert_eq!(pools.out(now), ["a", "b"]);
        // Between its rest and the next look at it nothing has become better.
        assert_eq!(pools.out(now + FIRST_REST + DOUBT / 2), ["a", "b"]);
        pools.0["a"].endpoints[1].worked();
        assert_eq!(pools.out(now + FIRST_REST), ["b"]);
        // Nobody asks any more: then nobody knows.
        assert_eq!(pools.out(now + FIRST_REST + DOUBT), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_its_credentials() {
        let config = |endpoint: &str| {
            BTreeMap::from([("a".to_owned(), ProxyPoolConfig { endpoints: vec![endpoint.to_owned()], ..ProxyPoolConfig::default() })])
        };
        for endpoint in ["ftp://user:secret@h", "user:secret@h:1"] {
            let error = Pools::new(&config(endpoint), 0).err().unwrap().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let pools = pools(&[]);
        let hint = ProxyHint { primary_pool: "x".into(), fallbacks: Vec::new() };
        assert_eq!(pools.route(Some(&hint), &ProxyChoice::default(), Instant::now()).err().unwrap().code, Code::ValidationUnknownPool);
    }
}
