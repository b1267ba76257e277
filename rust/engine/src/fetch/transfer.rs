//! A body on its way into the store: counted, hashed, sniffed, and held in as little memory as its size allows.
//!
//! Small bodies stay in memory and are hashed and written when they are whole. Larger files go out in chunks from a writer thread that hashes them too, while the next chunk
//! comes in; larger remote objects are multipart uploads. Memory beyond the small size is reserved from the engine's budget, once per transfer, so
//! that no two transfers can wait for each other.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fetchbox_failpoint::fail_point;
use fetchbox_model::failure::Code;
use fetchbox_model::key::ObjectKey;
use fetchbox_model::reuse::Remembered;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::failure::Failure;
use crate::net::spare;
use crate::pair::Pairs;
use crate::resume::Partial;
use crate::reuse::How;
use crate::store::adopt::Adopted;
use crate::store::durable::Durable;
use crate::store::local::{Draft, LocalStore};
use crate::store::remote::{Multipart, ObjectFacts};
use crate::store::{Store, local_failure};
use crate::verify::{Hasher, Hint, SNIFF_BYTES, sniff};

/// Bodies up to this size are hashed and written where they arrive: handing them to another thread costs more than the write.
pub const SMALL: usize = 64 << 10;
/// A chunk for the writer thread.
const CHUNK: usize = 256 << 10;
/// Pieces below this size are copied together; each would hold a whole read buffer and a handle of its own.
const TINY: usize = 1 << 10;
/// Multipart uploads have at most 10,000 parts.
const MAX_PARTS: u64 = 9_500;
/// Parts in flight when there is memory for them.
const WINDOW: usize = 2;
/// The budget's unit.
pub const MEMORY_UNIT: u64 = 1 << 10;

/// Sizes that decide how a body is stored.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Remote bodies from here on are multipart uploads.
    pub multipart_threshold: u64,
    /// Bytes of a part.
    pub part_size: u64,
    /// Largest body.
    pub max_bytes: u64,
}

/// The engine's memory budget.
#[derive(Clone)]
pub struct Memory {
    units: Arc<Semaphore>,
    total: u32,
}

impl Memory {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes / MEMORY_UNIT).unwrap_or(u32::MAX).clamp(1024, 1 << 28);
        Self { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Bytes reserved.
    pub fn used(&self) -> u64 {
        (self.total as u64).saturating_sub(self.units.available_permits() as u64) * MEMORY_UNIT
    }

    fn units_of(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(MEMORY_UNIT)).unwrap_or(u32::MAX).min(self.total)
    }
}

struct Writer {
    draft: Draft,
    hasher: Hasher,
}

enum Sink {
    Memory,
    Busy(JoinHandle<(Box<Writer>, std::io::Result<()>)>),
    Multipart(Multipart, usize),
}

/// What became of a body that was stored.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Its digest.
    pub sha256: [u8; 32],
    /// Its size.
    pub size: u64,
    /// The object's URL.
    pub url: String,
    /// The store's ETag.
    pub etag: String,
    /// The type its first bytes speak of.
    pub sniffed: Cow<'static, str>,
    /// Set when an object of before took its place.
    pub reused: Option<How>,
}

/// A whole body in its place, or on its last step there.
pub struct Kept {
    /// What is known of it.
    pub stored: Stored,
    /// Set while its file is neither on disk for certain nor visible.
    pub unsynced: Option<Unsynced>,
}

/// A whole file that wants to be made durable and visible.
pub struct Unsynced {
    durable: Arc<Durable>,
    store: Arc<LocalStore>,
    draft: Draft,
}

impl Unsynced {
    /// See [`Durable::publish`].
    pub async fn publish(self, then: impl FnOnce(std::io::Result<()>) + Send + 'static) {
        self.durable.publish(self.store, self.draft, Box::new(then)).await;
    }
}

/// A body on its way.
pub struct Transfer {
    store: Store,
    key: ObjectKey,
    facts: ObjectFacts,
    hint: Option<Hint>,
    hasher: Hasher,
    /// Whether what came is hashed already. A small body is hashed when it is whole.
    hashed: bool,
    head: Bytes,
    chunks: Vec<Bytes>,
    tiny: BytesMut,
    pending: usize,
    sink: Sink,
    part_size: u64,
    permits: Option<OwnedSemaphorePermit>,
    /// What is stored already of this URL: the same body is not stored again.
    pub known: Option<Arc<Remembered>>,
    /// Whether it may be reused: then what tells its file from another is noted.
    pub reusable: bool,
    /// What a resumption needs to know.
    pub partial: Partial,
    /// Time spent waiting for the store.
    pub store_time: Duration,
}

