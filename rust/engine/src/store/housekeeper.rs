//! Housekeeping in an object store: sizes, digests, removal, and uploads that a crash left unfinished. Downloads never come here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use fetchbox_model::key::{ObjectKey, join_url};
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3ConfigKey, AwsAuthorizer};
use object_store::client::{HttpClient, HttpConnector, HttpRequestBody, ReqwestConnector};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};
use url::Url;

use crate::api::EngineError;
use crate::config::StorageConfig;
use crate::failure::chain;
use crate::store::uploads::{Listed, parse_uploads};
use crate::store::{client_options, remote_store, s3_builder};

/// Requests under way at once.
const CONCURRENCY: usize = 16;
/// What a query may hold as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// An object by bucket ("" for the configured one) and key below its prefix.
pub type Place = (String, String);

/// The configured bucket and those of job types.
pub struct Housekeeper {
    buckets: HashMap<String, Bucket>,
}

struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// URL that keys are joined to, without a slash at its end.
    base: String,
    s3: Option<S3>,
}

struct S3 {
    store: Arc<AmazonS3>,
    client: HttpClient,
    url: String,
    region: String,
}

/// An upload that was begun and neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Its bucket, "" for the configured one.
    pub bucket: String,
    /// The key that the object would get, prefix included.
    pub key: String,
    /// When it was begun, Unix ms.
    pub begun_ms: u64,
    id: String,
}

fn failed(error: impl std::error::Error + 'static) -> String {
    format!("store: {}", chain(&error))
}

impl Housekeeper {
    /// For a store that is not local.
    pub fn open(config: &StorageConfig, buckets: &[String]) -> Result<Self, EngineError> {
        let mut all = HashMap::from([(String::new(), Bucket::open(config, None)?)]);
        for name in buckets {
            all.insert(name.clone(), Bucket::open(config, Some(name))?);
        }
        Ok(Self { buckets: all })
    }

    fn bucket(&self, name: &str) -> Result<&Bucket, String> {
        self.buckets.get(name).ok_or_else(|| format!("bucket {name:?} is not configured"))
    }

    fn locate(&self, url: &str) -> Option<(&Bucket, Path)> {
        // The longest base is the one meant, should one lie in another.
        let under = |bucket: &&Bucket| url.strip_prefix(bucket.base.as_str()).is_some_and(|rest| rest.starts_with('/'));
        let bucket = self.buckets.values().filter(under).max_by_key(|bucket| bucket.base.len())?;
        let key = percent_decode_str(url.get(bucket.base.len() + 1..)?).decode_utf8().ok()?;
        Some((bucket, bucket.path(&key).ok()?))
    }

    /// The URL of an object by bucket ("" for the configured one) and key; `None` in a bucket that is not configured.
    pub fn url(&self, bucket: &str, key: &ObjectKey) -> Option<String> {
        Some(join_url(&self.buckets.get(bucket)?.base, key))
    }

    /// The size of the object behind each URL; `None` for one that is not there, or not in this store.
    pub async fn sizes(&self, urls: &[String]) -> Result<Vec<Option<u64>>, String> {
        let one = |url: &String| {
            let found = self.locate(url);
            async move {
                match found {
                    Some((bucket, path)) => head(&bucket.store, &path).await,
                    None => Ok(None),
                }
            }
        };
        stream::iter(urls.iter().map(one).collect::<Vec<_>>()).buffered(CONCURRENCY).try_collect().await
    }

