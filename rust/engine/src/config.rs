//! The engine's part of the configuration, already in plain numbers: seconds as `f64`, sizes in bytes, speeds in bytes per second.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

const MB: u64 = 1_000_000;
const GIB: u64 = 1 << 30;

/// What an engine is started with.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Downloads at once, over all hosts.
    pub concurrency: usize,
    /// Bytes of bodies held in memory at once, over all downloads.
    pub memory_budget: u64,
    /// Threads of the engine's own runtime; 0 takes one per core, at most 4.
    pub runtime_threads: usize,
    /// `[fetch]`.
    pub fetch: FetchConfig,
    /// `[storage]`.
    pub storage: StorageConfig,
    /// `[job_types.NAME]`.
    pub job_types: BTreeMap<String, JobTypeConfig>,
    /// `[proxy.pools.NAME]`.
    pub proxy_pools: BTreeMap<String, ProxyPoolConfig>,
    /// `ip:port` of our own services and of the store: refused even inside `fetch.allow_networks`.
    pub blocked_endpoints: Vec<String>,
    /// Whether a stored file and its directory entry are on disk before its outcome is reported.
    pub sync_files: bool,
    /// Whether tasks wait for space in a full store, and for descriptors and memory, as long as it takes, instead of failing when their attempts
    /// run out.
    pub outlast_full_store: bool,
    /// Tasks that may wait in the engine; beyond that, and after a while anyhow, those of hosts that stand still are handed on as due later. None keeps
    /// them.
    pub most_waiting: Option<usize>,
    /// Directory for what a crash of this process leaves behind, shared with the other workers of this machine; none for a library's engine.
    pub flight_dir: Option<String>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            concurrency: 256,
            memory_budget: 256 * MB,
            runtime_threads: 0,
            fetch: FetchConfig::default(),
            storage: StorageConfig::default(),
            job_types: BTreeMap::new(),
            proxy_pools: BTreeMap::new(),
            blocked_endpoints: Vec::new(),
            sync_files: false,
            outlast_full_store: false,
            most_waiting: None,
            flight_dir: None,
        }
    }
}

/// `[fetch]`, and `[job_types.NAME.fetch]` laid over it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FetchConfig {
    /// Seconds for name, TCP and TLS together.
    pub connect_timeout: f64,
    /// Seconds without a byte.
    pub read_timeout: f64,
    /// Seconds for one attempt, redirects and body included; 0 for none.
    pub total_timeout: f64,
    /// Bytes per second over a window of 30 s; 0 for none.
    pub min_speed: u64,
    /// Bytes per second of all bodies together; 0 for no limit.
    pub limit_rate: u64,
    /// Attempts, the first counted.
    pub max_attempts: u32,
    /// Seconds; the ceiling of the first back-off.
    pub backoff_base: f64,
    /// Seconds; the ceiling of every back-off.
    pub backoff_max: f64,
    /// Seconds; a longer Retry-After is cut to this.
    pub retry_after_max: f64,
    /// Largest body in bytes.
    pub max_bytes: u64,
    /// Redirects followed.
    pub max_redirects: u32,
    /// Downloads at once per host.
    pub per_host_concurrency: usize,
    /// Requests per second per host; 0 for no limit.
    pub per_host_rate: f64,
    /// Whether a host that answers 429 or 503, or ever more slowly, is asked less often.
    pub adaptive_rate: bool,
    /// The User-Agent header; a task's own wins.
    pub user_agent: String,
    /// Networks that may be connected to although the policy refuses them.
    pub allow_networks: Vec<IpNet>,
    /// Whether certificates are checked.
    pub verify_tls: bool,
    /// PEM file of further roots.
    pub ca_file: Option<String>,
    /// `ip` or `ip:port`; empty reads /etc/resolv.conf.
    pub dns_servers: Vec<String>,
    /// Whether HTTP/2 is offered under TLS.
    pub http2: bool,
    /// Whether robots.txt is asked first.
    pub robots: bool,
    /// Directives of X-Robots-Tag that filter an answer, with `robots`.
    pub robots_tags: Vec<String>,
    /// Types that are kept, `type/subtype` or `type/*`; with a `!` before it, types that are not. Empty keeps all.
    pub filter_types: Vec<String>,
    /// Bytes; smaller bodies are filtered.
    pub filter_min_bytes: u64,
    /// Bytes; larger bodies are filtered. 0 for no limit.
    pub filter_max_bytes: u64,
    /// Statuses that are filtered instead of failed: `404` or `5xx`.
    pub filter_statuses: Vec<String>,
    /// Whether unchanged objects are reused.
    pub reuse: bool,
    /// Seconds an object may be reused without asking the origin.
    pub reuse_max_age: f64,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            connect_timeout: 10.0,
            read_timeout: 30.0,
            total_timeout: 3600.0,
            min_speed: 0,
            limit_rate: 0,
            max_attempts: 5,
            backoff_base: 1.0,
            backoff_max: 300.0,
            retry_after_max: 3600.0,
            max_bytes: 5 * GIB,
            max_redirects: 10,
            per_host_concurrency: 8,
            per_host_rate: 0.0,
            adaptive_rate: true,
            user_agent: concat!("fetchbox/", env!("CARGO_PKG_VERSION")).to_owned(),
            allow_networks: Vec::new(),
            verify_tls: true,
            ca_file: None,
            dns_servers: Vec::new(),
            http2: true,
            robots: false,
            robots_tags: ["noai", "noimageai", "noindex", "noimageindex"].map(str::to_owned).to_vec(),
            filter_types: Vec::new(),
            filter_min_bytes: 0,
            filter_max_bytes: 0,
            filter_statuses: Vec::new(),
            reuse: false,
            reuse_max_age: 0.0,
        }
    }
}