impl Transfer {
    /// A transfer with nothing received yet.
    pub fn new(store: Store, key: ObjectKey, hint: Option<Hint>) -> Self {
        Self {
            store,
            key,
            facts: ObjectFacts::default(),
            hasher: Hasher::new(hint.clone()),
            hint,
            hashed: false,
            head: Bytes::new(),
            chunks: Vec::new(),
            tiny: BytesMut::new(),
            pending: 0,
            sink: Sink::Memory,
            part_size: 0,
            permits: None,
            known: None,
            reusable: false,
            partial: Partial::default(),
            store_time: Duration::ZERO,
        }
    }

    /// Forgets what was received; an unfinished upload is aborted.
    pub fn restart(&mut self) {
        let fresh = Self::new(self.store.clone(), self.key.clone(), self.hint.take());
        let (known, reusable) = (self.known.take(), self.reusable);
        *self = Self { known, reusable, ..fresh };
    }

    /// The object that is remembered takes this one's place, if it is still what it was.
    pub async fn adopt(&mut self, known: &Remembered, how: How) -> Option<Kept> {
        adopt(&self.store, &self.key, known, how).await
    }

    /// The first bytes of what was received.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Whether the store keeps facts beside an object's bytes.
    pub fn keeps_facts(&self) -> bool {
        matches!(self.store, Store::Remote(..))
    }

    /// A response with a body from the start begins.
    pub fn begin(&mut self, partial: Partial, facts: ObjectFacts) {
        self.partial = partial;
        self.facts = facts;
    }

    /// Takes in the next piece.
    pub fn push(&mut self, data: Bytes) {
        self.partial.received += data.len() as u64;
        self.pending += data.len();
        if self.head.len() < SNIFF_BYTES {
            self.head = if self.head.is_empty() && data.len() >= SNIFF_BYTES {
                data.slice(..SNIFF_BYTES)
            } else {
                [&self.head, &data[..data.len().min(SNIFF_BYTES - self.head.len())]].concat().into()
            };
        }
        // A file's later chunks are hashed by its writer.
        if self.hashed && !matches!(self.sink, Sink::Busy(_)) {
            self.hasher.update(&data);
        }
        if data.len() < TINY {
            self.tiny.extend_from_slice(&data);
            if self.tiny.len() >= CHUNK {
                self.seal();
            }
        } else {
            self.seal();
            self.chunks.push(data);
        }
        if !self.hashed && self.pending > SMALL {
            self.seal();
            self.chunks.iter().for_each(|chunk| self.hasher.update(chunk));
            self.hashed = true;
        }
    }

    fn seal(&mut self) {
        if !self.tiny.is_empty() {
            self.chunks.push(self.tiny.split().freeze());
        }
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.seal();
        self.pending = 0;
        std::mem::take(&mut self.chunks)
    }

    /// Whether [`Transfer::flush`] has something to do.
    pub fn wants_flush(&self) -> bool {
        self.pending > SMALL && (self.permits.is_none() || self.pending as u64 >= self.limit())
    }

    fn limit(&self) -> u64 {
        match self.store {
            Store::Local(..) => CHUNK as u64,
            Store::Remote(..) => self.part_size,
        }
    }

    /// Reserves memory once, then sends full chunks or parts on their way. Waits while the store is behind.
    pub async fn flush(&mut self, memory: &Memory, sizes: Sizes) -> Result<(), Failure> {
        let started = Instant::now();
        if self.permits.is_none() {
            self.reserve(memory, sizes).await?;
        }
        if self.pending as u64 >= self.limit() {
            match self.store.clone() {
                Store::Local(files, _) => self.flush_file(&files).await?,
                Store::Remote(remote, _) => {
                    if matches!(self.sink, Sink::Memory) {
                        let upload = remote.multipart(&self.key, &self.facts.clone().or_sniffed(sniff(&self.head))).await?;
                        let extra = memory.units_of(self.part_size.saturating_mul(WINDOW as u64));
                        // With memory for more parts the next one comes in while they go out; without, each waits for the one before.
                        let window = match memory.units.clone().try_acquire_many_owned(extra) {
                            Ok(more) => {
                                if let Some(permits) = &mut self.permits {
                                    permits.merge(more);
                                }
                                WINDOW
                            }
                            Err(_) => 0,
                        };
                        self.sink = Sink::Multipart(upload, window);
                    }
                    self.flush_parts().await?;
                }
            }
        }
        self.store_time += started.elapsed();
        Ok(())
    }

