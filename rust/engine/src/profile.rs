//! A job type's settings, worked out once: everything a task needs that is the same for all tasks of its job type.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fetchbox_model::key::KeyTemplate;
use fetchbox_model::reuse::{KEY_BYTES, digest};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::ClientConfig;

use crate::address::AddressPolicy;
use crate::api::EngineError;
use crate::config::{EngineConfig, FetchConfig, JobTypeConfig, ProxyChoice};
use crate::curl::Login;
use crate::fetch::pace::Pace;
use crate::fetch::request::complete;
use crate::fetch::transfer::Sizes;
use crate::filter::Filter;
use crate::net::resolve::Resolver;
use crate::net::tls;
use crate::retry::Rules;
use crate::schedule::HostLimits;

/// More job types than anybody configures.
const GENERATION_SHIFT: u32 = 20;

/// What a task of one job type is worked on with.
pub struct Profile {
    /// Tells connections of different settings apart.
    pub tag: usize,
    /// `[fetch]` with the job type's own keys.
    pub fetch: FetchConfig,
    /// Which addresses may be connected to.
    pub policy: AddressPolicy,
    /// Asks the configured name servers.
    pub resolver: Arc<Resolver>,
    /// Roots and protocols.
    pub tls: Arc<ClientConfig>,
    /// Retries.
    pub rules: Rules,
    /// Limits per host.
    pub limits: HostLimits,
    /// Limits on bodies.
    pub sizes: Sizes,
    /// What is left out on purpose.
    pub filter: Filter,
    /// The limit on bytes per second; shared by all job types that have none of their own.
    pub pace: Option<Arc<Pace>>,
    /// Sent unless the task has them.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// For the task's own origin only.
    pub auth: Option<HeaderValue>,
    /// Whether curl makes the requests.
    pub by_curl: bool,
    /// Credentials for curl; a basic one for HTTP stands in `auth` all the same.
    pub login: Option<Login>,
    /// Host keys for sftp.
    pub known_hosts: Option<String>,
    /// All headers of a task that has none of its own.
    pub plain: Arc<HeaderMap>,
    /// Where objects lie.
    pub template: KeyTemplate,
    /// Bucket for tasks that name none; empty for the configured one.
    pub bucket: String,
    /// Key prefix for tasks that name none.
    pub key_prefix: String,
    /// Kept on every object.
    pub metadata: BTreeMap<String, String>,
    /// Pools for tasks that name none.
    pub proxy: ProxyChoice,
    /// Stands for all settings that an answer or its object may depend on, wherever they are worked out.
    pub reuse_scope: [u8; KEY_BYTES],
}

/// All job types' settings.
pub struct Profiles {
    default: Arc<Profile>,
    named: HashMap<String, Arc<Profile>>,
}

impl Profiles {
    /// Works out the settings of every configured job type, and of those that are not.
    /// `generation` tells them from those of an earlier configuration.
    pub fn new(config: &EngineConfig, generation: usize) -> Result<Self, EngineError> {
        let first = generation << GENERATION_SHIFT;
        let mut resolvers = HashMap::new();
        let default = Arc::new(profile(first, "", config, &JobTypeConfig::default(), &mut resolvers)?);
        let mut named = HashMap::new();
        for (index, (name, job_type)) in config.job_types.iter().enumerate() {
            let mut own = profile(first + index + 1, name, config, job_type, &mut resolvers)?;
            if !job_type.fetch.contains_key("limit_rate") {
                own.pace.clone_from(&default.pace);
            }
            named.insert(name.clone(), Arc::new(own));
        }
        Ok(Self { default, named })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Profile>> {
        self.named.values().chain([&self.default])
    }

    /// The settings of a job type.
    pub fn of(&self, job_type: &str) -> &Arc<Profile> {
        self.named.get(job_type).unwrap_or(&self.default)
    }
}

/// Seconds of the configuration; what is negative or not a number is zero.
pub fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::ZERO)
}

