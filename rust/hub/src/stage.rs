//! What one commit is going to change, collected before it is written. Every key is held once; the last change wins.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use fetchbox_model::batch::BatchBuilder;
use fetchbox_model::stream::Topic;
use prost::Message;
use smallvec::SmallVec;

use crate::db::{Batch, Space};
use crate::dlq::{self, Letter, Letters, Shelf};
use crate::frame::Entry;
use crate::job::{JobHash, JobId, JobRecord};
use crate::keys::{self, Listing};
use crate::listing::{self, Place, Recent};
use crate::manifests::{Blob, PACK_BYTES, Pack};
use crate::outcome::{self, Object};
use crate::record::{self, Part};
use crate::tail::Fresh;

/// Larger records are split: a reader takes a record as a whole.
const RECORD_BYTES: usize = 1 << 20;
/// The hub's own messages of a group share batches of about this size.
const OWN_BATCH_BYTES: usize = 256 << 10;

/// A job that the group has looked at.
#[derive(Debug)]
pub struct Touched {
    /// Its record as it will be.
    pub record: Box<JobRecord>,
    /// Whether it has to be written.
    pub changed: bool,
    /// Where it is listed now; `None` for a new job.
    pub listed: Option<Listing>,
    /// Outcomes to add.
    pub outcomes: Vec<Bytes>,
    /// The objects of its resources, once they were needed.
    pub objects: Option<BTreeMap<u32, Object>>,
}

/// Batches of a record. Most have one, of a small job: an allocation for each would cost as much as the rest of this.
type Parts = SmallVec<[Part; 1]>;

/// Appends to one partition.
#[derive(Debug, Default)]
struct Appended {
    /// Base offset and batches of each record to write.
    records: SmallVec<[(u64, Parts); 1]>,
    bytes: usize,
    /// The hub's own messages behind all of that: the base offset of the first, and the batch that they make.
    own: Option<(u64, BatchBuilder)>,
}

impl Appended {
    fn add(&mut self, base: u64, part: Part) {
        if self.records.is_empty() || self.bytes >= RECORD_BYTES {
            self.records.push((base, Parts::new()));
            self.bytes = 0;
        }
        self.bytes += part.bytes.len();
        if let Some((_, parts)) = self.records.last_mut() {
            parts.push(part);
        }
    }

    /// Ends the batch of the hub's own messages.
    fn close(&mut self) {
        if let Some((base, builder)) = self.own.take()
            && let Some(batch) = builder.finish()
        {
            self.add(base, Part { count: batch.count, target: None, bytes: batch.bytes });
        }
    }
}

/// One group's changes.
#[derive(Debug, Default)]
pub struct Stage {
    /// Wall clock of the group, ms.
    pub now_ms: u64,
    /// Sequence it will be committed with.
    pub sequence: u64,
    /// Payload bytes collected so far.
    pub bytes: usize,
    /// Jobs looked at or changed.
    pub jobs: HashMap<JobId, Touched, JobHash>,
    /// Entries for an external broker.
    pub outbox: Vec<Entry>,
    /// Jobs cancelled.
    pub cancelled: Vec<String>,
    /// Names of URLs to remember; most commits have none.
    pub remembered: Vec<Bytes>,
    /// Dead letters of jobs; few commits have any.
    letters: HashMap<JobId, Vec<Letter>>,
    overlay: HashMap<(Space, Bytes), Option<Bytes>>,
    tails: BTreeMap<(u8, u32), Appended>,
    /// Manifests by the sequence of their pack, with the bytes in it.
    manifests: BTreeMap<u64, (Pack, usize)>,
    /// Jobs to add to listings, by listing and slot.
    listed: HashMap<(Listing, u64), Vec<Place>>,
    /// Jobs to take out of listings, likewise.
    unlisted: HashMap<(Listing, u64), HashSet<JobId>>,
}

/// What becomes visible when the commit is durable.
#[derive(Debug, Default)]
pub struct Visible {
    /// Jobs with their records, for the cache, and whether they are new.
    pub jobs: Vec<(JobId, Box<JobRecord>, bool)>,
    /// Jobs that are active from now on, or no more.
    pub active: Vec<(Place, bool)>,
    /// Topics with new records.
    pub topics: Vec<u8>,
    /// New records of `jobs.tasks` by partition.
    pub tasks: Vec<(u32, Fresh)>,
}

impl Stage {
    /// An empty group; `jobs` will perhaps be looked at.
    pub fn new(now_ms: u64, sequence: u64, jobs: usize) -> Self {
        Self { now_ms, sequence, jobs: HashMap::with_capacity_and_hasher(jobs, JobHash::default()), ..Self::default() }
    }

