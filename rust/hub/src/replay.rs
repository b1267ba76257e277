//! What the writer does with dead letters: back to work, or away.
//!
//! A chunk names entries; whatever of it still lies on the shelf of the dead is moved in one commit with the resources' bits, generations and counts
//! and with the new tasks. An entry can be taken from the shelf once, so however many replays name it, and wherever they are killed, it counts once.

use std::collections::BTreeMap;

use bytes::Bytes;
use fetchbox_failpoint::fail_point;
use fetchbox_model::batch::BatchBuilder;
use fetchbox_model::message::{JobState, ResourceOutcome};
use fetchbox_model::stream::Topic;
use prost::Message;

use crate::config::Broker;
use crate::core::read_failed;
use crate::db::Space;
use crate::dlq::{self, Letter, Letters, Place, Shelf, Which};
use crate::error::HubError;
use crate::job::{JobId, TaskSpan};
use crate::outcome::{self, Object};
use crate::tell::Said;
use crate::writer::Writer;

/// A dead letter on its way back to `jobs.tasks`.
#[derive(Debug, Clone)]
pub struct Revival {
    /// Where its entry lies.
    pub sequence: u64,
    /// Which one it is.
    pub which: Which,
    /// Partition of `jobs.tasks`.
    pub partition: u32,
    /// The encoded task, of the next generation.
    pub task: Bytes,
}

/// What a chunk came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Entries moved.
    pub count: u64,
    /// Entries of cancelled jobs, left where they are.
    pub refused: u64,
    /// Entries of jobs whose objects are being collected: to be asked for again in a moment.
    pub busy: u64,
}

impl Writer {
    /// Puts dead letters back to work, a commit for all of them; what is no dead letter any more is passed over.
    pub(crate) fn replay(&mut self, chunk: Vec<(JobId, Vec<Revival>)>) -> Result<Done, HubError> {
        self.core.check_space()?;
        if self.core.config.broker == Broker::External && self.outbox_bytes >= self.core.config.outbox_max_bytes {
            return Err(HubError::refused("BROKER_UNAVAILABLE", "the broker is away and the outbox is full").after_ms(5000));
        }
        fail_point!("hub::replay::before");
        let mut done = Done::default();
        for (id, revivals) in chunk {
            self.revive(&id, revivals, &mut done)?;
        }
        fail_point!("hub::replay::after");
        Ok(done)
    }

    fn revive(&mut self, id: &JobId, revivals: Vec<Revival>, done: &mut Done) -> Result<(), HubError> {
        let now_ms = self.stage.now_ms;
        if self.collecting.contains(id) {
            // What the collector takes for garbage now would be the object of the next generation then.
            done.busy += revivals.len() as u64;
            return Ok(());
        }
        match self.job(id)? {
            Some(job) if job.record.state() == JobState::Cancelled => {
                done.refused += revivals.len() as u64;
                return Ok(());
            }
            Some(_) => {}
            None => return Ok(()),
        }
        let mut tasks: BTreeMap<u32, BatchBuilder> = BTreeMap::new();
        let mut revived = 0u64;
        // Entries of one commit stand together, so the shelves are read and written once for each.
        for of_commit in revivals.chunk_by(|a, b| a.sequence == b.sequence) {
            let place = (of_commit[0].sequence, *id);
            let Some(mut dead) = self.letters(Shelf::Dead, &place)? else { continue };
            let mut moved = Vec::new();
            let Some(job) = self.job(id)? else { return Ok(()) };
            for revival in of_commit {
                let Some(letter) = dead.take(revival.which) else { continue };
                if !job.record.revive(letter.index, letter.generation) {
                    dead.insert(letter);
                    continue;
                }
                tasks.entry(revival.partition).or_default().push_encoded(&revival.task);
                moved.push(Letter { replayed_ms: now_ms, ..letter });
            }
            if moved.is_empty() {
                continue;
            }
            job.record.updated_ms = now_ms;
            job.changed = true;
            revived += moved.len() as u64;
            let mut replayed = self.letters(Shelf::Replayed, &place)?.unwrap_or_else(|| Letters::new(dead.time_ms, Vec::new()));
            moved.into_iter().for_each(|letter| replayed.insert(letter));
            self.shelve(Shelf::Dead, &place, &dead);
            self.shelve(Shelf::Replayed, &place, &replayed);
        }
        if revived == 0 {
            return Ok(());
        }
        self.totals.failed -= revived;
        self.totals.replayed += revived;
        let mut spans = Vec::with_capacity(tasks.len());
        for (partition, builder) in tasks {
            if let Some(batch) = builder.finish() {
                let offset = self.publish(Topic::Tasks, partition, batch.count, batch.bytes);
                spans.push(TaskSpan { partition, offset, count: batch.count });
            }
        }
        let core = std::sync::Arc::clone(&self.core);
        let Some(job) = self.job(id)? else { return Ok(()) };
        // Behind the earlier ones, so that whoever looks for a task finds the newest last. What the stream has forgotten nobody will find.
        job.record.spans.retain(|span| span.offset + u64::from(span.count) > core.start.get(Topic::Tasks, span.partition));
        job.record.spans.extend(spans);
        let record = job.record.clone();
        self.publish_log(&record, "replayed", &[("resources", Said::Number(revived))]);
        self.publish_status(Topic::Status, &record);
        done.count += revived;
        Ok(())
    }