    /// SHA-256 of the object behind a URL.
    pub async fn sha256(&self, url: &str) -> Result<Option<[u8; 32]>, String> {
        let Some((bucket, path)) = self.locate(url) else { return Ok(None) };
        let mut body = match bucket.store.get(&path).await {
            Ok(result) => result.into_stream(),
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut hash = Sha256::new();
        while let Some(chunk) = body.try_next().await.map_err(failed)? {
            hash.update(&chunk);
        }
        Ok(Some(hash.finalize().into()))
    }

    /// Removes objects; those that were there. They are looked for first: in a bucket with versions, removing what is not there leaves a marker.
    pub async fn remove(&self, objects: &[Place]) -> Result<Vec<Place>, String> {
        let mut by_bucket: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (bucket, key) in objects {
            by_bucket.entry(bucket).or_default().insert(key);
        }
        let mut removed = Vec::new();
        for (name, keys) in by_bucket {
            let bucket = self.bucket(name)?;
            let there = bucket.present(&keys).await?;
            let paths = there.iter().map(|key| bucket.path(key)).collect::<Result<Vec<_>, _>>()?;
            let doomed: BoxStream<'static, object_store::Result<Path>> = stream::iter(paths.into_iter().map(Ok)).boxed();
            let mut results = bucket.store.delete_stream(doomed);
            while let Some(result) = results.next().await {
                match result {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            removed.extend(there.into_iter().map(|key| (name.to_owned(), key)));
        }
        Ok(removed)
    }

    /// Unfinished uploads below the configured prefixes. Empty where the store does not speak S3: those end them by themselves, or by a rule.
    pub async fn uploads(&self) -> Result<Vec<Upload>, String> {
        let mut all = Vec::new();
        for (name, bucket) in &self.buckets {
            if let Some(s3) = &bucket.s3 {
                let listed = s3.uploads(bucket.prefix.as_ref()).await?;
                let upload = |Listed { key, id, begun_ms }: Listed| Upload { bucket: name.clone(), key, id, begun_ms };
                all.extend(listed.into_iter().map(upload));
            }
        }
        Ok(all)
    }

    /// Ends an upload; one that is over already is as good.
    pub async fn abort(&self, upload: &Upload) -> Result<(), String> {
        let Some(s3) = &self.bucket(&upload.bucket)?.s3 else { return Ok(()) };
        let path = Path::parse(&upload.key).map_err(failed)?;
        match s3.store.abort_multipart(&path, &upload.id).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

async fn head(store: &Arc<dyn ObjectStore>, path: &Path) -> Result<Option<u64>, String> {
    match store.head(path).await {
        Ok(meta) => Ok(Some(meta.size)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

impl Bucket {
    fn open(config: &StorageConfig, bucket: Option<&str>) -> Result<Self, EngineError> {
        let url = Url::parse(&config.url).map_err(|error| EngineError::Config(format!("storage.url {:?}: {error}", config.url)))?;
        let name = bucket.or(url.host_str()).unwrap_or_default();
        let path = if bucket.is_some() { "" } else { url.path() };
        let prefix = Path::from_url_path(path).map_err(|error| EngineError::Config(error.to_string()))?;
        let base = format!("{}://{name}{}", url.scheme(), path.trim_end_matches('/'));
        let (store, s3): (Arc<dyn ObjectStore>, _) = if matches!(url.scheme(), "s3" | "s3a") {
            let s3 = S3::open(name, config)?;
            (s3.store.clone(), Some(s3))
        } else {
            (remote_store(url.scheme(), name, config)?, None)
        };
        Ok(Self { store, prefix, base, s3 })
    }

    fn path(&self, key: &str) -> Result<Path, String> {
        let full = if self.prefix.as_ref().is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) };
        Path::parse(full).map_err(failed)
    }

    /// Which of the keys are there. Many of one directory are found by a listing, single ones by asking for them.
    async fn present(&self, keys: &BTreeSet<&str>) -> Result<BTreeSet<String>, String> {
        let mut by_directory: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for key in keys {
            by_directory.entry(key.rsplit_once('/').map_or("", |(directory, _)| directory)).or_default().push(key);
        }
        let look = |(directory, keys): (&str, Vec<&str>)| {
            let (directory, keys) = (directory.to_owned(), keys.into_iter().map(str::to_owned).collect::<Vec<_>>());
            async move {
                if let [key] = keys.as_slice() {
                    let there = head(&self.store, &self.path(key)?).await?.is_some();
                    return Ok::<_, String>(keys.into_iter().filter(|_| there).collect::<Vec<_>>());
                }
                let prefix = self.path(&directory)?;
                let listed: HashSet<Path> =
                    self.store.list(Some(&prefix)).map_ok(|meta| meta.location).try_collect().await.map_err(failed)?;
                let there = |key: &String| self.path(key).is_ok_and(|path| listed.contains(&path));
                Ok(keys.into_iter().filter(there).collect())
            }
        };
        let looks: Vec<_> = by_directory.into_iter().map(look).collect();
        let found: Vec<Vec<String>> = stream::iter(looks).buffer_unordered(CONCURRENCY).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }
}

impl S3 {
    fn open(bucket: &str, config: &StorageConfig) -> Result<Self, EngineError> {
        let store_error = |error: object_store::Error| EngineError::Store(error.to_string());
        let builder = s3_builder(bucket, config)?;
        let value = |key| builder.get_config_value(&key).filter(|value| !value.is_empty());
        let region = value(AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
        let url = match (value(AmazonS3ConfigKey::Endpoint), config.virtual_hosted_style) {
            // An endpoint of virtual-hosted style names the bucket itself.
            (Some(endpoint), true) => endpoint,
            (Some(endpoint), false) => format!("{}/{bucket}", endpoint.trim_end_matches('/')),
            (None, true) => format!("https://{bucket}.s3.{region}.amazonaws.com"),
            (None, false) => format!("https://s3.{region}.amazonaws.com/{bucket}"),
        };
        let client = ReqwestConnector::default().connect(&client_options(config)).map_err(store_error)?;
        Ok(Self { store: Arc::new(builder.build().map_err(store_error)?), client, url, region })
    }

    async fn uploads(&self, prefix: &str) -> Result<Vec<Listed>, String> {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let (mut all, mut markers) = (Vec::new(), None::<(String, String)>);
        loop {
            let mut query = format!("uploads=&prefix={}", utf8_percent_encode(&prefix, PLAIN));
            if let Some((key, id)) = &markers {
                let (key, id) = (utf8_percent_encode(key, PLAIN), utf8_percent_encode(id, PLAIN));
                query = format!("key-marker={key}&{query}&upload-id-marker={id}");
            }
            let page = parse_uploads(&self.get(&query).await?);
            all.extend(page.uploads);
            if page.next.is_none() || page.next == markers {
                return Ok(all);
            }
            markers = page.next;
        }
    }

    async fn get(&self, query: &str) -> Result<String, String> {
        let mut request = http::Request::get(format!("{}?{query}", self.url)).body(HttpRequestBody::empty()).map_err(failed)?;
        let credential = self.store.credentials().get_credential().await.map_err(failed)?;
        AwsAuthorizer::new(&credential, "s3", &self.region).try_authorize(&mut request, None).map_err(failed)?;
        let response = self.client.execute(request).await.map_err(failed)?;
        let status = response.status();
        let body = response.into_body().bytes().await.map_err(failed)?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() { Ok(text) } else { Err(format!("store: listing unfinished uploads answered {status}")) }
    }
}