    async fn reserve(&mut self, memory: &Memory, sizes: Sizes) -> Result<(), Failure> {
        let total = self.partial.total;
        let bytes = match self.store {
            Store::Local(..) => 2 * CHUNK as u64,
            Store::Remote(..) => {
                let parts = total.unwrap_or(sizes.max_bytes).min(sizes.max_bytes).div_ceil(MAX_PARTS);
                // Whole parts of one size; an unknown size gets parts that the largest body would need, within reason.
                self.part_size =
                    sizes.part_size.max(sizes.multipart_threshold).max(if total.is_some() { parts } else { parts.min(64 << 20) });
                total.map_or(self.part_size, |total| total.min(self.part_size))
            }
        };
        let permits = memory.units.clone().acquire_many_owned(memory.units_of(bytes)).await;
        self.permits = Some(permits.map_err(|_| Failure::new(Code::SystemInternal, "the memory budget is closed"))?);
        Ok(())
    }

    async fn flush_file(&mut self, files: &LocalStore) -> Result<(), Failure> {
        let writer = match std::mem::replace(&mut self.sink, Sink::Memory) {
            Sink::Memory => {
                let draft = files.create(&self.key).map_err(|error| local_failure(&error))?;
                let mut writer = Box::new(Writer { draft, hasher: std::mem::replace(&mut self.hasher, Hasher::new(None)) });
                // What is pending now is hashed.
                let chunks = self.take();
                self.sink = Sink::Busy(tokio::task::spawn_blocking(move || {
                    let result = writer.draft.write(&chunks);
                    (writer, result)
                }));
                return Ok(());
            }
            Sink::Busy(job) => finished(job).await?,
            Sink::Multipart(..) => return Err(Failure::new(Code::SystemInternal, "the transfer lost its file")),
        };
        let chunks = self.take();
        self.sink = Sink::Busy(spawn_write(writer, chunks));
        Ok(())
    }

    async fn flush_parts(&mut self) -> Result<(), Failure> {
        self.seal();
        while self.pending as u64 >= self.part_size {
            let part = split(&mut self.chunks, self.part_size as usize);
            self.pending -= self.part_size as usize;
            if let Sink::Multipart(upload, window) = &mut self.sink {
                upload.part(part, *window).await?;
            }
        }
        Ok(())
    }

    /// Checks the whole body and makes the object visible, all but the last step where that is left to the syncing thread.
    pub async fn finish(mut self, expected_size: Option<u64>, pairs: &Pairs) -> Result<(Kept, Duration), Failure> {
        let started = Instant::now();
        let size = self.partial.received;
        if let Some(expected) = expected_size.filter(|expected| *expected != size) {
            return Err(Failure::new(Code::DownloadSizeMismatch, format!("expected {expected} bytes, got {size}")));
        }
        let sniffed = sniff(&self.head);
        let url = self.store.url_of(&self.key);
        let mut chunks = self.take();
        self.head = Bytes::new();
        let mut unsynced = None;
        fail_point!("engine::store::before");
        let (sha256, etag) = match (std::mem::replace(&mut self.sink, Sink::Memory), &self.store) {
            (Sink::Memory, Store::Remote(remote, _)) => {
                let sha256 = sum(self.hasher, self.hashed, &chunks, pairs).await?;
                if let Some(kept) = adopt_same(&self.store, &self.key, self.known.as_deref(), &sha256).await {
                    return Ok((kept, self.store_time + started.elapsed()));
                }
                let facts = self.facts.clone().or_sniffed(sniffed);
                (sha256, remote.put(&self.key, chunks, &facts).await?)
            }
            (Sink::Multipart(mut upload, window), _) => {
                let sha256 = sum(self.hasher, self.hashed, &chunks, pairs).await?;
                if !chunks.is_empty() {
                    upload.part(chunks, window).await?;
                }
                (sha256, upload.complete().await?)
            }
            (sink, Store::Local(files, durable)) => {
                let failed = |error: std::io::Error| local_failure(&error);
                let (written, sha256) = match sink {
                    Sink::Busy(job) => {
                        let writer = finished(job).await?;
                        let writer = finished(spawn_write(writer, std::mem::take(&mut chunks))).await?;
                        (Some(writer.draft), writer.hasher.finish()?)
                    }
                    _ => (None, sum(self.hasher, self.hashed, &chunks, pairs).await?),
                };
                if let Some(kept) = adopt_same(&self.store, &self.key, self.known.as_deref(), &sha256).await {
                    return Ok((kept, self.store_time + started.elapsed()));
                }
                let draft = match written {
                    Some(draft) => draft,
                    None => {
                        let mut draft = files.create(&self.key).map_err(failed)?;
                        draft.write(&chunks).map_err(failed)?;
                        chunks.drain(..).for_each(spare::give_back);
                        draft
                    }
                };
                let etag = if self.reusable { draft.etag() } else { String::new() };
                unsynced = publish(files, durable.as_ref(), draft).map_err(failed)?;
                (sha256, etag)
            }
            (Sink::Busy(_), Store::Remote(..)) => return Err(Failure::new(Code::SystemInternal, "the transfer lost its store")),
        };
        if unsynced.is_none() {
            fail_point!("engine::store::after");
        }
        let stored = Stored { sha256, size, url, etag, sniffed: Cow::Borrowed(sniffed), reused: None };
        Ok((Kept { stored, unsynced }, self.store_time + started.elapsed()))
    }
}

