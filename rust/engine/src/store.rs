//! Where bodies go: local files or an object store, by the URL of the configuration.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use fetchbox_model::failure::Code;
use fetchbox_model::key::{ObjectKey, file_url, join_url};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::api::EngineError;
use crate::config::{EngineConfig, StorageConfig};
use crate::failure::{Failure, is_exhaustion};
use durable::Durable;
use local::LocalStore;
use remote::{Cleanups, Remote};

pub mod adopt;
pub mod durable;
pub mod housekeeper;
pub mod local;
pub mod remote;
mod uploads;

/// One store, local or remote.
#[derive(Clone)]
pub enum Store {
    /// Files under a directory; with a thread that makes them durable, or without.
    Local(Arc<LocalStore>, Option<Arc<Durable>>),
    /// An object store, and the URL that its keys are joined to.
    Remote(Arc<Remote>, Arc<str>),
}

impl Store {
    /// The URL of an object.
    pub fn url_of(&self, key: &ObjectKey) -> String {
        match self {
            Self::Local(files, _) => file_url(files.root(), key),
            Self::Remote(_, base) => join_url(base, key),
        }
    }
}

/// The configured store and its other buckets.
pub struct Stores {
    main: Store,
    buckets: HashMap<String, Store>,
}

impl Stores {
    /// Opens the stores that the configuration names. `given` takes the place of the configured one.
    pub fn open(config: &EngineConfig, given: Option<Arc<dyn ObjectStore>>, cleanups: &Cleanups) -> Result<Self, EngineError> {
        let durable = if config.sync_files {
            Some(Arc::new(Durable::start().map_err(|source| EngineError::System { what: "the syncing thread", source })?))
        } else {
            None
        };
        if let Some(store) = given {
            let base = if config.storage.url.is_empty() { "object:///" } else { &config.storage.url };
            let remote = Remote::new(store, Path::default(), cleanups.clone());
            return Ok(Self { main: Store::Remote(Arc::new(remote), base.into()), buckets: HashMap::new() });
        }
        let open = |bucket: Option<&str>| open_one(&config.storage, bucket, durable.clone(), cleanups);
        let main = open(None)?;
        let mut buckets = HashMap::new();
        for bucket in config.job_types.values().filter_map(|job_type| job_type.storage.bucket.as_deref()) {
            if !buckets.contains_key(bucket) {
                buckets.insert(bucket.to_owned(), open(Some(bucket))?);
            }
        }
        Ok(Self { main, buckets })
    }

    /// The store of a bucket; the empty name is the configured one.
    pub fn of_bucket(&self, bucket: &str) -> Result<&Store, Failure> {
        if bucket.is_empty() {
            return Ok(&self.main);
        }
        self.buckets.get(bucket).ok_or_else(|| Failure::new(Code::ValidationUnknownBucket, format!("bucket {bucket:?} is not configured")))
    }

    /// Clears staging directories.
    pub fn sweep(&self) {
        for store in self.buckets.values().chain([&self.main]) {
            if let Store::Local(files, _) = store {
                files.sweep();
            }
        }
    }
}

/// Whether a store's URL leads beyond this machine's files.
pub fn is_remote(url: &str) -> bool {
    !url.starts_with("file:")
}

fn open_one(
    config: &StorageConfig,
    bucket: Option<&str>,
    durable: Option<Arc<Durable>>,
    cleanups: &Cleanups,
) -> Result<Store, EngineError> {
    let url = Url::parse(&config.url).map_err(|error| EngineError::Config(format!("storage.url {:?}: {error}", config.url)))?;
    if url.scheme() == "file" {
        let mut path: PathBuf =
            url.to_file_path().map_err(|()| EngineError::Config(format!("storage.url {:?} is no local path", config.url)))?;
        path.extend(bucket);
        let files = LocalStore::open(&path).map_err(|error| EngineError::Store(format!("{}: {error}", path.display())))?;
        return Ok(Store::Local(Arc::new(files), durable));
    }
    let name = bucket.or(url.host_str()).unwrap_or_default();
    let prefix = if bucket.is_some() {
        Path::default()
    } else {
        Path::from_url_path(url.path()).map_err(|error| EngineError::Config(error.to_string()))?
    };
    let store = remote_store(url.scheme(), name, config)?;
    let base =
        if prefix.as_ref().is_empty() { format!("{}://{name}", url.scheme()) } else { format!("{}://{name}{}", url.scheme(), url.path()) };
    Ok(Store::Remote(Arc::new(Remote::new(store, prefix, cleanups.clone())), base.into()))
}

