//! What one commit is going to change, collected before it is written. Every key is held once; the last change wins.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use fetchbox_model::batch::BatchBuilder;
use prost::Message;

use crate::db::{Batch, Space};
use crate::dlq::{self, Letter, Letters, Shelf};
use crate::frame::Entry;
use crate::job::{JobId, JobRecord};
use crate::keys::{self, Listing};
use crate::outcome;
use crate::record::{self, Part};

/// Larger records are split: a reader takes a record as a whole.
const RECORD_BYTES: usize = 1 << 20;
/// The hub's own messages of a group share batches of about this size.
const OWN_BATCH_BYTES: usize = 256 << 10;

/// A job that the group has looked at.
#[derive(Debug)]
pub struct Touched {
    /// Its record as it will be.
    pub record: JobRecord,
    /// Whether it has to be written.
    pub changed: bool,
    /// Where it is listed now; `None` for a new job.
    pub listed: Option<Listing>,
    /// Outcomes to add.
    pub outcomes: Vec<Bytes>,
    /// Digests of stored resources, once they were needed.
    pub digests: Option<BTreeMap<u32, Bytes>>,
}

/// Appends to one partition.
#[derive(Debug, Default)]
struct Tail {
    /// Base offset and batches of each record to write.
    records: Vec<(u64, Vec<Part>)>,
    bytes: usize,
    /// The hub's own messages behind all of that: the base offset of the first, and the batch that they make.
    own: Option<(u64, BatchBuilder)>,
}

impl Tail {
    fn add(&mut self, base: u64, part: Part) {
        if self.records.is_empty() || self.bytes >= RECORD_BYTES {
            self.records.push((base, Vec::new()));
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
    pub jobs: HashMap<JobId, Touched>,
    /// Entries for an external broker.
    pub outbox: Vec<Entry>,
    /// Jobs cancelled.
    pub cancelled: Vec<String>,
    /// Dead letters of jobs; few commits have any.
    letters: HashMap<JobId, Vec<Letter>>,
    overlay: HashMap<(Space, Bytes), Option<Bytes>>,
    tails: BTreeMap<(u8, u32), Tail>,
}

/// What becomes visible when the commit is durable.
#[derive(Debug, Default)]
pub struct Visible {
    /// Jobs with their records, for the cache.
    pub jobs: Vec<(JobId, JobRecord)>,
    /// Jobs that are active from now on, or no more.
    pub active: Vec<(u64, JobId, bool)>,
    /// Topics with new records.
    pub topics: Vec<u8>,
}

impl Stage {
    /// An empty group.
    pub fn new(now_ms: u64, sequence: u64) -> Self {
        Self { now_ms, sequence, ..Self::default() }
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

    /// Adds one message of the hub's own behind everything in its partition, at `base`. Those of a group are packed together: a batch for each would
    /// cost more than all the rest of a small job.
    pub fn append_message(&mut self, topic: u8, partition: u32, base: u64, message: &impl Message) {
        let tail = self.tails.entry((topic, partition)).or_default();
        let (_, builder) = tail.own.get_or_insert_with(|| (base, BatchBuilder::default()));
        let before = builder.raw_len();
        builder.push(message);
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

    /// Adds dead letters of a job.
    pub fn dead(&mut self, id: &JobId, letters: Vec<Letter>) {
        if !letters.is_empty() {
            self.letters.entry(*id).or_default().extend(letters);
        }
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.overlay.is_empty() && self.tails.is_empty() && self.outbox.is_empty() && self.jobs.values().all(|job| !job.changed)
    }

    /// The batch to commit, and what to show afterwards.
    pub fn finish(mut self) -> (Batch, Visible) {
        let mut visible = Visible::default();
        let mut batch = Batch::default();
        visible.jobs.reserve(self.jobs.len());
        for (id, job) in std::mem::take(&mut self.jobs) {
            if job.changed {
                list(&id, &job, &mut batch, &mut visible);
                if let Some(packed) = outcome::pack(&job.outcomes) {
                    batch.put(Space::Outcomes, outcome::key(&id, self.sequence), packed);
                }
                batch.put(Space::Jobs, Bytes::copy_from_slice(&id), job.record.encode_to_vec());
            }
            visible.jobs.push((id, job.record));
        }
        for (id, list) in std::mem::take(&mut self.letters) {
            let letters = Letters::new(self.now_ms, list);
            self.put(Space::Index, dlq::key(Shelf::Dead, &(self.sequence, id)), prost::Message::encode_to_vec(&letters));
        }
        for ((topic, partition), mut tail) in self.tails {
            tail.close();
            for (base, parts) in tail.records {
                batch.put(Space::Log, record::key(topic, partition, base), record::encode(self.sequence, self.now_ms, &parts));
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

/// Moves a job to the listing that it belongs to now. No other change of the group touches these keys.
fn list(id: &JobId, job: &Touched, batch: &mut Batch, visible: &mut Visible) {
    let created = job.record.facts.created_ms;
    let now = keys::state_listing(&job.record);
    if job.listed.as_ref() == Some(&now) {
        return;
    }
    match &job.listed {
        Some(before) => batch.delete(Space::Index, before.key(created, id)),
        None => {
            for listing in keys::fixed_listings(&job.record) {
                batch.put(Space::Index, listing.key(created, id), Bytes::new());
            }
        }
    }
    if job.listed == Some(Listing::Active) || now == Listing::Active {
        visible.active.push((created, *id, now == Listing::Active));
    }
    batch.put(Space::Index, now.key(created, id), Bytes::new());
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
        stage.append_message(4, 0, 10, &log("a"));
        stage.append_message(4, 0, 11, &log("b"));
        stage.append(4, 0, 12, part(3, 10));
        stage.append_message(4, 0, 15, &log("c"));
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
        let job = Touched { record: JobRecord::default(), changed: false, listed: None, outcomes: vec![], digests: None };
        stage.jobs.insert([0; 16], job);
        assert!(stage.is_empty());
    }
}
