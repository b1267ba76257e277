//! Objects in an object store: one PUT, or a multipart upload with bounded parts in flight that is aborted unless it completes.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fetchbox_model::failure::Code;
use fetchbox_model::key::ObjectKey;
use fetchbox_model::reuse::Remembered;
use object_store::path::Path;
use object_store::{
    Attribute, AttributeValue, Attributes, MultipartUpload, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload,
};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::failure::{Failure, chain};

/// How long parts under way may take before their upload is aborted.
const LAST_PARTS: Duration = Duration::from_secs(2);

/// What is kept on an object besides its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectFacts {
    /// Content-Type.
    pub content_type: String,
    /// Content-Encoding, as the origin sent it.
    pub content_encoding: String,
    /// User metadata, cleaned.
    pub metadata: Vec<(String, String)>,
}

impl ObjectFacts {
    /// With the sniffed type where the origin declared none.
    pub fn or_sniffed(mut self, sniffed: &str) -> Self {
        if self.content_type.is_empty() {
            self.content_type = sniffed.to_owned();
        }
        self
    }
}

/// Counts clean-ups that go on after their task is gone.
#[derive(Clone)]
pub struct Cleanups {
    handle: Handle,
    running: Arc<AtomicUsize>,
}

impl Cleanups {
    /// Runs them on `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle, running: Arc::default() }
    }

    /// Clean-ups not done yet.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    fn abort(&self, mut upload: Box<dyn MultipartUpload>, mut parts: JoinSet<object_store::Result<()>>) {
        let running = self.running.clone();
        running.fetch_add(1, Ordering::AcqRel);
        self.handle.spawn(async move {
            // A part that the store has in hand when its upload is aborted may be kept for good.
            let _ = tokio::time::timeout(LAST_PARTS, async { while parts.join_next().await.is_some() {} }).await;
            parts.shutdown().await;
            // The collector aborts what this could not.
            let _ = upload.abort().await;
            running.fetch_sub(1, Ordering::AcqRel);
        });
    }
}

/// An object store.
pub struct Remote {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    cleanups: Cleanups,
    /// Whether the store keeps attributes; some refuse them.
    attributes: AtomicBool,
}

impl Remote {
    /// Objects go under `prefix`.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path, cleanups: Cleanups) -> Self {
        Self { store, prefix, cleanups, attributes: AtomicBool::new(true) }
    }

    fn path(&self, key: &ObjectKey) -> Result<Path, Failure> {
        let full = if self.prefix.as_ref().is_empty() { key.as_str().to_owned() } else { format!("{}/{}", self.prefix, key.as_str()) };
        Path::parse(full).map_err(|error| Failure::new(Code::UploadRejected, error.to_string()))
    }

    fn attributes(&self, facts: &ObjectFacts) -> Attributes {
        let mut attributes = Attributes::new();
        if self.attributes.load(Ordering::Relaxed) {
            for (attribute, value) in [(Attribute::ContentType, &facts.content_type), (Attribute::ContentEncoding, &facts.content_encoding)]
            {
                if !value.is_empty() {
                    attributes.insert(attribute, AttributeValue::from(value.clone()));
                }
            }
            for (name, value) in &facts.metadata {
                attributes.insert(Attribute::Metadata(Cow::Owned(name.clone())), AttributeValue::from(value.clone()));
            }
        }
        attributes
    }

    /// Whether to try again without attributes.
    fn refuses_attributes(&self, error: &object_store::Error) -> bool {
        let refused = matches!(error, object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. });
        refused && self.attributes.swap(false, Ordering::Relaxed)
    }

    /// Stores a whole body; returns the store's ETag.
    pub async fn put(&self, key: &ObjectKey, chunks: Vec<Bytes>, facts: &ObjectFacts) -> Result<String, Failure> {
        let path = self.path(key)?;
        let payload: PutPayload = chunks.into_iter().collect();
        loop {
            let options = PutOptions { attributes: self.attributes(facts), ..PutOptions::default() };
            match self.store.put_opts(&path, payload.clone(), options).await {
                Ok(result) => return Ok(result.e_tag.unwrap_or_default()),
                Err(error) if self.refuses_attributes(&error) => {}
                Err(error) => return Err(classify(&error)),
            }
        }
    }

    /// The object of `source` under `key` as well, unless it is not there any more as it is remembered; the store's ETag of it.
    pub async fn adopt(&self, source: &ObjectKey, known: &Remembered, key: &ObjectKey) -> Option<String> {
        // Every trouble means the same: there is nothing to adopt.
        let (from, to) = (self.path(source).ok()?, self.path(key).ok()?);
        let is = self.store.head(&from).await.ok()?;
        let differs = |etag: &String| !known.storage_etag.is_empty() && *etag != known.storage_etag;
        if is.size != known.size || is.e_tag.as_ref().is_some_and(differs) {
            return None;
        }
        if from == to {
            return Some(is.e_tag.unwrap_or_default());
        }
        self.store.copy(&from, &to).await.ok()?;
        // What was copied is what was looked at before, as far as its size tells; and the copy's own ETag is wanted for the next time.
        let copy = self.store.head(&to).await.ok()?;
        (copy.size == known.size).then(|| copy.e_tag.unwrap_or_default())
    }

    /// Begins a multipart upload.
    pub async fn multipart(&self, key: &ObjectKey, facts: &ObjectFacts) -> Result<Multipart, Failure> {
        let path = self.path(key)?;
        loop {
            let options = PutMultipartOptions { attributes: self.attributes(facts), ..PutMultipartOptions::default() };
            match self.store.put_multipart_opts(&path, options).await {
                Ok(upload) => return Ok(Multipart { upload: Some(upload), parts: JoinSet::new(), cleanups: self.cleanups.clone() }),
                Err(error) if self.refuses_attributes(&error) => {}
                Err(error) => return Err(classify(&error)),
            }
        }
    }
}

