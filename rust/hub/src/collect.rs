//! Removes objects that nobody owns, and what crashes leave in the store.
//!
//! No listing of the whole store, and no guess: the ledger knows which jobs can have left something. A job that settles with resources that were
//! cancelled, failed or filtered, or that were replayed, is queued, and again whenever a late report names an object that does not count. When it is
//! due, the keys of all its tasks are computed as the engine did; those that no stored outcome owns are removed, and only where a segment of the key
//! is the job's own id, so that no other job can own them. While that goes on the writer lets nobody replay the job. Manifests of posts that died are
//! known by their reservation.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use fetchbox_model::batch;
use fetchbox_model::key::{KeyTemplate, ObjectKey, join_url};
use fetchbox_model::message::{DownloadTask, ResourceOutcome};
use fetchbox_model::stream::Topic;
use prost::Message;
use serde::Serialize;

use crate::config::Keeping;
use crate::core::{Core, read_failed};
use crate::db::{DbError, Space, View};
use crate::error::HubError;
use crate::job::{JobId, JobRecord, id_text};
use crate::keys;
use crate::outcome;
use crate::shelf::Shelf;
use crate::uploads::Uploads;
use crate::writer::{Command, Writer};

/// Jobs, and manifests of dead posts, that one round takes at most.
const PER_ROUND: usize = 5_000;
/// Jobs whose objects are removed together.
const TOGETHER: usize = 64;

/// What a round did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Jobs looked at.
    pub jobs: u64,
    /// Objects removed.
    pub objects: u64,
    /// Manifests removed.
    pub manifests: u64,
    /// Temporary files removed.
    pub files: u64,
    /// Unfinished uploads ended.
    pub uploads: u64,
}

/// A post that may have stored a manifest and is not accepted yet.
#[derive(Clone, PartialEq, Message)]
pub struct Intent {
    /// Of the manifest's key.
    #[prost(string, tag = "1")]
    pub job_type: String,
    /// Key of its reservation.
    #[prost(bytes = "bytes", tag = "2")]
    pub reservation: Bytes,
    /// When it began, or was given up: ms.
    #[prost(uint64, tag = "3")]
    pub since_ms: u64,
    /// It cannot be accepted any more.
    #[prost(bool, tag = "4")]
    pub abandoned: bool,
}

/// Checked key templates, and the buckets that may be touched.
#[derive(Debug, Default)]
pub struct Places {
    default: KeyTemplate,
    by_job_type: HashMap<String, KeyTemplate>,
    buckets: HashSet<String>,
}

impl Places {
    /// From the configuration; the first template that is wrong, in words.
    pub fn new(keeping: &Keeping) -> Result<Self, String> {
        let parse = |text: &String| KeyTemplate::parse(text).map_err(|error| format!("key_template {text:?}: {error}"));
        Ok(Self {
            default: keeping.key_template.as_ref().map(parse).transpose()?.unwrap_or_default(),
            by_job_type: keeping
                .key_templates
                .iter()
                .map(|(name, text)| Ok((name.clone(), parse(text)?)))
                .collect::<Result<_, String>>()?,
            buckets: keeping.buckets.iter().cloned().collect(),
        })
    }

    /// Where the object of a task lies, if it lies where only its own job's objects can: bucket and key.
    pub(crate) fn own(&self, task: &DownloadTask) -> Option<(String, ObjectKey)> {
        let bucket = task.storage_hint.as_ref().map(|hint| hint.bucket.clone()).unwrap_or_default();
        if !bucket.is_empty() && !self.buckets.contains(&bucket) {
            return None;
        }
        let template = self.by_job_type.get(&task.job_type).unwrap_or(&self.default);
        let key = ObjectKey::of_task(task, template).ok()?;
        key.as_str().split('/').any(|segment| segment == task.job_id).then_some((bucket, key))
    }
}

/// Objects that tasks of a job may have made and that no outcome owns.
fn unowned(places: &Places, tasks: &[DownloadTask], outcomes: &BTreeMap<u32, ResourceOutcome>) -> Vec<(String, String)> {
    let last = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
    let mut owned: HashMap<String, Vec<&str>> = HashMap::new();
    for outcome in outcomes.values().filter(|outcome| has_object(outcome)) {
        owned.entry(last(&outcome.storage_url)).or_default().push(&outcome.storage_url);
    }
    let is_owned = |key: &ObjectKey| {
        // The URL of the store itself may be written in several ways: what ends alike is taken for the same.
        let tail = join_url("", key);
        owned.get(&last(&tail)).is_some_and(|urls| urls.iter().any(|url| url.ends_with(&tail)))
    };
    let made = tasks.iter().filter_map(|task| places.own(task)).filter(|(_, key)| !is_owned(key));
    let distinct: HashSet<(String, String)> = made.map(|(bucket, key)| (bucket, key.into())).collect();
    distinct.into_iter().collect()
}