    /// Takes entries off a shelf for good; how many were there. The jobs' counts stay as they are.
    pub(crate) fn purge(&mut self, shelf: Shelf, chunk: Vec<(Place, Vec<Which>)>) -> Result<u64, HubError> {
        fail_point!("hub::purge::before");
        let mut count = 0;
        for (place, entries) in chunk {
            let Some(mut letters) = self.letters(shelf, &place)? else { continue };
            let gone = entries.into_iter().filter(|which| letters.take(*which).is_some()).count() as u64;
            if gone == 0 {
                continue;
            }
            self.shelve(shelf, &place, &letters);
            count += gone;
            if shelf == Shelf::Dead
                && let Some(job) = self.job(&place.1)?
            {
                job.record.purged += gone;
                job.changed = true;
            }
        }
        fail_point!("hub::purge::after");
        Ok(count)
    }

    /// An attempt from before a replay stored its object after all, over that of the newer generation: no count changes, and the ledger describes
    /// what is there.
    pub(crate) fn describe_late(&mut self, id: &JobId, raw: Bytes) -> Result<(), HubError> {
        let Ok(mut late) = ResourceOutcome::decode(raw) else { return Ok(()) };
        let core = std::sync::Arc::clone(&self.core);
        let Some(job) = self.job(id)? else { return Ok(()) };
        let mut current = outcome::newest(&core.db.view(), id).map_err(read_failed)?.remove(&late.resource_index);
        let staged = job.outcomes.iter().filter_map(|raw| ResourceOutcome::decode(raw.clone()).ok());
        current = staged.filter(|staged| staged.resource_index == late.resource_index).last().or(current);
        let overwrote = |current: &ResourceOutcome| {
            outcome::has_object(current.state())
                && current.storage_url == late.storage_url
                && current.sha256 != late.sha256
                && current.finished_at_ms <= late.finished_at_ms
        };
        let Some(current) = current.filter(overwrote) else { return Ok(()) };
        // As in `describe_again`: what was counted stays what it was counted as.
        (late.generation, late.state) = (current.generation, current.state);
        if let Some(objects) = &mut job.objects {
            objects.insert(late.resource_index, Object { state: current.state(), sha256: late.sha256.clone() });
        }
        let raw = Bytes::from(late.encode_to_vec());
        job.outcomes.push(raw.clone());
        job.changed = true;
        self.overwritten(id, &raw)
    }

    /// The entries of a place as the group sees them.
    fn letters(&self, shelf: Shelf, place: &Place) -> Result<Option<Letters>, HubError> {
        let raw = self.get(Space::Index, &dlq::key(shelf, place))?;
        raw.map(Letters::read).transpose().map_err(read_failed)
    }

    fn shelve(&mut self, shelf: Shelf, place: &Place, letters: &Letters) {
        let key = dlq::key(shelf, place);
        if letters.list.is_empty() {
            self.stage.delete(Space::Index, key);
        } else {
            self.stage.put(Space::Index, key, letters.encode_to_vec());
        }
    }
}