/// A multipart upload under way. Dropped before it is complete it is aborted.
pub struct Multipart {
    upload: Option<Box<dyn MultipartUpload>>,
    parts: JoinSet<object_store::Result<()>>,
    cleanups: Cleanups,
}

impl Multipart {
    /// Uploads a part; returns when at most `window` parts are in flight.
    pub async fn part(&mut self, chunks: Vec<Bytes>, window: usize) -> Result<(), Failure> {
        if let Some(upload) = &mut self.upload {
            let payload: PutPayload = chunks.into_iter().collect();
            self.parts.spawn(upload.put_part(payload));
        }
        self.wait(window).await
    }

    async fn wait(&mut self, window: usize) -> Result<(), Failure> {
        while self.parts.len() > window {
            match self.parts.join_next().await {
                Some(Ok(Ok(()))) | None => {}
                Some(Ok(Err(error))) => return Err(classify_upload(&error)),
                Some(Err(error)) => return Err(Failure::new(Code::SystemInternal, error.to_string())),
            }
        }
        Ok(())
    }

    /// Completes the upload; returns the store's ETag.
    pub async fn complete(mut self) -> Result<String, Failure> {
        self.wait(0).await?;
        let Some(upload) = &mut self.upload else { return Ok(String::new()) };
        let result = upload.complete().await.map_err(|error| classify_complete(&error))?;
        self.upload = None;
        Ok(result.e_tag.unwrap_or_default())
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            self.cleanups.abort(upload, std::mem::take(&mut self.parts));
        }
    }
}

/// The failure code of a store's error.
fn classify(error: &object_store::Error) -> Failure {
    use object_store::Error as E;
    let message = chain(error);
    let code = match error {
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => Code::UploadAccessDenied,
        E::NotFound { .. } => Code::UploadNoBucket,
        E::InvalidPath { .. } | E::NotSupported { .. } | E::NotImplemented { .. } | E::UnknownConfigurationKey { .. } => {
            Code::UploadRejected
        }
        // What a multipart's or a conditional write's clash looks like: another attempt finds out.
        E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => Code::UploadFailed,
        _ => by_text(&message),
    };
    Failure::new(code, format!("store: {message}"))
}

/// The same once an upload has begun. Its bucket was there then: what is missing is the upload, because it was completed and the answer got lost, or
/// because somebody else ended it. Another attempt begins a new one.
fn classify_upload(error: &object_store::Error) -> Failure {
    match error {
        object_store::Error::NotFound { .. } => Failure::new(Code::UploadFailed, format!("store: the upload is gone: {}", chain(error))),
        other => classify(other),
    }
}

/// The same for the completion. Who may put parts may complete them: a refusal is how some stores speak of an upload that is gone, most likely by a
/// completion whose answer was lost. Where it is meant, the next attempt's first request is refused as well.
fn classify_complete(error: &object_store::Error) -> Failure {
    match classify_upload(error) {
        failure if failure.code == Code::UploadAccessDenied => {
            Failure::new(Code::UploadFailed, format!("{}, after its parts", failure.message))
        }
        failure => failure,
    }
}

/// Errors without a kind of their own carry the response in their text only.
fn by_text(message: &str) -> Code {
    let has = |needles: &[&str]| needles.iter().any(|needle| message.contains(needle));
    if has(&["SlowDown", "TooManyRequests", "429 Too Many", "503 Service Unavailable", "ServerBusy"]) {
        Code::UploadThrottled
    } else if has(&["AccessDenied", "403 Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch"]) {
        Code::UploadAccessDenied
    } else if has(&["NoSuchBucket"]) {
        Code::UploadNoBucket
    } else if has(&["QuotaExceeded", "InsufficientStorage", "507 "]) {
        Code::StorageFull
    } else if has(&["timed out", "timeout", "Timeout"]) {
        Code::UploadTimeout
    } else if has(&["Connection refused", "connection refused", "error trying to connect", "dns error", "connect error"]) {
        Code::StorageUnavailable
    } else if has(&["400 Bad Request", "405 Method", "413 ", "EntityTooLarge", "InvalidArgument"]) {
        Code::UploadRejected
    } else {
        Code::UploadFailed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// | text of the store's answer | code |
    #[test]
    fn table_of_store_errors_without_a_kind() {
        let table = [
            ("Server returned non-2xx status code: 503 Service Unavailable: SlowDown", Code::UploadThrottled),
            ("<Code>AccessDenied</Code>", Code::UploadAccessDenied),
            ("<Code>NoSuchBucket</Code>", Code::UploadNoBucket),
            ("error sending request: operation timed out", Code::UploadTimeout),
            ("tcp connect error: Connection refused (os error 111)", Code::StorageUnavailable),
            ("500 Internal Server Error", Code::UploadFailed),
            ("400 Bad Request: InvalidArgument", Code::UploadRejected),
        ];
        for (text, code) in table {
            assert_eq!(by_text(text), code, "{text}");
        }
    }
}
