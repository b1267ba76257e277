//! The hub's configuration, as the supervisor hands it over.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fetchbox_model::stream::Topic;
use serde::Deserialize;

/// When a commit counts as durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// After fdatasync: survives a power cut.
    Sync,
    /// After write: survives kill -9, not a power cut.
    Buffer,
}

/// Where the streams live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Broker {
    /// In the hub's own database.
    Embedded,
    /// Elsewhere; the hub keeps an outbox.
    External,
}

/// How long things are kept; seconds and bytes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Settled jobs, s.
    pub job_ttl: f64,
    /// The whole database, bytes; settled jobs go first, oldest first.
    pub ledger_max_bytes: u64,
    /// `jobs.tasks` and `jobs.retry` below the committed offsets, s.
    pub tasks_ttl: f64,
    /// `jobs.status` and `jobs.events`, s.
    pub status_ttl: f64,
    /// `jobs.logs`, s.
    pub logs_ttl: f64,
    /// `jobs.dlq`, and failed jobs, s.
    pub dlq_ttl: f64,
    /// Bytes of one topic beyond which its oldest records go early; `None` for no such limit.
    pub stream_max_bytes: Option<u64>,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: f64 = 86_400.0;
        Self {
            job_ttl: 30.0 * DAY,
            ledger_max_bytes: 5_000_000_000,
            tasks_ttl: 7.0 * DAY,
            status_ttl: 14.0 * DAY,
            logs_ttl: 30.0 * DAY,
            dlq_ttl: 90.0 * DAY,
            stream_max_bytes: None,
        }
    }
}

impl Retention {
    /// How long records of a topic are kept, ms.
    pub fn ttl_ms(&self, topic: Topic) -> u64 {
        let seconds = match topic {
            Topic::Tasks | Topic::Retry => self.tasks_ttl,
            Topic::Status | Topic::Events => self.status_ttl,
            Topic::Logs => self.logs_ttl,
            Topic::Dlq => self.dlq_ttl,
        };
        (seconds * 1000.0) as u64
    }
}

/// How ledger and store are kept in order; seconds. 0 turns a thing off, except `collect_after`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keeping {
    /// A job that nothing has changed for so long is examined for lost tasks, s.
    pub sweep_after: f64,
    /// A job of a direct producer that does not say how large it is has ended when nothing came for so long, s.
    pub direct_idle: f64,
    /// How often objects that nobody owns are removed, s.
    pub collect_every: f64,
    /// How long after it settled a job is looked at for such objects, and after its beginning a post that was never accepted, s.
    pub collect_after: f64,
    /// Unfinished uploads that are older are ended, s.
    pub uploads_after: f64,
    /// Where objects lie, when not in the default place.
    pub key_template: Option<String>,
    /// The same of job types.
    pub key_templates: BTreeMap<String, String>,
    /// Buckets of job types.
    pub buckets: Vec<String>,
}

impl Default for Keeping {
    fn default() -> Self {
        Self {
            sweep_after: 900.0,
            direct_idle: 300.0,
            collect_every: 20.0,
            collect_after: 900.0,
            uploads_after: 86_400.0,
            key_template: None,
            key_templates: BTreeMap::new(),
            buckets: Vec::new(),
        }
    }
}

/// Everything the hub needs to know.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubConfig {
    /// The database's directory.
    pub path: PathBuf,
    /// Where to listen.
    pub socket_path: PathBuf,
    /// Where else: `tcp://host:port`.
    #[serde(default)]
    pub listen: Option<String>,
    /// PEM file with the certificate chain that is shown there.
    #[serde(default)]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with its private key.
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
    /// When a commit counts as durable.
    #[serde(default = "sync")]
    pub durability: Durability,
    /// Partitions of `jobs.tasks`; the number in an existing database wins.
    #[serde(default = "task_partitions")]
    pub partitions: u32,
    /// The outbox's limit, bytes.
    #[serde(default = "outbox_max_bytes")]
    pub outbox_max_bytes: u64,
    /// How long things are kept.
    #[serde(default)]
    pub retention: Retention,
    /// The local store's root, when manifests are written there.
    #[serde(default)]
    pub store_root: Option<PathBuf>,
    /// Where the streams live.
    #[serde(default = "embedded")]
    pub broker: Broker,
    /// What clients must show, when set.
    #[serde(default)]
    pub token: Option<String>,
    /// A connection that gives no sign of life for so long is closed, and its partitions move, s.
    #[serde(default = "session_timeout")]
    pub session_timeout: f64,
    /// Bytes of the file system that are kept free: below it accepts and appends are refused. `None`: 2 % of it, at most 64 MiB.
    #[serde(default)]
    pub reserve_bytes: Option<u64>,
    /// How ledger and store are kept in order.
    #[serde(default)]
    pub keeping: Keeping,
}

fn sync() -> Durability {
    Durability::Sync
}

fn embedded() -> Broker {
    Broker::Embedded
}

fn task_partitions() -> u32 {
    Topic::Tasks.default_partitions()
}

fn session_timeout() -> f64 {
    30.0
}

fn outbox_max_bytes() -> u64 {
    1_000_000_000
}

impl HubConfig {
    /// Defaults for a database and a socket.
    pub fn new(path: impl Into<PathBuf>, socket_path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            socket_path: socket_path.into(),
            listen: None,
            tls_cert: None,
            tls_key: None,
            durability: sync(),
            partitions: task_partitions(),
            outbox_max_bytes: outbox_max_bytes(),
            retention: Retention::default(),
            store_root: None,
            broker: embedded(),
            token: None,
            session_timeout: session_timeout(),
            reserve_bytes: None,
            keeping: Keeping::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_fill_in_and_unknown_keys_are_errors() {
        let config: HubConfig = serde_json::from_str(r#"{"path":"/d/hub","socket_path":"/d/s"}"#).unwrap();
        assert_eq!(config, HubConfig::new("/d/hub", "/d/s"));
        assert!(serde_json::from_str::<HubConfig>(r#"{"path":"/d/hub","socket_path":"/d/s","partition":3}"#).is_err());
        assert_eq!(config.retention.ttl_ms(Topic::Tasks), 7 * 86_400_000);
    }
}
