//! The one thread that writes: it drains its queue, makes one durable commit of everything in it, then answers everybody.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use fetchbox_failpoint::fail_point;
use fetchbox_model::stream::Topic;
use hashlink::LruCache;
use prost::Message;
use tokio::sync::mpsc;

pub use crate::command::Command;
use crate::config::{Broker, Durability};
use crate::core::{Core, WORKERS, read_failed};
use crate::db::Space;
use crate::error::HubError;
use crate::frame::Entry;
use crate::job::{Counts, JobId, JobRecord};
use crate::keys;
use crate::limit::Limits;
use crate::listing::{self, Recent};
use crate::pace::Pace;
use crate::record::Part;
use crate::reply::Reply;
use crate::reserve::Owners;
use crate::stage::{Stage, Touched};
use crate::tell::{self, Said};
use crate::usage::Usage;

/// A group takes at most this many commands and, once above, no more bytes.
const GROUP_COMMANDS: usize = 2048;
const GROUP_BYTES: usize = 8 << 20;
/// Decoded jobs kept: those that are being worked on.
const CACHED_JOBS: usize = 20_000;

/// Jobs of which is remembered that nothing is settled.
const UNTOUCHED_JOBS: usize = 100_000;

type Answer = Box<dyn FnOnce(Result<(), HubError>) + Send>;

/// The writer's own state: ahead of what readers see by the group in work.
pub struct Writer {
    pub(crate) core: Arc<Core>,
    pub(crate) stage: Stage,
    pub(crate) owners: Owners,
    pub(crate) limits: Limits,
    pub(crate) usage: Usage,
    /// Jobs whose objects are being removed: not to be replayed.
    pub(crate) collecting: HashSet<JobId>,
    pub(crate) totals: Counts,
    pub(crate) manifest_next: u64,
    pub(crate) new_manifest: bool,
    pub(crate) outbox_next: u64,
    pub(crate) outbox_done: u64,
    pub(crate) outbox_bytes: u64,
    next: Vec<Vec<u64>>,
    appended: bool,
    pub(crate) recent: Recent,
    cache: LruCache<JobId, Box<JobRecord>>,
    sequence: u64,
    side: File,
    /// Where messages are encoded.
    scratch: Vec<u8>,
    /// The last job whose partitions were asked for, and what they follow from.
    hashed: (String, u64),
    done: Vec<Answer>,
    stopping: bool,
}

/// What the writer starts from.
#[allow(missing_docs)]
pub struct Start {
    pub sequence: u64,
    pub totals: Counts,
    pub usage: Usage,
    pub manifest_next: u64,
    pub outbox: (u64, u64, u64),
    pub recent: Recent,
    pub side: File,
}

impl Writer {
    /// A writer that goes on where the database ends.
    pub fn new(core: Arc<Core>, start: Start) -> Self {
        let offsets = |topic: Topic| (0..core.partitions(topic)).map(|partition| core.next.get(topic, partition)).collect();
        let next = std::iter::once(Vec::new()).chain(Topic::ALL.into_iter().map(offsets)).collect();
        let (outbox_next, outbox_done, outbox_bytes) = start.outbox;
        Self {
            stage: Stage::default(),
            owners: Owners::default(),
            limits: Limits::default(),
            usage: start.usage,
            collecting: HashSet::new(),
            totals: start.totals,
            manifest_next: start.manifest_next,
            new_manifest: false,
            // From 1, so that a reader that has seen nothing can say 0.
            outbox_next: outbox_next.max(1),
            outbox_done,
            outbox_bytes,
            next,
            appended: false,
            recent: start.recent,
            cache: LruCache::new(CACHED_JOBS),
            sequence: start.sequence,
            side: start.side,
            scratch: Vec::new(),
            hashed: <_>::default(),
            done: Vec::new(),
            stopping: false,
            core,
        }
    }