/// `[storage]`.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// `file://…`, `s3://bucket/prefix`, `gs://…` or `az://…`.
    pub url: String,
    /// Another endpoint than the provider's own.
    pub endpoint: Option<String>,
    /// Region name.
    pub region: Option<String>,
    /// Access key; without one the ambient providers are asked.
    pub access_key_id: Option<String>,
    /// Secret of the access key.
    pub secret_access_key: Option<String>,
    /// Session token.
    pub session_token: Option<String>,
    /// Whether plain HTTP may be spoken to the store.
    pub allow_http: bool,
    /// Whether the bucket is part of the host name.
    pub virtual_hosted_style: bool,
    /// Bodies from this size on are multipart uploads.
    pub multipart_threshold: u64,
    /// Bytes of a part; it grows with the object.
    pub part_size: u64,
    /// Attempts of one store request.
    pub max_attempts: u32,
    /// Kept on every object.
    pub metadata: BTreeMap<String, String>,
    /// Where objects lie; the default is the model's.
    pub key_template: Option<String>,
    /// Further options of the store, by object_store's names.
    pub options: BTreeMap<String, String>,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            allow_http: false,
            virtual_hosted_style: false,
            multipart_threshold: 8 * MB,
            part_size: 8 * MB,
            max_attempts: 5,
            metadata: BTreeMap::new(),
            key_template: None,
            options: BTreeMap::new(),
        }
    }
}

impl std::fmt::Debug for StorageConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets and free options, which may hold some, stay out of logs.
        f.debug_struct("StorageConfig").field("url", &self.url).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// `[job_types.NAME]`, as far as the engine is concerned.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobTypeConfig {
    /// Sent unless the task has the header itself.
    pub default_headers: BTreeMap<String, String>,
    /// Credentials for the task's own origin.
    pub auth: Option<AuthConfig>,
    /// Pools for tasks that name none.
    pub proxy: Option<ProxyChoice>,
    /// Where objects of this job type go.
    pub storage: JobStorageConfig,
    /// Keys of `[fetch]` that differ.
    pub fetch: serde_json::Map<String, serde_json::Value>,
    /// `native`, or `curl` for one that works at the engine's desk.
    pub transport: Option<String>,
    /// OpenSSH's file of host keys, for sftp.
    pub known_hosts: Option<String>,
}

/// `[job_types.NAME.auth]`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// `basic`; digest and NTLM belong to the curl transport.
    #[serde(rename = "type", default = "basic")]
    pub kind: String,
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

fn basic() -> String {
    "basic".to_owned()
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// `[job_types.NAME.proxy]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyChoice {
    /// The pool asked first.
    pub primary: String,
    /// The pools asked when it is exhausted.
    pub fallbacks: Vec<String>,
}

/// `[job_types.NAME.storage]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobStorageConfig {
    /// Another bucket of the same store.
    pub bucket: Option<String>,
    /// Put before every key.
    pub key_prefix: Option<String>,
    /// Another key template.
    pub key_template: Option<String>,
    /// Kept on every object of the job type.
    pub metadata: BTreeMap<String, String>,
}

/// `[proxy.pools.NAME]`.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyPoolConfig {
    /// `http://`, `https://` and `socks5://` URLs, credentials included.
    pub endpoints: Vec<String>,
    /// Pools asked when this one is exhausted.
    pub fallbacks: Vec<String>,
    /// Endpoints tried per attempt; 0 for all.
    pub max_attempts: u32,
    /// Seconds a failing endpoint rests at first; doubles.
    pub backoff_base: f64,
    /// Whether the proxy resolves names.
    pub remote_dns: bool,
}

impl std::fmt::Debug for ProxyPoolConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyPoolConfig").field("endpoints", &self.endpoints.len()).finish_non_exhaustive()
    }
}