fn has_object(outcome: &ResourceOutcome) -> bool {
    outcome::has_object(outcome.state())
}

/// Every task of a job that may have made an object without owner.
fn suspects(core: &Core, record: &JobRecord, outcomes: &BTreeMap<u32, ResourceOutcome>) -> Result<Vec<DownloadTask>, DbError> {
    // A resource that has its object at the first attempt has left no other.
    let is_suspect = |index: u32| record.generation(index) > 0 || !outcomes.get(&index).is_some_and(has_object);
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    for span in &record.spans {
        for (_, part) in crate::log::read(core, Topic::Tasks, span.partition, span.offset, span.offset + u64::from(span.count))? {
            let messages = batch::unpack(&part.bytes).map_err(|error| DbError(format!("a batch of tasks cannot be read: {error}")))?;
            let tasks = messages.into_iter().filter_map(|message| DownloadTask::decode(message).ok());
            for task in tasks.filter(|task| task.job_id == record.facts.job_id && is_suspect(task.resource_index)) {
                seen.insert(task.resource_index);
                found.push(task);
            }
        }
    }
    // What failed carries its task; of the rest the log may have forgotten it, and the key follows from what the outcome says.
    for outcome in outcomes.values().filter(|outcome| is_suspect(outcome.resource_index)) {
        match &outcome.task {
            Some(task) => found.push(task.clone()),
            None if !seen.contains(&outcome.resource_index) => found.push(DownloadTask {
                job_id: record.facts.job_id.clone(),
                job_type: record.facts.job_type.clone(),
                tenant: record.facts.tenant.clone(),
                resource_id: outcome.resource_id.clone(),
                resource_index: outcome.resource_index,
                url: outcome.context.get("url").unwrap_or(&outcome.final_url).clone(),
                ..Default::default()
            }),
            None => {}
        }
    }
    Ok(found)
}

fn doomed(core: &Core, view: &View<'_>, id: &JobId) -> Result<Vec<(String, String)>, HubError> {
    let Some(raw) = view.get(Space::Jobs, id).map_err(read_failed)? else { return Ok(Vec::new()) };
    let Ok(record) = JobRecord::decode(raw) else { return Ok(Vec::new()) };
    let outcomes = outcome::newest(view, id).map_err(read_failed)?;
    let tasks = suspects(core, &record, &outcomes).map_err(read_failed)?;
    Ok(unowned(&core.keep.places(), &tasks, &outcomes))
}

/// One round: the jobs that are due (all that wait, when `early`), manifests of dead posts, and what crashes left. With a store that fails it ends, and
/// the next round goes on.
pub fn round(core: &Core, shelf: &Arc<dyn Shelf>, early: bool) -> Result<Collected, HubError> {
    let now_ms = core.clock.now_ms();
    let mut collected = Collected::default();
    let result = objects(core, shelf, now_ms, early, &mut collected)
        .and_then(|()| manifests(core, shelf, now_ms, &mut collected))
        .and_then(|()| leftovers(core, shelf, now_ms, &mut collected));
    core.keep.collected(&collected, result.is_err());
    result.map(|()| collected)
}

fn store_failed(error: String) -> HubError {
    HubError::refused("STORAGE_UNAVAILABLE", error).after_ms(5000)
}

fn objects(core: &Core, shelf: &Arc<dyn Shelf>, now_ms: u64, early: bool, collected: &mut Collected) -> Result<(), HubError> {
    let until = if early { u64::MAX } else { now_ms };
    let mut queue = Vec::new();
    for item in core.db.range(Space::Index, &keys::collect(0, &[0; 16]), &keys::collect(until, &[0xff; 16])).take(PER_ROUND) {
        let (key, _) = item.map_err(read_failed)?;
        queue.extend(keys::parse_listed(&key).map(|(due_ms, id)| (key, due_ms, id)));
    }
    for some in queue.chunks(TOGETHER) {
        let jobs: Vec<JobId> = some.iter().map(|(_, _, id)| *id).collect::<HashSet<_>>().into_iter().collect();
        let asked = jobs.clone();
        let settled = core.ask(|reply| Command::CollectBegin { jobs: asked, reply })?;
        let removed = remove_unowned(core, shelf, &settled);
        // What was looked at early is looked at once more when it is due: something may still be on its way.
        let done = some.iter().filter(|(_, due_ms, _)| removed.is_ok() && *due_ms <= now_ms).map(|(key, _, _)| key.clone()).collect();
        core.ask(|reply| Command::CollectEnd { jobs, done, reply })?;
        collected.jobs += settled.len() as u64;
        collected.objects += removed?;
    }
    Ok(())
}

