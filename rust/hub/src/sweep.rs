//! Puts back what is pending although nothing would ever bring it again.
//!
//! A pending resource is carried by one message: its task at or above the workers' committed offset, or a retry that was not moved back yet. The
//! sweeper takes a state of the database that stands still and looks only at jobs that have been quiet for long and whose tasks are all below the
//! commits. What is pending there and carried by no message is lost, and stays so: messages do not come out of nothing. The writer looks once more
//! and appends the tasks again, as the log still has them. None of this should ever happen; a counter says whether it did.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use fetchbox_model::batch::{self, BatchBuilder};
use fetchbox_model::message::DownloadTask;
use fetchbox_model::stream::{RETRY_TIERS_SECONDS, Topic};
use prost::Message;
use serde::Serialize;

use crate::config::Broker;
use crate::core::{Core, WORKERS, read_failed};
use crate::db::{DbError, Space, View};
use crate::error::HubError;
use crate::job::{JobId, JobRecord, TaskSpan};
use crate::keys;
use crate::record::{self, Part};
use crate::tell::Said;
use crate::upkeep::MOVER;
use crate::writer::{Command, Writer};

/// Unsettled jobs that one round looks at, and how many of them it examines.
const LOOKED: usize = 20_000;
const EXAMINED: usize = 1_000;
/// With more messages than this waiting in a partition nothing of it is examined: what is there has to wait anyway.
const BACKLOG: u64 = 500_000;

/// What a round found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Quiet jobs that were examined.
    pub jobs: u64,
    /// Resources put back.
    pub put_back: u64,
    /// Lost resources whose task the log does not have any more.
    pub gone: u64,
}

/// Where the last round ended.
#[derive(Debug, Default)]
pub struct Sweeper {
    place: Option<(u64, JobId)>,
}

/// An unsettled job.
#[derive(Debug)]
pub struct Candidate {
    pub id: JobId,
    pub record: JobRecord,
}

/// The part of a task that says which resource it carries.
#[derive(Clone, PartialEq, Message)]
struct Carried {
    #[prost(string, tag = "1")]
    job_id: String,
    #[prost(uint32, tag = "16")]
    index: u32,
    #[prost(uint32, tag = "18")]
    generation: u32,
}

/// A task on its way back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Returned {
    pub partition: u32,
    pub index: u32,
    pub generation: u32,
    pub task: Bytes,
}

impl Sweeper {
    /// Examines unsettled jobs that nothing has changed for `quiet_ms`, oldest first and going on where the last round ended.
    pub fn round(&mut self, core: &Core, quiet_ms: u64) -> Result<Swept, HubError> {
        let mut swept = Swept::default();
        if core.config.broker == Broker::External {
            // Which offsets are committed only the broker knows.
            return Ok(swept);
        }
        let view = core.db.view();
        let candidates = self.candidates(core, &view, quiet_ms)?;
        swept.jobs = candidates.len() as u64;
        let lost = lost(core, &view, &candidates).map_err(read_failed)?;
        drop(view);
        for (candidate, indexes) in candidates.iter().zip(lost) {
            if indexes.is_empty() {
                continue;
            }
            let tasks = rebuild(core, &candidate.record, &indexes).map_err(read_failed)?;
            swept.gone += (indexes.len() - tasks.len()) as u64;
            if !tasks.is_empty() {
                let (id, seen_ms) = (candidate.id, candidate.record.updated_ms);
                swept.put_back += core.ask(|reply| Command::PutBack { id, seen_ms, tasks, reply })?;
            }
        }
        core.keep.gone.store(swept.gone, Ordering::Relaxed);
        Ok(swept)
    }

    fn candidates(&mut self, core: &Core, view: &View<'_>, quiet_ms: u64) -> Result<Vec<Candidate>, HubError> {
        let places: Vec<(u64, JobId)> = {
            let active = core.active.read();
            let from = self.place.map_or(Bound::Unbounded, Bound::Excluded);
            active.range((from, Bound::Unbounded)).take(LOOKED).copied().collect()
        };
        // At the end of the list the next round begins anew.
        self.place = if places.len() == LOOKED { places.last().copied() } else { None };
        let (now_ms, mut committed, mut found) = (core.clock.now_ms(), HashMap::new(), Vec::new());
        for place in places {
            let Some(record) = job(view, &place.1)? else { continue };
            if is_quiet(&record, now_ms, quiet_ms) && is_passed(view, &record, &mut committed)? {
                found.push(Candidate { id: place.1, record });
            }
            if found.len() == EXAMINED {
                self.place = Some(place);
                break;
            }
        }
        Ok(found)
    }
}

fn job(view: &View<'_>, id: &JobId) -> Result<Option<JobRecord>, HubError> {
    let Some(raw) = view.get(Space::Jobs, id).map_err(read_failed)? else { return Ok(None) };
    // A damaged record is a finding of `ledger check`; here it is nothing to work with.
    Ok(JobRecord::decode(raw).ok())
}