fn retry_options(config: &StorageConfig) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: config.max_attempts.saturating_sub(1) as usize,
        retry_timeout: std::time::Duration::from_secs(60),
    }
}

fn client_options(config: &StorageConfig) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_connect_timeout(std::time::Duration::from_secs(10))
        .with_timeout(std::time::Duration::from_secs(120))
}

fn unknown_option(scheme: &str, key: &str) -> EngineError {
    EngineError::Config(format!("storage.options: {key:?} is not known for {scheme}"))
}

/// What the environment says. Its session token belongs to its keys: a store that is given its own never gets it.
fn s3_environment(config: &StorageConfig) -> AmazonS3Builder {
    let Some(own) = &config.access_key_id else { return AmazonS3Builder::from_env() };
    // What is no text is nothing of ours.
    let text = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let variables = text.filter(|(name, _)| name.starts_with("AWS_"));
    let known = variables.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().ok()?, value)));
    let others = known.filter(|(key, _)| *key != AmazonS3ConfigKey::Token);
    others.fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value)).with_access_key_id(own)
}

fn s3_builder(bucket: &str, config: &StorageConfig) -> Result<AmazonS3Builder, EngineError> {
    let mut builder = s3_environment(config).with_bucket_name(bucket);
    builder = builder.with_retry(retry_options(config)).with_client_options(client_options(config));
    builder = builder.with_virtual_hosted_style_request(config.virtual_hosted_style).with_allow_http(config.allow_http);
    let known = [
        (AmazonS3ConfigKey::Endpoint, &config.endpoint),
        (AmazonS3ConfigKey::Region, &config.region),
        (AmazonS3ConfigKey::AccessKeyId, &config.access_key_id),
        (AmazonS3ConfigKey::SecretAccessKey, &config.secret_access_key),
        (AmazonS3ConfigKey::Token, &config.session_token),
    ];
    for (key, value) in known {
        if let Some(value) = value {
            builder = builder.with_config(key, value);
        }
    }
    for (key, value) in &config.options {
        builder = builder.with_config(key.parse().map_err(|_| unknown_option("s3", key))?, value);
    }
    Ok(builder)
}

fn remote_store(scheme: &str, bucket: &str, config: &StorageConfig) -> Result<Arc<dyn ObjectStore>, EngineError> {
    let (retry, client) = (retry_options(config), client_options(config));
    let failed = |error: object_store::Error| EngineError::Store(error.to_string());
    let unknown = |key: &str| unknown_option(scheme, key);
    Ok(match scheme {
        "s3" | "s3a" => Arc::new(s3_builder(bucket, config)?.build().map_err(failed)?),
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry).with_client_options(client);
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            for (key, value) in &config.options {
                builder = builder.with_config(key.parse::<GoogleConfigKey>().map_err(|_| unknown(key))?, value);
            }
            Arc::new(builder.build().map_err(failed)?)
        }
        "az" | "azure" => {
            let mut builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry).with_client_options(client);
            builder = builder.with_allow_http(config.allow_http);
            let known = [
                (AzureConfigKey::Endpoint, &config.endpoint),
                (AzureConfigKey::AccountName, &config.access_key_id),
                (AzureConfigKey::AccessKey, &config.secret_access_key),
            ];
            for (key, value) in known {
                if let Some(value) = value {
                    builder = builder.with_config(key, value);
                }
            }
            for (key, value) in &config.options {
                builder = builder.with_config(key.parse().map_err(|_| unknown(key))?, value);
            }
            Arc::new(builder.build().map_err(failed)?)
        }
        other => return Err(EngineError::Config(format!("storage.url: scheme {other:?} is not one of file, s3, gs, az"))),
    })
}

/// The failure code of a local file error.
pub fn local_failure(error: &io::Error) -> Failure {
    let code = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Code::StorageFull,
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => Code::UploadAccessDenied,
        Some(libc::ENOTDIR | libc::EISDIR | libc::ENAMETOOLONG | libc::ELOOP | libc::EFBIG) => Code::UploadRejected,
        Some(libc::ENOENT) => Code::UploadNoBucket,
        _ if is_exhaustion(error) => Code::SystemResources,
        _ => Code::UploadFailed,
    };
    Failure::new(code, format!("store: {error}"))
}