    /// Works until the queue is closed. After a failed commit it only refuses.
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        // Groups resemble each other.
        let mut last = 0;
        let mut pace = Pace::new(Instant::now());
        while let Some(first) = commands.blocking_recv() {
            let mut gather = pace.gather(Instant::now());
            while let Some(rest) = gather.as_mut().and_then(|gather| gather.rest(Instant::now(), commands.len() + 1)) {
                // Nobody has to wake this thread for what comes meanwhile.
                #[expect(clippy::disallowed_methods, reason = "there is no event to wait for: that is the point")]
                std::thread::sleep(rest);
            }
            self.stage = Stage::new(self.core.clock.now_ms(), self.sequence + 1, last);
            let totals = self.totals;
            self.apply(first);
            let mut taken = 1;
            while taken < GROUP_COMMANDS && self.stage.bytes < GROUP_BYTES {
                match commands.try_recv() {
                    Ok(command) => self.apply(command),
                    Err(_) => break,
                }
                taken += 1;
            }
            pace.begin(Instant::now(), taken, gather);
            self.core.rest.set(pace.is_steady());
            if self.stopping {
                self.note_rest();
            }
            if self.totals != totals {
                self.stage.put(Space::Meta, keys::TOTALS, self.totals.encode_to_vec());
            }
            self.note_usage();
            last = self.stage.jobs.len();
            let result = self.commit();
            for done in self.done.drain(..) {
                done(result.clone());
            }
            if self.stopping {
                return;
            }
        }
    }

    /// With no worker left at the end, the next hub waits for nobody. Not worth a failure where the disk is full.
    fn note_rest(&mut self) {
        let at_work = self.core.groups.lock().get(&(Topic::Tasks as u8, WORKERS.to_owned())).is_some_and(|group| !group.is_empty());
        if !at_work && self.core.check_space().is_ok() {
            let sequence = self.stage.sequence;
            self.stage.put(Space::Meta, keys::RESTED, sequence.to_be_bytes().to_vec());
        }
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Reserve { request, connection, reply } => self.reserve(request, connection, reply),
            Command::Release { request, reply } => {
                let result = self.release(&request);
                self.answer(reply, result);
            }
            Command::Accept { request, reply } => {
                let result = self.accept(*request);
                self.answer(reply, result);
            }
            Command::Append { request, reply } => {
                let result = self.append_request(request);
                self.answer(reply, result);
            }
            Command::Cancel { request, reply } => {
                let result = self.cancel(&request);
                self.answer(reply, result);
            }
            Command::Disconnected { connection } => self.disconnected(connection),
            Command::Rebuild { request, outcomes, reply } => {
                let result = self.rebuild(*request, outcomes);
                self.answer(reply, result);
            }
            Command::Reread { reply } => {
                self.stage.put(Space::Meta, keys::REREAD, Bytes::from_static(b"1"));
                self.answer(reply, Ok(()));
            }
            Command::Restate { statuses, reply } => {
                let result = self.restate(statuses);
                self.answer(reply, result);
            }
            Command::OutboxDone { up_to, reply } => {
                let result = self.outbox_published(up_to);
                self.answer(reply, result);
            }
            Command::Feed { request, reply } => {
                let result = self.feed(request);
                self.answer(reply, result);
            }
            Command::ManifestsWritten { below, reply } => {
                let result = self.manifests_written(below);
                self.answer(reply, result);
            }
            Command::Move { tier, base, parts, reply } => {
                let result = self.move_retries(tier, base, parts);
                self.answer(reply, result);
            }
            Command::Trim { topic, partition, bases, bytes, start, reply } => {
                self.trim(topic, partition, bases, bytes, start);
                self.answer(reply, Ok(()));
            }
            Command::Replay { chunk, reply } => {
                let result = self.replay(chunk);
                self.answer(reply, result);
            }
            Command::Purge { shelf, chunk, reply } => {
                let result = self.purge(shelf, chunk);
                self.answer(reply, result);
            }
            Command::Stop => self.stopping = true,
            Command::PutBack { id, seen_ms, tasks, reply } => {
                let result = self.put_back(&id, seen_ms, tasks);
                self.answer(reply, result);
            }
            Command::CollectBegin { jobs, reply } => {
                let result = self.collect_begin(&jobs);
                self.answer(reply, result);
            }
            Command::CollectEnd { jobs, done, reply } => {
                self.collect_end(&jobs, done);
                self.answer(reply, Ok(()));
            }
            Command::Abandon { jobs, reply } => {
                let result = self.abandon(&jobs);
                self.answer(reply, result);
            }
            Command::Forget { jobs, reply } => {
                self.forget_intents(&jobs);
                self.answer(reply, Ok(()));
            }
            Command::Recount { id, reply } => {
                let result = self.recount(&id);
                self.answer(reply, result);
            }
            Command::EndDirect { id, seen_ms, reply } => {
                let result = self.end_idle(&id, seen_ms);
                self.answer(reply, result);
            }
            Command::ForgetUrls { pack, reply } => {
                let result = self.forget_urls(&pack);
                self.answer(reply, result);
            }
            Command::Prune { jobs, reply } => {
                let result = self.prune(&jobs);
                self.answer(reply, result);
            }
        }
    }

    /// Answers when the group is durable, also a refusal: it may speak of something in the same group.
    pub(crate) fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, HubError>) {
        if let Err(HubError::Fatal(reason)) = &result {
            self.core.die(reason.clone());
        }
        self.done.push(Box::new(move |committed| reply.send(committed.and(result))));
    }

    fn commit(&mut self) -> Result<(), HubError> {
        if let Some(dead) = self.core.dead() {
            return Err(dead);
        }
        if self.stage.is_empty() {
            for (id, job) in std::mem::take(&mut self.stage.jobs) {
                self.cache.insert(id, job.record);
            }
            return Ok(());
        }
        let mut stage = std::mem::take(&mut self.stage);
        let (cancelled, outbox) = (std::mem::take(&mut stage.cancelled), std::mem::take(&mut stage.outbox));
        if !outbox.is_empty() {
            self.stage_outbox(&mut stage, outbox);
        }
        if std::mem::take(&mut self.appended) {
            stage.put(Space::Meta, keys::NEXT, keys::pack_offsets(self.next.iter().flatten()));
        }
        let sequence = stage.sequence;
        if let Err(error) = self.unlist(&mut stage) {
            self.core.die(error.to_string());
            return Err(error);
        }
        let (batch, visible) = stage.finish(&mut self.recent, self.core.clock.elapsed());
        fail_point!("hub::commit::before");
        let begun = Instant::now();
        let written = self.core.db.commit(batch).map_err(|error| error.0).and_then(|()| self.note(sequence));
        if let Err(reason) = written {
            let reason = format!("commit {sequence} failed, nothing is acknowledged any more: {reason}");
            self.core.die(reason.clone());
            return Err(HubError::Fatal(reason));
        }
        self.core.metrics.committed(begun.elapsed());
        fail_point!("hub::commit::after");
        self.sequence = sequence;
        self.show(visible, &cancelled);
        Ok(())
    }

    /// Takes jobs out of the packs that list them.
    fn unlist(&self, stage: &mut Stage) -> Result<(), HubError> {
        let unlisted = stage.take_unlisted();
        if unlisted.is_empty() {
            return Ok(());
        }
        let view = self.core.db.view();
        for ((listing, slot), gone) in unlisted {
            for (key, mut places) in listing::of_slot(&view, &listing.prefix(), slot).map_err(read_failed)? {
                let before = places.len();
                places.retain(|(_, id)| !gone.contains(id));
                if places.is_empty() {
                    stage.delete(Space::Index, key);
                } else if places.len() < before {
                    stage.put(Space::Index, key, listing::pack(&places));
                }
            }
        }
        Ok(())
    }

    /// Notes the sequence beside the database: if the database ever comes back with less, it has lost what was acknowledged.
    fn note(&self, sequence: u64) -> Result<(), String> {
        if self.core.config.durability == Durability::Sync {
            self.side.write_all_at(&sequence.to_be_bytes(), 0).map_err(|error| format!("cannot write the sequence file: {error}"))?;
        }
        Ok(())
    }

    fn show(&mut self, visible: crate::stage::Visible, cancelled: &[String]) {
        let core = Arc::clone(&self.core);
        // Before the offsets, so that whoever sees them finds the records.
        core.tail.add(visible.tasks);
        for topic in visible.topics.iter().filter_map(|&id| Topic::from_id(id)) {
            for (partition, &offset) in (0..).zip(&self.next[topic as usize]) {
                core.next.set(topic, partition, offset);
            }
            core.wake(topic);
        }
        if !visible.active.is_empty() {
            let mut active = core.active.write();
            for (place, is_active) in visible.active {
                if is_active {
                    active.insert(place)
                } else {
                    active.remove(&place)
                };
            }
        }
        {
            let mut untouched = core.untouched.lock();
            for (id, record, new) in visible.jobs {
                if !record.bitmap.is_empty() || !record.generations.is_empty() {
                    untouched.remove(&id);
                } else if new && record.counts.total > 0 && untouched.len() < UNTOUCHED_JOBS {
                    untouched.insert(id);
                }
                // A settled job is hardly ever looked at again.
                if record.finished_ms == 0 {
                    self.cache.insert(id, record);
                }
            }
        }
        if std::mem::take(&mut self.new_manifest) {
            core.manifests.notify();
        }
        *core.metrics.totals.lock() = self.totals;
        if core.outbox_bytes.swap(self.outbox_bytes, Ordering::Relaxed) < self.outbox_bytes {
            core.outbox_wake.send_modify(|n| *n += 1);
        }
        for job in cancelled {
            // Nobody may be connected.
            let _ = core.cancelled.send(job.clone());
        }
    }

    /// The job as the group sees it; `None` when there is none.
    pub(crate) fn job(&mut self, id: &JobId) -> Result<Option<&mut Touched>, HubError> {
        if !self.stage.jobs.contains_key(id) {
            let record = match self.cache.remove(id) {
                Some(record) => record,
                None => match self.core.db.get(Space::Jobs, id).map_err(read_failed)? {
                    Some(raw) => JobRecord::decode(raw)
                        .map(Box::new)
                        .map_err(|error| HubError::Fatal(format!("the record of job {} is damaged: {error}", crate::job::id_text(id))))?,
                    None => return Ok(None),
                },
            };
            let listed = Some(keys::state_listing(&record));
            self.stage.jobs.insert(*id, Touched { record, changed: false, listed, outcomes: Vec::new(), objects: None });
        }
        Ok(self.stage.jobs.get_mut(id))
    }

    /// Drops a job from the cache, because it goes.
    pub(crate) fn forget(&mut self, id: &JobId) {
        self.cache.remove(id);
        self.stage.jobs.remove(id);
        self.core.untouched.lock().remove(id);
    }

    /// A key as the group sees it.
    pub(crate) fn get(&self, space: Space, key: &Bytes) -> Result<Option<Bytes>, HubError> {
        match self.stage.staged(space, key) {
            Some(staged) => Ok(staged),
            None => self.core.db.get(space, key).map_err(read_failed),
        }
    }

    /// The next offset of a partition, with what the group appended.
    pub(crate) fn next_offset(&self, topic: Topic, partition: u32) -> u64 {
        self.next[topic as usize].get(partition as usize).copied().unwrap_or(0)
    }

    /// Takes so many offsets of a partition; the first of them.
    fn take_offsets(&mut self, topic: Topic, partition: u32, count: u32) -> Option<u64> {
        let next = self.next[topic as usize].get_mut(partition as usize)?;
        let base = *next;
        *next += u64::from(count);
        self.appended = true;
        Some(base)
    }

    /// The next offset of a partition is this one, if it was lower.
    pub(crate) fn skip_to(&mut self, topic: Topic, partition: u32, offset: u64) {
        if let Some(next) = self.next[topic as usize].get_mut(partition as usize) {
            *next = (*next).max(offset);
        }
    }

    /// Appends a batch to the embedded log; its base offset.
    pub(crate) fn append(&mut self, topic: Topic, partition: u32, part: Part) -> u64 {
        let Some(base) = self.take_offsets(topic, partition, part.count) else { return 0 };
        self.stage.append(topic as u8, partition, base, part);
        base
    }

    /// Publishes a batch: into the embedded log, or through the outbox to where the streams live. The base offset, 0 when it is not known yet.
    pub(crate) fn publish(&mut self, topic: Topic, partition: u32, count: u32, bytes: Bytes) -> u64 {
        match self.core.config.broker {
            Broker::Embedded => self.append(topic, partition, Part { count, target: None, bytes }),
            Broker::External => {
                self.stage.bytes += bytes.len();
                self.stage.outbox.push(Entry { topic: topic as u32, partition, count, bytes, target_partition: None });
                // At least as far as it was read back.
                self.next_offset(topic, partition)
            }
        }
    }

    /// Publishes the message that `tell` encodes to the partition that its job's messages go to.
    pub(crate) fn publish_one(&mut self, topic: Topic, job_id: &str, tell: impl FnOnce(&mut Vec<u8>)) -> (u32, u64) {
        let partition = self.partition_of(job_id, self.core.partitions(topic));
        let mut message = std::mem::take(&mut self.scratch);
        message.clear();
        tell(&mut message);
        let base = if self.core.config.broker == Broker::Embedded {
            self.take_offsets(topic, partition, 1).inspect(|base| self.stage.append_message(topic as u8, partition, *base, &message))
        } else {
            let mut builder = fetchbox_model::batch::BatchBuilder::default();
            builder.push_encoded(&message);
            builder.finish().map(|batch| self.publish(topic, partition, batch.count, batch.bytes))
        };
        self.scratch = message;
        (partition, base.unwrap_or(0))
    }

    /// The partition of a job's messages. A job is asked for twice or three times in a row.
    fn partition_of(&mut self, job_id: &str, partitions: u32) -> u32 {
        if self.hashed.0 != job_id {
            self.hashed.0.clear();
            self.hashed.0.push_str(job_id);
            self.hashed.1 = fetchbox_model::manifest::head_of(job_id);
        }
        fetchbox_model::manifest::partition_at(self.hashed.1, partitions)
    }

    /// Publishes a job's status.
    pub(crate) fn publish_status(&mut self, topic: Topic, job: &JobRecord) {
        let now_ms = self.stage.now_ms;
        self.publish_one(topic, &job.facts.job_id, |out| tell::status(out, job, now_ms));
    }

    /// Writes a line to a job's log; partition and offset.
    pub(crate) fn publish_log(&mut self, job: &JobRecord, message: &str, fields: &[(&str, Said<'_>)]) -> (u32, u64) {
        let now_ms = self.stage.now_ms;
        self.publish_one(Topic::Logs, &job.facts.job_id, |out| tell::log(out, job, message, fields, now_ms))
    }
}