fn remove_unowned(core: &Core, shelf: &Arc<dyn Shelf>, settled: &[JobId]) -> Result<u64, HubError> {
    let view = core.db.view();
    let mut all = Vec::new();
    for id in settled {
        all.extend(doomed(core, &view, id)?);
    }
    drop(view);
    if all.is_empty() {
        return Ok(0);
    }
    shelf.remove(&all).map(|removed| removed.len() as u64).map_err(store_failed)
}

/// Manifests of posts that reserved their key long ago and were never accepted.
fn manifests(core: &Core, shelf: &Arc<dyn Shelf>, now_ms: u64, collected: &mut Collected) -> Result<(), HubError> {
    let before_ms = now_ms.saturating_sub((core.config.keeping.collect_after * 1000.0) as u64);
    let (mut old, mut keys_of) = (Vec::new(), HashMap::new());
    for item in core.db.range(Space::Index, &keys::intent(&[0; 16]), &[b'q' + 1]).take(PER_ROUND) {
        let (key, value) = item.map_err(read_failed)?;
        let (Some(id), Ok(intent)) = (key.get(1..).and_then(|id| id.try_into().ok()), Intent::decode(value)) else { continue };
        if intent.since_ms < before_ms {
            old.push(id);
            keys_of.insert(id, (String::new(), String::from(ObjectKey::manifest(&intent.job_type, &id_text(&id)))));
        }
    }
    if old.is_empty() {
        return Ok(());
    }
    let abandoned = core.ask(|reply| Command::Abandon { jobs: old, reply })?;
    let doomed: Vec<(String, String)> = abandoned.iter().filter_map(|id| keys_of.get(id)).cloned().collect();
    collected.manifests += shelf.remove(&doomed).map_err(store_failed)?.len() as u64;
    core.ask(|reply| Command::Forget { jobs: abandoned, reply })
}

/// Temporary files, and uploads that nobody goes on with.
fn leftovers(core: &Core, shelf: &Arc<dyn Shelf>, now_ms: u64, collected: &mut Collected) -> Result<(), HubError> {
    let judge = Uploads::new(core, now_ms);
    let (files, uploads) = shelf.tidy(&|key, begun_ms| judge.is_over(key, begun_ms)).map_err(store_failed)?;
    collected.files += files;
    collected.uploads += uploads;
    Ok(())
}

impl Writer {
    /// Lets the collector look at a settled job after a while, if it can have left something.
    pub(crate) fn queue_for_collection(&mut self, id: &JobId, after_ms: u64) {
        let due_ms = self.stage.now_ms + after_ms;
        self.stage.put(Space::Index, keys::collect(due_ms, id), Bytes::new());
    }

    /// Whether a job that settles now has to be looked at later, and when.
    pub(crate) fn collect_later(&self, record: &JobRecord) -> Option<u64> {
        let counts = &record.counts;
        let suspect = counts.cancelled + counts.failed + counts.filtered > 0 || !record.generations.is_empty();
        suspect.then_some((self.core.config.keeping.collect_after * 1000.0) as u64)
    }

    /// A report named an object that does not count: when the job is settled it is looked at once more.
    pub(crate) fn collect_soon(&mut self, id: &JobId) -> Result<(), HubError> {
        if self.job(id)?.is_some_and(|job| job.record.finished_ms != 0) {
            self.queue_for_collection(id, 0);
        }
        Ok(())
    }

    /// From now on nobody replays these jobs; those that are settled.
    pub(crate) fn collect_begin(&mut self, jobs: &[JobId]) -> Result<Vec<JobId>, HubError> {
        let mut settled = Vec::new();
        for id in jobs {
            if self.job(id)?.is_some_and(|job| job.record.finished_ms != 0) {
                settled.push(*id);
            }
        }
        self.collecting.extend(settled.iter().copied());
        Ok(settled)
    }

    /// The collector is done with these jobs; `done` leaves its queue.
    pub(crate) fn collect_end(&mut self, jobs: &[JobId], done: Vec<Bytes>) {
        for id in jobs {
            self.collecting.remove(id);
        }
        for key in done {
            self.stage.delete(Space::Index, key);
        }
    }

    /// Gives up posts that nobody is at: they cannot be accepted any more. Those of the jobs whose manifests may go.
    pub(crate) fn abandon(&mut self, jobs: &[JobId]) -> Result<Vec<JobId>, HubError> {
        let mut abandoned = Vec::new();
        for id in jobs {
            let key = keys::intent(id);
            let Some(mut intent) = self.intent(&key)? else { continue };
            if self.job(id)?.is_some() {
                // Accepted after all: its manifest is its own.
                self.stage.delete(Space::Index, key);
                continue;
            }
            if !intent.abandoned {
                if self.is_owned(&intent.reservation) {
                    continue;
                }
                if self.reserved(&intent.reservation)?.is_some_and(|reserved| reserved.id() == *id) {
                    self.stage.delete(Space::Index, intent.reservation.clone());
                }
                intent.abandoned = true;
                self.stage.put(Space::Index, key, intent.encode_to_vec());
            }
            abandoned.push(*id);
        }
        Ok(abandoned)
    }