/// The digest of a body of which these pieces are held, hashed already or not.
async fn sum(mut hasher: Hasher, hashed: bool, chunks: &[Bytes], pairs: &Pairs) -> Result<[u8; 32], (Code, String)> {
    match chunks {
        [whole] if !hashed => hasher.finish_known(pairs.sha256(whole.clone()).await, whole),
        _ => {
            if !hashed {
                chunks.iter().for_each(|chunk| hasher.update(chunk));
            }
            hasher.finish()
        }
    }
}

async fn adopt(store: &Store, key: &ObjectKey, known: &Remembered, how: How) -> Option<Kept> {
    let sha256 = known.sha256[..].try_into().ok()?;
    let Adopted { etag, draft } = store.adopt(known, key).await?;
    let unsynced = match (draft, store) {
        (Some(draft), Store::Local(files, durable)) => publish(files, durable.as_ref(), draft).ok()?,
        _ => None,
    };
    let sniffed = Cow::Owned(known.sniffed_type.clone());
    let stored = Stored { sha256, size: known.size, url: store.url_of(key), etag, sniffed, reused: Some(how) };
    Some(Kept { stored, unsynced })
}

/// The same for a body that has come, if its digest is that of the remembered one.
async fn adopt_same(store: &Store, key: &ObjectKey, known: Option<&Remembered>, sha256: &[u8; 32]) -> Option<Kept> {
    let known = known.filter(|known| known.sha256[..] == sha256[..])?;
    adopt(store, key, known, How::SameBody).await
}

/// Makes a whole file visible, or leaves that to the syncing thread.
fn publish(files: &Arc<LocalStore>, durable: Option<&Arc<Durable>>, mut draft: Draft) -> std::io::Result<Option<Unsynced>> {
    match durable {
        Some(durable) => Ok(Some(Unsynced { durable: durable.clone(), store: files.clone(), draft })),
        None => files.publish(&mut draft).map(|()| None),
    }
}

fn spawn_write(mut writer: Box<Writer>, chunks: Vec<Bytes>) -> JoinHandle<(Box<Writer>, std::io::Result<()>)> {
    tokio::task::spawn_blocking(move || {
        for chunk in &chunks {
            writer.hasher.update(chunk);
        }
        let result = writer.draft.write(&chunks);
        (writer, result)
    })
}

async fn finished(job: JoinHandle<(Box<Writer>, std::io::Result<()>)>) -> Result<Box<Writer>, Failure> {
    let (writer, result) = job.await.map_err(|error| Failure::new(Code::SystemInternal, error.to_string()))?;
    result.map_err(|error| local_failure(&error))?;
    Ok(writer)
}

/// Takes exactly `size` bytes off the front; there are at least as many.
fn split(chunks: &mut Vec<Bytes>, size: usize) -> Vec<Bytes> {
    let mut left = size;
    let mut count = 0;
    while let Some(chunk) = chunks.get_mut(count) {
        if chunk.len() > left {
            let front = chunk.split_to(left);
            if !front.is_empty() {
                chunks.insert(count, front);
                count += 1;
            }
            break;
        }
        left -= chunk.len();
        count += 1;
    }
    chunks.drain(..count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_exactly_their_size() {
        for sizes in [vec![10], vec![3, 3, 4], vec![5, 5], vec![1; 10], vec![4, 20]] {
            let mut chunks: Vec<Bytes> = sizes.iter().map(|size| Bytes::from(vec![7; *size])).collect();
            let total: usize = sizes.iter().sum();
            let part = split(&mut chunks, 5);
            assert_eq!(part.iter().map(Bytes::len).sum::<usize>(), 5, "{sizes:?}");
            assert_eq!(chunks.iter().map(Bytes::len).sum::<usize>(), total - 5, "{sizes:?}");
        }
    }
}
