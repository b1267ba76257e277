//! Orders on dead letters, carried out in slices: read and changed here, moved by the writer in chunks.
//!
//! An order covers the commits up to the one that was the last when it began, so what is replayed and fails again is not replayed once more by the
//! same order. Each call does as much as fits into its time and says where to go on; one that met jobs that are `busy` is to be made again.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use fetchbox_model::manifest::{Change, Limits, PartitionBy, host_port, partition_of};
use fetchbox_model::message::{DownloadTask, JobState};
use fetchbox_model::stream::Topic;
use prost::Message;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::core::{Core, read_failed};
use crate::db::{Space, View};
use crate::dlq::{self, Letter, Place, Shelf, Which};
use crate::dlq_filter::{Filter, Jobs, Selection};
use crate::error::HubError;
use crate::job::{JobId, id_text};
use crate::keys;
use crate::query_dlq::{FIRST, LAST, cursor, parse_cursor};
use crate::replay::{Done, Revival};
use crate::writer::Command;

/// How long one call works before it says where to go on.
const SLICE: Duration = Duration::from_secs(3);
/// Entries, and bytes of tasks, that the writer moves in one commit: a few milliseconds for everybody behind them.
const CHUNK: usize = 500;
const CHUNK_BYTES: usize = 2 << 20;

/// An order; for a replay `headers`, `proxy_pool` and `url_replace` are read by [`Change::read`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Order {
    pub filter: Filter,
    /// Only count, and check what would be changed.
    pub dry_run: bool,
    /// The last commit it covers; of the first call's answer.
    pub until: Option<u64>,
    /// Where to go on; of the last call's answer.
    pub cursor: Option<String>,
    pub partition_by: PartitionBy,
    pub limits: Limits,
    /// Schemes beside http and https, by job type.
    pub schemes: HashMap<String, Vec<String>>,
}

/// A slice of an order under way.
struct Slice<'v, 'd> {
    core: &'v Core,
    view: &'v View<'d>,
    order: Order,
    selection: Selection,
    until: u64,
}

impl<'v, 'd> Slice<'v, 'd> {
    fn new(core: &'v Core, view: &'v View<'d>, order: Order) -> Result<Self, HubError> {
        let selection = Selection::new(view, &order.filter)?;
        let last = keys::number(view.get(Space::Meta, keys::SEQUENCE).map_err(read_failed)?.as_deref());
        let until = order.until.unwrap_or(last).min(last);
        Ok(Self { core, view, order, selection, until })
    }

    /// Walks a shelf from where the last call ended and hands on the entries that are meant, until the time is over; where to go on.
    fn walk(&self, shelf: Shelf, mut take: impl FnMut(Place, Vec<Letter>) -> Result<(), HubError>) -> Result<Option<Place>, HubError> {
        let begun = self.core.clock.elapsed();
        let from = match self.order.cursor.as_deref() {
            None | Some("") => FIRST,
            Some(cursor) => parse_cursor(cursor).ok_or_else(|| HubError::refused("INVALID_PAYLOAD", "the cursor is not one of ours"))?.0,
        };
        let to = (self.until, LAST.1);
        if from > to {
            return Ok(None);
        }
        for item in dlq::shelved(self.view, shelf, self.selection.job_id(), from, to).map_err(read_failed)? {
            let (place, letters) = item?;
            if place > from && self.core.clock.elapsed().saturating_sub(begun) >= SLICE {
                return Ok(Some(place));
            }
            let meant: Vec<Letter> = letters.list.into_iter().filter(|letter| self.selection.takes(letters.time_ms, letter)).collect();
            if !meant.is_empty() {
                take(place, meant)?;
            }
        }
        Ok(None)
    }
}

fn answer(done: Done, until: u64, next: Option<Place>) -> Value {
    json!({"count": done.count, "refused": done.refused, "busy": done.busy, "until": until, "next_cursor": next.map(|place| cursor((place, (0, 0))))})
}

fn cancelled(job: &JobId) -> HubError {
    let message = "the job was cancelled, and what failed in it stays so: post its resources as a new job";
    HubError::refused("JOB_CANCELLED", message).about(&id_text(job))
}

/// Puts dead letters back to work.
pub fn replay(core: &Core, params: Value) -> Result<Value, HubError> {
    let invalid = |what: String| HubError::refused("INVALID_PAYLOAD", what);
    let unreadable = |error: serde_json::Error| invalid(format!("the order cannot be read: {error}"));
    let order: Order = serde_json::from_value(params.clone()).map_err(unreadable)?;
    let Value::Object(params) = params else { return Err(invalid("the order must be an object".into())) };
    let change = Change::read(&params, &order.limits).map_err(|faults| {
        let told: Vec<String> = faults.iter().take(5).map(|fault| format!("{}: {}", fault.pointer, fault.message)).collect();
        invalid(told.join("; "))
    })?;
    let view = core.db.view();
    let slice = Slice::new(core, &view, order)?;
    if let Some((id, job)) = &slice.selection.job
        && job.state() == JobState::Cancelled
    {
        return Err(cancelled(id));
    }
    let mut jobs = Jobs::new(&view);
    let mut chunk = Chunk { core, dry_run: slice.order.dry_run, entries: 0, bytes: 0, jobs: BTreeMap::new(), done: Done::default() };
    let next = slice.walk(Shelf::Dead, |place, letters| {
        let Some(job) = jobs.of(&place)?.filter(|job| slice.selection.takes_job(job)) else { return Ok(()) };
        if job.state() == JobState::Cancelled {
            chunk.done.refused += letters.len() as u64;
            return Ok(());
        }
        let wanted: Vec<Which> = letters.iter().map(Letter::which).collect();
        for (letter, outcome) in letters.iter().zip(dlq::outcomes(&view, &place, &wanted).map_err(read_failed)?) {
            // An outcome without its task was reported by something else than our workers.
            let Some(mut task) = outcome.and_then(|outcome| outcome.task) else {
                chunk.done.refused += 1;
                continue;
            };
            let schemes = slice.order.schemes.get(&job.facts.job_type).map_or(&[][..], Vec::as_slice);
            change
                .apply(&mut task, schemes)
                .map_err(|what| invalid(format!("job {}, resource {}: {what}", job.facts.job_id, task.resource_id)))?;
            renew(&mut task, letter, core.clock.now_ms());
            let partition = match slice.order.partition_by {
                PartitionBy::Job => partition_of(&job.facts.job_id, core.partitions(Topic::Tasks)),
                PartitionBy::Host => partition_of(&host_port(&task.url).0, core.partitions(Topic::Tasks)),
            };
            chunk.add(place, Revival { sequence: place.0, which: letter.which(), partition, task: task.encode_to_vec().into() })?;
        }
        Ok(())
    })?;
    let done = chunk.finish()?;
    // It was cancelled between the look and the commit.
    if let Some((id, _)) = &slice.selection.job
        && done.count == 0
        && done.refused > 0
        && cancelled_now(core, id)?
    {
        return Err(cancelled(id));
    }
    Ok(answer(done, slice.until, next))
}