    /// Sets a key.
    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let value = value.into();
        self.bytes += value.len();
        self.overlay.insert((space, key.into()), Some(value));
    }

    /// Deletes a key.
    pub fn delete(&mut self, space: Space, key: impl Into<Bytes>) {
        self.overlay.insert((space, key.into()), None);
    }

    /// What the group did to a key: `None` nothing, `Some(None)` deleted.
    pub fn staged(&self, space: Space, key: &Bytes) -> Option<Option<Bytes>> {
        self.overlay.get(&(space, key.clone())).cloned()
    }

    /// Adds a batch behind everything in its partition, at `base`.
    pub fn append(&mut self, topic: u8, partition: u32, base: u64, part: Part) {
        let tail = self.tails.entry((topic, partition)).or_default();
        self.bytes += part.bytes.len();
        tail.close();
        tail.add(base, part);
    }

    /// Adds one encoded message of the hub's own behind everything in its partition, at `base`. Those of a group are packed together: a batch for each would
    /// cost more than all the rest of a small job.
    pub fn append_message(&mut self, topic: u8, partition: u32, base: u64, message: &[u8]) {
        let tail = self.tails.entry((topic, partition)).or_default();
        let (_, builder) = tail.own.get_or_insert_with(|| (base, BatchBuilder::default()));
        let before = builder.raw_len();
        builder.push_encoded(message);
        self.bytes += builder.raw_len() - before;
        if builder.raw_len() >= OWN_BATCH_BYTES {
            tail.close();
        }
    }

    /// Batches of a partition that are not in the database yet, with their offsets; the hub's own messages (never tasks) are not among them.
    pub fn appended(&self, topic: u8, partition: u32) -> Vec<(u64, Part)> {
        let mut found = Vec::new();
        for (base, parts) in self.tails.get(&(topic, partition)).map_or(&[][..], |tail| &tail.records) {
            let mut offset = *base;
            for part in parts {
                found.push((offset, part.clone()));
                offset += u64::from(part.count);
            }
        }
        found
    }

    /// Adds a manifest; what its job's record says of it. `next` is the sequence of the next pack.
    pub fn add_manifest(&mut self, next: &mut u64, blob: Blob) -> u64 {
        let size = blob.body.len();
        self.bytes += size;
        match self.manifests.values_mut().next_back().filter(|pack| pack.1 + size <= PACK_BYTES) {
            Some((pack, bytes)) => {
                pack.blobs.push(blob);
                *bytes += size;
            }
            None => {
                self.manifests.insert(*next, (Pack { blobs: vec![blob] }, size));
                *next += 1;
            }
        }
        *next
    }

    /// Adds dead letters of a job.
    pub fn dead(&mut self, id: &JobId, letters: Vec<Letter>) {
        if !letters.is_empty() {
            self.letters.entry(*id).or_default().extend(letters);
        }
    }

    /// Adds a job to a packed listing.
    pub fn enlist(&mut self, listing: Listing, (created, id): Place) {
        self.listed.entry((listing, listing::slot(created))).or_default().push((created, id));
    }

    /// Takes a job out of a packed listing.
    pub fn unlist(&mut self, listing: Listing, (created, id): Place) {
        self.unlisted.entry((listing, listing::slot(created))).or_default().insert(id);
    }

    /// Which slots of which listings lose which jobs.
    pub fn take_unlisted(&mut self) -> HashMap<(Listing, u64), HashSet<JobId>> {
        let mut unlisted = std::mem::take(&mut self.unlisted);
        for (id, job) in &self.jobs {
            if job.changed
                && let Some(before @ Listing::Settled(_)) = &job.listed
                && *before != keys::state_listing(&job.record)
            {
                let slot = listing::slot(job.record.facts.created_ms);
                unlisted.entry((before.clone(), slot)).or_default().insert(*id);
            }
        }
        unlisted
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.overlay.is_empty()
            && self.listed.is_empty()
            && self.unlisted.is_empty()
            && self.tails.is_empty()
            && self.outbox.is_empty()
            && self.jobs.values().all(|job| !job.changed)
    }

    /// The batch to commit, and what to show afterwards. Everything that is to be unlisted has been taken.
    pub fn finish(mut self, recent: &mut Recent, now: Duration) -> (Batch, Visible) {
        let mut visible = Visible::default();
        let mut batch = Batch::default();
        let mut begun = Vec::new();
        crate::reuse::stage_packs(&mut self);
        visible.jobs.reserve(self.jobs.len());
        // In the order of their keys: neighbours in the memtable are found in what is in the processor's cache already.
        let mut jobs: Vec<_> = std::mem::take(&mut self.jobs).into_iter().collect();
        jobs.sort_unstable_by_key(|(id, _)| *id);
        for (id, mut job) in jobs {
            if job.changed {
                let place = (job.record.facts.created_ms, id);
                let is = keys::state_listing(&job.record);
                if job.listed.as_ref() != Some(&is) {
                    if job.listed.is_none() {
                        for listing in keys::fixed_listings(&job.record) {
                            self.enlist(listing, place);
                        }
                    }
                    if job.listed == Some(Listing::Active) {
                        recent.end(&place, &mut batch);
                        visible.active.push((place, false));
                    }
                    match is {
                        Listing::Active => {
                            begun.push(place);
                            visible.active.push((place, true));
                        }
                        listing => self.enlist(listing, place),
                    }
                }
                if let [only] = &job.outcomes[..]
                    && job.record.outcome.is_empty()
                    && job.record.generations.is_empty()
                    && outcome::fits_record(job.record.counts.total, only)
                {
                    job.record.outcome = only.clone();
                    job.outcomes.clear();
                }
                if let Some(packed) = outcome::pack(&job.outcomes) {
                    batch.put(Space::Outcomes, outcome::key(&id, self.sequence), packed);
                }
                batch.put(Space::Jobs, Bytes::copy_from_slice(&id), job.record.encode_to_vec());
            }
            visible.jobs.push((id, job.record, job.listed.is_none()));
        }
        recent.retire(now, &mut batch);
        recent.begin(self.sequence, now, begun, &mut batch);
        for ((listing, slot), places) in std::mem::take(&mut self.listed) {
            batch.put(Space::Index, listing::key(&listing.prefix(), slot, self.sequence), listing::pack(&places));
        }
        for (sequence, (pack, _)) in std::mem::take(&mut self.manifests) {
            batch.put(Space::Manifests, sequence.to_be_bytes().to_vec(), pack.pack());
        }
        for (id, list) in std::mem::take(&mut self.letters) {
            let letters = Letters::new(self.now_ms, list);
            self.put(Space::Index, dlq::key(Shelf::Dead, &(self.sequence, id)), prost::Message::encode_to_vec(&letters));
        }
        for ((topic, partition), mut tail) in self.tails {
            tail.close();
            for (base, parts) in tail.records {
                let value = record::encode(self.sequence, self.now_ms, &parts);
                if topic == Topic::Tasks as u8 {
                    let end = base + parts.iter().map(|part| u64::from(part.count)).sum::<u64>();
                    visible.tasks.push((partition, Fresh { base, end, value: value.clone() }));
                }
                batch.put(Space::Log, record::key(topic, partition, base), value);
            }
            if visible.topics.last() != Some(&topic) {
                visible.topics.push(topic);
            }
        }
        for ((space, key), value) in self.overlay {
            match value {
                Some(value) => batch.put(space, key, value),
                None => batch.delete(space, key),
            }
        }
        batch.put(Space::Meta, keys::SEQUENCE, self.sequence.to_be_bytes().to_vec());
        (batch, visible)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(count: u32, size: usize) -> Part {
        Part { count, target: None, bytes: vec![0; size].into() }
    }

    #[test]
    fn appends_of_a_group_share_a_record_until_it_is_large() {
        let mut stage = Stage::default();
        stage.append(1, 0, 10, part(5, 10));
        stage.append(1, 0, 15, part(1, RECORD_BYTES));
        stage.append(1, 0, 16, part(2, 1));
        let bases: Vec<u64> = stage.tails[&(1, 0)].records.iter().map(|(base, _)| *base).collect();
        assert_eq!(bases, [10, 16]);
        let offsets: Vec<u64> = stage.appended(1, 0).into_iter().map(|(offset, _)| offset).collect();
        assert_eq!(offsets, [10, 15, 16]);
        assert!(!stage.is_empty() && stage.appended(1, 1).is_empty());
    }

    #[test]
    fn messages_of_the_hub_share_a_batch_until_another_comes_behind_them() {
        let mut stage = Stage::default();
        let log = |id: &str| fetchbox_model::message::JobLog { job_id: id.into(), ..Default::default() };
        stage.append_message(4, 0, 10, &log("a").encode_to_vec());
        stage.append_message(4, 0, 11, &log("b").encode_to_vec());
        stage.append(4, 0, 12, part(3, 10));
        stage.append_message(4, 0, 15, &log("c").encode_to_vec());
        let tail = stage.tails.get_mut(&(4, 0)).unwrap();
        tail.close();
        let (base, parts) = &tail.records[0];
        assert_eq!((*base, parts.iter().map(|part| part.count).collect::<Vec<_>>()), (10, vec![2, 3, 1]));
        let read: Vec<fetchbox_model::message::JobLog> =
            fetchbox_model::batch::decode(&parts[0].bytes).unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(read, [log("a"), log("b")]);
    }

    #[test]
    fn a_job_looked_at_is_no_change() {
        let mut stage = Stage::default();
        let job = Touched { record: Box::default(), changed: false, listed: None, outcomes: vec![], objects: None };
        stage.jobs.insert([0; 16], job);
        assert!(stage.is_empty());
    }
}