/// Something is pending, and nothing has happened for long. A clock that was set back makes nothing quiet.
fn is_quiet(record: &JobRecord, now_ms: u64, quiet_ms: u64) -> bool {
    record.finished_ms == 0 && !record.spans.is_empty() && now_ms.saturating_sub(record.updated_ms) >= quiet_ms
}

/// Every task of the job is below the offset that the workers committed.
fn is_passed(view: &View<'_>, record: &JobRecord, committed: &mut HashMap<u32, u64>) -> Result<bool, HubError> {
    for span in &record.spans {
        let offset = match committed.get(&span.partition) {
            Some(offset) => *offset,
            None => {
                let offset = number(view, &keys::committed(Topic::Tasks as u8, span.partition, WORKERS)).map_err(read_failed)?;
                committed.insert(span.partition, offset);
                offset
            }
        };
        if span.offset + u64::from(span.count) > offset {
            return Ok(false);
        }
    }
    Ok(true)
}

fn number(view: &View<'_>, key: &[u8]) -> Result<u64, DbError> {
    Ok(keys::number(view.get(Space::Meta, key)?.as_deref()))
}

/// The pending resources of each candidate that no message of this view carries.
pub fn lost(core: &Core, view: &View<'_>, candidates: &[Candidate]) -> Result<Vec<Vec<u32>>, DbError> {
    let mut none = vec![Vec::new(); candidates.len()];
    if candidates.is_empty() || core.config.broker == Broker::External {
        return Ok(none);
    }
    let wanted: HashSet<&str> = candidates.iter().map(|c| c.record.facts.job_id.as_str()).collect();
    let mut carried = HashSet::new();
    let mut full = BTreeSet::new();
    // A retry goes back to the partition it came from, and a task that was put back stays in its own.
    let partitions: BTreeSet<u32> = candidates.iter().flat_map(|c| c.record.spans.iter().map(|span| span.partition)).collect();
    for partition in partitions {
        if !note_carried(view, Topic::Tasks, partition, WORKERS, &wanted, &mut carried)? {
            full.insert(partition);
        }
    }
    for tier in 0..RETRY_TIERS_SECONDS.len() as u32 {
        if !note_carried(view, Topic::Retry, tier, MOVER, &wanted, &mut carried)? {
            return Ok(none);
        }
    }
    for (candidate, lost) in candidates.iter().zip(&mut none) {
        let record = &candidate.record;
        if !record.spans.iter().any(|span| full.contains(&span.partition)) {
            let carries = |index: u32| Carried { job_id: record.facts.job_id.clone(), index, generation: record.generation(index) };
            lost.extend(record.pending().filter(|&index| !carried.contains(&Place::from(carries(index)))));
        }
    }
    Ok(none)
}

/// A carried resource as a key.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Place(String, u32, u32);

impl From<Carried> for Place {
    fn from(carried: Carried) -> Self {
        Self(carried.job_id, carried.index, carried.generation)
    }
}

/// Notes what a partition still brings to the wanted jobs; false when too much waits there.
fn note_carried(
    view: &View<'_>,
    topic: Topic,
    partition: u32,
    group: &str,
    wanted: &HashSet<&str>,
    carried: &mut HashSet<Place>,
) -> Result<bool, DbError> {
    let id = topic as u8;
    let from = number(view, &keys::committed(id, partition, group))?;
    let next = keys::next_of(&view.get(Space::Meta, keys::NEXT)?.unwrap_or_default(), topic, partition);
    if next.saturating_sub(from) > BACKLOG {
        return Ok(false);
    }
    if from >= next {
        return Ok(true);
    }
    // The record that holds `from` begins at or before it.
    let (first, behind) = (record::key(id, partition, 0), record::key(id, partition, from + 1));
    let held = view.range(Space::Log, &first, &behind).next_back().transpose()?;
    let begin = held.and_then(|(key, _)| record::base_of(&key)).unwrap_or(from);
    for item in view.range(Space::Log, &record::key(id, partition, begin), &record::key(id, partition, next)) {
        let (key, value) = item?;
        let base = record::base_of(&key).unwrap_or(begin);
        let mut offset = base;
        for part in record::decode(topic.name(), partition, base, &value)?.parts {
            let end = offset + u64::from(part.count);
            if end > from {
                note(&part, from.saturating_sub(offset) as usize, wanted, carried)?;
            }
            offset = end;
        }
    }
    Ok(true)
}

fn note(part: &Part, skip: usize, wanted: &HashSet<&str>, carried: &mut HashSet<Place>) -> Result<(), DbError> {
    for message in unpack(part)?.into_iter().skip(skip) {
        if let Ok(task) = Carried::decode(message)
            && wanted.contains(task.job_id.as_str())
        {
            carried.insert(task.into());
        }
    }
    Ok(())
}