fn cancelled_now(core: &Core, id: &JobId) -> Result<bool, HubError> {
    let view = core.db.view();
    let mut jobs = Jobs::new(&view);
    Ok(jobs.of(&(0, *id))?.is_some_and(|job| job.state() == JobState::Cancelled))
}

/// A fresh task of the next generation. A deadline that has passed would only fail it again: who replays wants it all the same.
fn renew(task: &mut DownloadTask, letter: &Letter, now_ms: u64) {
    task.generation = letter.generation + 1;
    task.resource_index = letter.index;
    (task.attempt, task.not_before_ms) = (0, 0);
    if task.deadline_ms <= now_ms {
        task.deadline_ms = 0;
    }
}

/// Entries that the writer moves together.
struct Chunk<'c> {
    core: &'c Core,
    dry_run: bool,
    entries: usize,
    bytes: usize,
    jobs: BTreeMap<JobId, Vec<Revival>>,
    done: Done,
}

impl Chunk<'_> {
    fn add(&mut self, place: Place, revival: Revival) -> Result<(), HubError> {
        if self.dry_run {
            self.done.count += 1;
            return Ok(());
        }
        self.entries += 1;
        self.bytes += revival.task.len();
        self.jobs.entry(place.1).or_default().push(revival);
        if self.entries >= CHUNK || self.bytes >= CHUNK_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), HubError> {
        (self.entries, self.bytes) = (0, 0);
        let chunk: Vec<_> = std::mem::take(&mut self.jobs).into_iter().collect();
        if !chunk.is_empty() {
            let done = self.core.ask(|reply| Command::Replay { chunk, reply })?;
            self.done.count += done.count;
            self.done.refused += done.refused;
            self.done.busy += done.busy;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Done, HubError> {
        self.flush()?;
        Ok(self.done)
    }
}

/// Takes entries away, the dead first, then the replayed; `count` is of the dead.
pub fn purge(core: &Core, order: Order) -> Result<Value, HubError> {
    let view = core.db.view();
    let slice = Slice::new(core, &view, order)?;
    let mut jobs = Jobs::new(&view);
    let mut done = Done::default();
    let mut next = None;
    for shelf in [Shelf::Dead, Shelf::Replayed] {
        let mut chunk: Vec<(Place, Vec<Which>)> = Vec::new();
        let mut entries = 0;
        let mut flush = |chunk: &mut Vec<(Place, Vec<Which>)>, entries: &mut usize| {
            *entries = 0;
            let chunk = std::mem::take(chunk);
            if chunk.is_empty() {
                return Ok(());
            }
            let count = core.ask(|reply| Command::Purge { shelf, chunk, reply })?;
            done.count += if shelf == Shelf::Dead { count } else { 0 };
            Ok::<(), HubError>(())
        };
        let dry_run = slice.order.dry_run;
        let mut dry = 0;
        let stopped = slice.walk(shelf, |place, letters| {
            if slice.order.filter.tenant.is_some() && !jobs.of(&place)?.is_some_and(|job| slice.selection.takes_job(job)) {
                return Ok(());
            }
            if dry_run {
                dry += letters.len() as u64;
                return Ok(());
            }
            entries += letters.len();
            chunk.push((place, letters.iter().map(Letter::which).collect()));
            if entries >= CHUNK { flush(&mut chunk, &mut entries) } else { Ok(()) }
        })?;
        flush(&mut chunk, &mut entries)?;
        done.count += if shelf == Shelf::Dead { dry } else { 0 };
        // Both shelves are walked over the same stretch again by the next call: what is gone costs nothing.
        next = match (next, stopped) {
            (Some(a), Some(b)) => Some(std::cmp::min::<Place>(a, b)),
            (a, b) => a.or(b),
        };
    }
    Ok(answer(done, slice.until, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replayed_task_begins_anew() {
        let mut task = DownloadTask { attempt: 5, not_before_ms: 9, deadline_ms: 100, generation: 3, ..Default::default() };
        let letter = Letter { index: 2, generation: 3, ..Default::default() };
        renew(&mut task, &letter, 99);
        assert_eq!((task.attempt, task.not_before_ms, task.deadline_ms, task.generation, task.resource_index), (0, 0, 100, 4, 2));
        renew(&mut task, &letter, 100);
        assert_eq!(task.deadline_ms, 0);
    }
}