fn profile(
    tag: usize,
    name: &str,
    config: &EngineConfig,
    job_type: &JobTypeConfig,
    resolvers: &mut HashMap<Vec<String>, Arc<Resolver>>,
) -> Result<Profile, EngineError> {
    let wrong = |what: &str, error: String| EngineError::Config(format!("job_types.{name}.{what}: {error}"));
    let fetch = overlaid(&config.fetch, &job_type.fetch).map_err(|error| wrong("fetch", error.to_string()))?;
    let resolver = match resolvers.get(&fetch.dns_servers) {
        Some(resolver) => resolver.clone(),
        None => {
            let resolver = Arc::new(Resolver::new(&fetch.dns_servers)?);
            resolvers.insert(fetch.dns_servers.clone(), resolver.clone());
            resolver
        }
    };
    let mut blocked = Vec::new();
    for endpoint in &config.blocked_endpoints {
        blocked
            .push(endpoint.parse::<SocketAddr>().map_err(|error| EngineError::Config(format!("blocked_endpoints {endpoint:?}: {error}")))?);
    }
    let mut headers = Vec::new();
    for (name, value) in &job_type.default_headers {
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|error| wrong("default_headers", error.to_string()))?;
        headers.push((header, HeaderValue::from_str(value).map_err(|error| wrong("default_headers", error.to_string()))?));
    }
    let agent = HeaderValue::from_str(&fetch.user_agent).map_err(|error| EngineError::Config(format!("fetch.user_agent: {error}")))?;
    if !headers.iter().any(|(name, _)| name == http::header::USER_AGENT) {
        headers.push((http::header::USER_AGENT, agent));
    }
    let template = job_type.storage.key_template.as_ref().or(config.storage.key_template.as_ref());
    let template = match template {
        Some(text) => KeyTemplate::parse(text).map_err(|error| wrong("storage.key_template", error.to_string()))?,
        None => KeyTemplate::default(),
    };
    let mut metadata = config.storage.metadata.clone();
    metadata.extend(job_type.storage.metadata.clone());
    let by_curl = job_type.transport.as_deref() == Some("curl");
    let login = job_type.auth.as_ref().filter(|_| by_curl).map(|auth| Login {
        kind: auth.kind.clone(),
        username: auth.username.clone(),
        password: auth.password.clone(),
    });
    let auth = match &job_type.auth {
        Some(auth) if auth.kind == "basic" => Some(basic(&auth.username, &auth.password).map_err(|error| wrong("auth", error))?),
        Some(auth) if !by_curl => {
            return Err(wrong("auth", format!("type {:?} needs transport = \"curl\"", auth.kind)));
        }
        _ => None,
    };
    let reuse_scope = scope(&headers, auth.as_ref(), &metadata, job_type);
    let mut plain = HeaderMap::new();
    complete(&mut plain, &headers, auth.as_ref());
    Ok(Profile {
        tag,
        policy: AddressPolicy::new(fetch.allow_networks.clone(), blocked),
        resolver,
        tls: tls::client(&fetch)?,
        rules: Rules {
            max_attempts: fetch.max_attempts.max(1),
            base: seconds(fetch.backoff_base),
            max: seconds(fetch.backoff_max),
            retry_after_max: seconds(fetch.retry_after_max),
            outlast_full_store: config.outlast_full_store,
        },
        limits: HostLimits {
            concurrency: fetch.per_host_concurrency.max(1),
            adaptive: fetch.adaptive_rate,
            interval: if fetch.per_host_rate > 0.0 { seconds(1.0 / fetch.per_host_rate) } else { Duration::ZERO },
        },
        sizes: Sizes {
            multipart_threshold: config.storage.multipart_threshold,
            part_size: config.storage.part_size,
            max_bytes: fetch.max_bytes,
        },
        filter: Filter::new(&fetch).map_err(|error| wrong("fetch", error))?,
        pace: Pace::new(fetch.limit_rate),
        headers,
        auth,
        by_curl,
        login,
        known_hosts: job_type.known_hosts.clone(),
        plain: Arc::new(plain),
        template,
        bucket: job_type.storage.bucket.clone().unwrap_or_default(),
        key_prefix: job_type.storage.key_prefix.clone().unwrap_or_default(),
        metadata,
        proxy: job_type.proxy.clone().unwrap_or_default(),
        reuse_scope,
        fetch,
    })
}

fn scope(
    headers: &[(HeaderName, HeaderValue)],
    auth: Option<&HeaderValue>,
    metadata: &BTreeMap<String, String>,
    job_type: &JobTypeConfig,
) -> [u8; KEY_BYTES] {
    let ours = FetchConfig::default().user_agent;
    // A new version is no other visitor.
    let matters = |(name, value): &&(HeaderName, HeaderValue)| *name != http::header::USER_AGENT || value.as_bytes() != ours.as_bytes();
    let headers: Vec<&[u8]> =
        headers.iter().filter(matters).flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]).collect();
    let metadata: Vec<&[u8]> = metadata.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]).collect();
    let proxy = job_type.proxy.clone().unwrap_or_default();
    let pools: Vec<&[u8]> = [&proxy.primary].into_iter().chain(&proxy.fallbacks).map(|pool| pool.as_bytes()).collect();
    let lists = [headers, vec![auth.map_or(&b""[..], HeaderValue::as_bytes)], metadata, pools].map(digest);
    digest(lists.iter().map(|list| &list[..]))
}

/// A secret `Authorization: Basic` value.
pub fn basic(username: &str, password: &str) -> Result<HeaderValue, String> {
    let text = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
    let mut value = HeaderValue::from_str(&text).map_err(|error| format!("{AUTHORIZATION}: {error}"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn overlaid(base: &FetchConfig, own: &serde_json::Map<String, serde_json::Value>) -> Result<FetchConfig, serde_json::Error> {
    if own.is_empty() {
        return Ok(base.clone());
    }
    let mut value = serde_json::to_value(base)?;
    if let Some(map) = value.as_object_mut() {
        map.extend(own.clone());
    }
    serde_json::from_value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_types_keys_lie_over_the_common_ones() {
        let base = FetchConfig { max_bytes: 7, ..FetchConfig::default() };
        let own = serde_json::json!({"max_attempts": 2, "allow_networks": ["10.0.0.0/8"]});
        let fetch = overlaid(&base, own.as_object().unwrap()).unwrap();
        assert_eq!((fetch.max_bytes, fetch.max_attempts, fetch.allow_networks.len()), (7, 2, 1));
        let unknown = serde_json::json!({"max_atempts": 2});
        assert!(overlaid(&base, unknown.as_object().unwrap()).unwrap_err().to_string().contains("max_atempts"));
    }
}