fn unpack(part: &Part) -> Result<Vec<Bytes>, DbError> {
    batch::unpack(&part.bytes).map_err(|error| DbError(format!("a batch of tasks cannot be read: {error}")))
}

/// The tasks of lost resources, as far as the log still has them: of the resource's own generation, or of an earlier one with the number changed.
fn rebuild(core: &Core, record: &JobRecord, indexes: &[u32]) -> Result<Vec<Returned>, DbError> {
    let wanted: HashSet<u32> = indexes.iter().copied().collect();
    let mut found: BTreeMap<u32, Returned> = BTreeMap::new();
    for &TaskSpan { partition, offset, count } in &record.spans {
        for (_, part) in crate::log::read(core, Topic::Tasks, partition, offset, offset + u64::from(count))? {
            for task in unpack(&part)? {
                let Ok(Carried { job_id, index, generation }) = Carried::decode(task.clone()) else { continue };
                if job_id != record.facts.job_id || !wanted.contains(&index) || generation > record.generation(index) {
                    continue;
                }
                if found.get(&index).is_none_or(|best| best.generation <= generation) {
                    found.insert(index, Returned { partition, index, generation, task });
                }
            }
        }
    }
    Ok(found.into_values().filter_map(|returned| renumber(returned, record)).collect())
}

fn renumber(mut returned: Returned, record: &JobRecord) -> Option<Returned> {
    let generation = record.generation(returned.index);
    if returned.generation != generation {
        let mut task = DownloadTask::decode(returned.task).ok()?;
        task.generation = generation;
        returned.task = task.encode_to_vec().into();
        returned.generation = generation;
    }
    Some(returned)
}

impl Writer {
    /// Appends lost tasks again, unless anything has happened to the job since it was examined; how many.
    pub(crate) fn put_back(&mut self, id: &JobId, seen_ms: u64, tasks: Vec<Returned>) -> Result<u64, HubError> {
        self.core.check_space()?;
        let now_ms = self.stage.now_ms;
        let record = match self.job(id)? {
            Some(job) if job.record.updated_ms == seen_ms => job.record.clone(),
            _ => return Ok(0),
        };
        let is_pending = |task: &Returned| {
            u64::from(task.index) < record.counts.total
                && !record.is_settled(task.index)
                && record.generation(task.index) == task.generation
        };
        let mut by_partition: BTreeMap<u32, BatchBuilder> = BTreeMap::new();
        for task in tasks.iter().filter(|task| is_pending(task)) {
            by_partition.entry(task.partition).or_default().push_encoded(&task.task);
        }
        let (mut spans, mut sum) = (Vec::new(), 0);
        for (partition, builder) in by_partition {
            let Some(batch) = builder.finish() else { continue };
            let offset = self.publish(Topic::Tasks, partition, batch.count, batch.bytes);
            spans.push(TaskSpan { partition, offset, count: batch.count });
            sum += u64::from(batch.count);
        }
        if sum == 0 {
            return Ok(0);
        }
        self.publish_log(&record, "tasks that were lost are back in the queue", &[("resources", Said::Number(sum))]);
        self.core.keep.swept.add(sum);
        if let Some(job) = self.job(id)? {
            job.record.spans.extend(spans);
            job.record.updated_ms = now_ms;
            job.changed = true;
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quiet_is_unsettled_with_tasks_of_its_own_and_unchanged_for_long() {
        let mut record = JobRecord { updated_ms: 1_000, spans: vec![TaskSpan::default()], ..Default::default() };
        assert!(is_quiet(&record, 1_500, 500) && !is_quiet(&record, 1_499, 500));
        assert!(!is_quiet(&record, 10, 500), "the clock was set back");
        record.finished_ms = 1;
        assert!(!is_quiet(&record, 9_999, 500));
        record.finished_ms = 0;
        record.spans.clear();
        assert!(!is_quiet(&record, 9_999, 500), "whose tasks are not the hub's");
    }

    #[test]
    fn the_part_reads_what_the_whole_task_wrote() {
        let task =
            DownloadTask { job_id: "j".into(), resource_index: 70_000, generation: 3, url: "http://h/".into(), ..Default::default() };
        let carried = Carried::decode(&task.encode_to_vec()[..]).unwrap();
        assert_eq!(Place::from(carried), Place("j".into(), 70_000, 3));
    }

    #[test]
    fn a_task_of_an_earlier_generation_gets_the_number_that_counts_now() {
        let task = DownloadTask { job_id: "j".into(), resource_index: 1, url: "http://h/".into(), ..Default::default() };
        let generations = vec![crate::frame::Generation { index: 1, generation: 2 }];
        let record = JobRecord { generations, ..Default::default() };
        let back = renumber(Returned { partition: 0, index: 1, generation: 0, task: task.encode_to_vec().into() }, &record).unwrap();
        assert_eq!((back.generation, DownloadTask::decode(back.task).unwrap().generation), (2, 2));
    }
}
