//! What the background tasks ask of the writer: retries that are due, trimmed records, pruned jobs, the outbox.

use std::sync::Arc;

use bytes::Bytes;
use fetchbox_failpoint::fail_point;
use fetchbox_model::stream::Topic;
use prost::Message;

use crate::core::read_failed;
use crate::db::Space;
use crate::dlq::{self, Shelf};
use crate::error::HubError;
use crate::frame::{Entry, OutboxItem};
use crate::job::{Counts, JobId};
use crate::keys::{self, OUTBOX_TOPIC};
use crate::outcome;
use crate::record::{self, Part};
use crate::stage::Stage;
use crate::writer::Writer;

/// The group under which the mover keeps its place in `jobs.retry`.
pub const MOVER: &str = "mover";

impl Writer {
    /// Moves the batches of a due record, unless that was done already.
    pub(crate) fn move_retries(&mut self, tier: u32, base: u64, parts: Vec<Part>) -> Result<(), HubError> {
        if self.core.committed(Topic::Retry, MOVER, tier) > base {
            return Ok(());
        }
        self.core.check_space()?;
        let mut end = base;
        for part in parts {
            end += u64::from(part.count);
            if let Some(target) = part.target {
                self.core.metrics.moved.add(u64::from(part.count));
                self.append(Topic::Tasks, target, Part { target: None, ..part });
            }
        }
        self.set_committed(Topic::Retry, MOVER, tier, end);
        Ok(())
    }

    /// Deletes records of so many bytes from the head of a partition, unless that was done already.
    pub(crate) fn trim(&mut self, topic: Topic, partition: u32, bases: Vec<u64>, bytes: u64, start: u64) {
        if start <= self.core.start.get(topic, partition) {
            return;
        }
        self.core.reclaim.deleted(bytes);
        for base in bases {
            self.stage.delete(Space::Log, record::key(topic as u8, partition, base));
        }
        self.stage.put(Space::Meta, keys::start(topic as u8, partition), start.to_be_bytes().to_vec());
        self.core.start.set(topic, partition, start);
    }

    /// Deletes settled jobs with everything that hangs on them.
    pub(crate) fn prune(&mut self, jobs: &[JobId]) -> Result<(), HubError> {
        let core = Arc::clone(&self.core);
        for id in jobs {
            let Some(job) = self.job(id)? else { continue };
            if job.record.finished_ms == 0 || job.changed {
                continue;
            }
            let record = job.record.clone();
            let created = record.facts.created_ms;
            for listing in keys::fixed_listings(&record).into_iter().chain([keys::state_listing(&record)]) {
                self.stage.unlist(listing, (created, *id));
            }
            if !record.reservation.is_empty() {
                self.stage.delete(Space::Index, record.reservation.clone());
            }
            if record.counts.failed > 0 || record.counts.replayed > 0 {
                for place in dlq::places(&core.db.view(), id).map_err(read_failed)? {
                    self.stage.delete(Space::Index, dlq::key(Shelf::Dead, &place));
                    self.stage.delete(Space::Index, dlq::key(Shelf::Replayed, &place));
                }
            }
            if record.counted_by_id {
                self.forget_direct(id)?;
            }
            let (from, to) = outcome::bounds(id);
            for item in core.db.range(Space::Outcomes, &from, &to) {
                self.stage.delete(Space::Outcomes, item.map_err(read_failed)?.0);
            }
            self.stage.delete(Space::Jobs, Bytes::copy_from_slice(id));
            self.forget(id);
            core.metrics.pruned.add(1);
        }
        Ok(())
    }

    /// Adds the group's entries for the broker to its commit, under one key.
    pub(crate) fn stage_outbox(&mut self, stage: &mut Stage, entries: Vec<Entry>) {
        fail_point!("hub::outbox::before");
        let count = entries.len() as u32;
        let item = OutboxItem { sequence: self.outbox_next, entries };
        let bytes = Bytes::from(item.encode_to_vec());
        let part = Part { count, target: None, bytes };
        let value = record::encode(stage.sequence, stage.now_ms, &[part]);
        self.outbox_bytes += value.len() as u64;
        stage.put(Space::Log, record::key(OUTBOX_TOPIC, 0, self.outbox_next), value);
        self.outbox_next += 1;
        stage.put(Space::Meta, keys::OUTBOX, outbox_state(self.outbox_next, self.outbox_done, self.outbox_bytes));
        fail_point!("hub::outbox::after");
    }

    /// Deletes what is published.
    pub(crate) fn outbox_published(&mut self, up_to: u64) -> Result<(), HubError> {
        fail_point!("hub::published::before");
        let end = (up_to + 1).min(self.outbox_next);
        for sequence in self.outbox_done..end {
            let key = record::key(OUTBOX_TOPIC, 0, sequence);
            let size = self.core.db.get(Space::Log, &key).map_err(read_failed)?.map_or(0, |value| value.len() as u64);
            self.outbox_bytes = self.outbox_bytes.saturating_sub(size);
            self.core.reclaim.deleted(size);
            self.stage.delete(Space::Log, key);
        }
        self.outbox_done = self.outbox_done.max(end);
        self.stage.put(Space::Meta, keys::OUTBOX, outbox_state(self.outbox_next, self.outbox_done, self.outbox_bytes));
        fail_point!("hub::published::after");
        Ok(())
    }
}

/// Next sequence, first unpublished sequence and bytes of the outbox, as stored.
pub fn outbox_state(next: u64, done: u64, bytes: u64) -> Vec<u8> {
    [next, done, bytes].into_iter().flat_map(u64::to_be_bytes).collect()
}

/// Reads [`outbox_state`]; zeros for anything else.
pub fn parse_outbox_state(raw: &[u8]) -> (u64, u64, u64) {
    let number = |at: usize| keys::number(raw.get(at..at + 8));
    (number(0), number(8), number(16))
}

/// Sums over jobs as stored.
pub fn parse_totals(raw: Option<Bytes>) -> Counts {
    raw.and_then(|raw| Counts::decode(raw).ok()).unwrap_or_default()
}