    /// Their manifests are gone.
    pub(crate) fn forget_intents(&mut self, jobs: &[JobId]) {
        for id in jobs {
            self.stage.delete(Space::Index, keys::intent(id));
        }
    }

    /// The intent under a key, as the group sees it.
    pub(crate) fn intent(&self, key: &Bytes) -> Result<Option<Intent>, HubError> {
        Ok(self.get(Space::Index, key)?.and_then(|raw| Intent::decode(raw).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fetchbox_model::message::{ResourceState, StorageHint};

    const JOB: &str = "0190b6d4-0000-7000-8000-000000000001";

    fn task(index: u32, change: impl FnOnce(&mut DownloadTask)) -> DownloadTask {
        let mut task = DownloadTask {
            job_id: JOB.into(),
            job_type: "default".into(),
            resource_id: format!("r{index}"),
            url: format!("http://h/{index}.jpg"),
            resource_index: index,
            ..Default::default()
        };
        change(&mut task);
        task
    }

    fn keys_of(keeping: Keeping, tasks: &[DownloadTask], owned: &[&str]) -> Vec<String> {
        let outcome = |(index, url): (u32, &&str)| {
            let outcome = ResourceOutcome {
                resource_index: index,
                state: ResourceState::Stored as i32,
                storage_url: (*url).into(),
                ..Default::default()
            };
            (index, outcome)
        };
        let outcomes = (100..).zip(owned).map(outcome).collect();
        let mut keys: Vec<String> = unowned(&Places::new(&keeping).unwrap(), tasks, &outcomes).into_iter().map(|(_, key)| key).collect();
        keys.sort();
        keys
    }

    #[test]
    fn what_a_stored_outcome_owns_stays_whatever_the_stores_url_looks_like() {
        let tasks = [task(0, |_| {}), task(1, |task| task.resource_id = "häß".into())];
        let (first, second) = (format!("resources/default/{JOB}/r0"), format!("resources/default/{JOB}/h%C3%A4%C3%9F"));
        assert_eq!(keys_of(Keeping::default(), &tasks, &[]), [second.clone(), first.clone()]);
        let url = format!("s3://bucket/some/prefix/resources/default/{JOB}/h%25C3%25A4%25C3%259F");
        assert_eq!(keys_of(Keeping::default(), &tasks, &[&url]), [first]);
        assert_eq!(keys_of(Keeping::default(), &tasks, &[&format!("file:///x/resources/default/{JOB}/r0")]), [second]);
    }

    /// | where the object lies | whether it can be told whose it is |
    #[test]
    fn only_keys_that_hold_the_id_of_their_job_are_touched() {
        let hint = |change: fn(&mut StorageHint)| {
            task(0, |task| {
                let mut hint = StorageHint::default();
                change(&mut hint);
                task.storage_hint = Some(hint);
            })
        };
        let chosen = format!("resources/anything/{JOB}/x");
        let table: [(DownloadTask, &[&str]); 5] = [
            (hint(|hint| hint.key = "logos/logo.png".into()), &[]),
            (hint(|hint| hint.key = "resources/anything/0190b6d4-0000-7000-8000-000000000001/x".into()), &[chosen.as_str()]),
            (hint(|hint| hint.key_prefix = "galleries".into()), &["galleries/resources/default/0190b6d4-0000-7000-8000-000000000001/r0"]),
            (hint(|hint| hint.bucket = "known".into()), &["resources/default/0190b6d4-0000-7000-8000-000000000001/r0"]),
            (hint(|hint| hint.bucket = "strange".into()), &[]),
        ];
        for (task, expected) in table {
            let keeping = Keeping { buckets: vec!["known".into()], ..Default::default() };
            assert_eq!(keys_of(keeping, std::slice::from_ref(&task), &[]), expected, "{task:?}");
        }
        let keeping = |template: &str| Keeping { key_template: Some(template.into()), ..Default::default() };
        assert_eq!(keys_of(keeping("{host}/{url_hash}"), &[task(0, |_| {})], &[]), Vec::<String>::new());
        assert_eq!(keys_of(keeping("{host}/{job_id}/{index}.{ext}"), &[task(0, |_| {})], &[]), [format!("h/{JOB}/0.jpg")]);
        assert!(Places::new(&keeping("{nothing}")).is_err());
    }
}
