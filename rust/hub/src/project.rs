//! Appends of workers, and the projection of their outcomes onto the ledger, both in the same commit.

use bytes::Bytes;
use fetchbox_failpoint::fail_point;
use fetchbox_model::batch;
use fetchbox_model::message::{JobState, ResourceState};
use fetchbox_model::state::job_state_name;
use fetchbox_model::stream::Topic;
use prost::Message;

use crate::announce;
use crate::config::Broker;
use crate::core::read_failed;
use crate::db::Space;
use crate::dlq;
use crate::error::HubError;
use crate::feed::SETTLED;
use crate::frame::{AppendReply, AppendRequest, Commit, Entry};
use crate::job::{JobId, LastError, Verdict, parse_id};
use crate::keys;
use crate::outcome::{self, Object, OutcomePart, StatusPart};
use crate::record::Part;
use crate::tell::Said;
use crate::writer::Writer;

/// Longest error message that a job's record keeps, bytes; the outcome has all of it.
const MESSAGE_BYTES: usize = 500;

impl Writer {
    /// Appends, projects and commits offsets: checked first, so that a bad request changes nothing.
    pub(crate) fn append_request(&mut self, request: AppendRequest) -> Result<AppendReply, HubError> {
        self.core.check_space()?;
        let external = self.core.config.broker == Broker::External;
        let mut statuses = Vec::new();
        for entry in &request.entries {
            if let Some(decoded) = self.check_entry(entry)? {
                statuses.push(decoded);
            }
        }
        let mut offsets = Vec::with_capacity(request.entries.len());
        let mut statuses = statuses.into_iter();
        for entry in request.entries {
            let Some(topic) = topic_of(entry.topic) else { continue };
            fail_point!("hub::publish::before", topic.name());
            let part = Part { count: entry.count, target: entry.target_partition, bytes: entry.bytes };
            // With an external broker the streams live there; what arrives here has been read from it.
            offsets.push(if external { 0 } else { self.append(topic, entry.partition, part) });
            if topic == Topic::Status {
                for status in statuses.next().unwrap_or_default() {
                    self.project(status)?;
                }
            }
            fail_point!("hub::publish::after", topic.name());
        }
        self.commit_offsets(&request.member, &request.commits);
        Ok(AppendReply { offsets })
    }

    /// Checks an entry; the statuses of one for `jobs.status`.
    fn check_entry(&self, entry: &Entry) -> Result<Option<Vec<StatusPart>>, HubError> {
        let invalid = |what: String| Err(HubError::Invalid(what));
        let Some(topic) = topic_of(entry.topic) else { return invalid(format!("there is no topic {}", entry.topic)) };
        if entry.partition >= self.core.partitions(topic) {
            return invalid(format!("{} has no partition {}", topic.name(), entry.partition));
        }
        if entry.count == 0 || batch::count(&entry.bytes) != Ok(entry.count) {
            return invalid(format!("a batch for {} does not hold as many messages as it says", topic.name()));
        }
        match (topic, entry.target_partition) {
            (Topic::Retry, Some(target)) if target < self.core.task_partitions => Ok(None),
            (Topic::Retry, _) => invalid("a batch for jobs.retry needs a target partition of jobs.tasks".into()),
            (Topic::Status, _) => {
                let unreadable =
                    |error: &dyn std::fmt::Display| HubError::Invalid(format!("a batch for jobs.status cannot be read: {error}"));
                let messages = batch::unpack(&entry.bytes).map_err(|error| unreadable(&error))?;
                messages.into_iter().map(|m| StatusPart::decode(m).map_err(|error| unreadable(&error))).collect::<Result<_, _>>().map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Applies the outcomes of one job.
    pub(crate) fn project(&mut self, mut status: StatusPart) -> Result<(), HubError> {
        fail_point!("hub::projection::before");
        let metrics = std::sync::Arc::clone(&self.core);
        let metrics = &metrics.metrics;
        let now_ms = self.stage.now_ms;
        let Some(id) = parse_id(&status.job_id) else {
            metrics.unknown.add(status.outcomes.len() as u64);
            return Ok(());
        };
        let known = match self.job(&id)?.map(|job| (job.record.direct, job.record.counted_by_id, !job.record.facts.manifest_key.is_empty()))
        {
            // A task that its producer published may not speak for a job that was posted.
            Some((direct, _, posted)) => !posted || direct || !status.manifest_key.is_empty() || status.outcomes.is_empty(),
            None => self.adopt(&id, &status),
        };
        if !known {
            metrics.unknown.add(status.outcomes.len() as u64);
            return Ok(());
        }
        if self.job(&id)?.is_some_and(|job| job.record.counted_by_id) {
            status.outcomes = self.index_by_id(&id, status.outcomes)?;
        }
        let closed = self.closes(&id, status.state)?;
        let mut totals = self.totals;
        let Some(job) = self.job(&id)? else { return Ok(()) };
        if !job.record.started && status.state == JobState::InProgress as i32 {
            job.record.started = true;
            job.changed = true;
        }
        let stored_before = totals.bytes_stored;
        let (tells, mut failed) = (announce::is_wanted(&job.record.facts), Vec::new());
        let (mut again, mut late, mut dead, mut reusable) = (Vec::new(), false, Vec::new(), Vec::new());
        for raw in status.outcomes {
            let Ok(part) = OutcomePart::decode(raw.clone()) else {
                metrics.unknown.add(1);
                continue;
            };
            let state = part.state();
            match job.record.judge(part.index, part.generation, state) {
                Verdict::Counts => {
                    job.record.settle(part.index, state, part.size);
                    totals.count(state, part.size);
                    if let Some(objects) = job.objects.as_mut()
                        && let Some(object) = Object::of(part.clone())
                    {
                        objects.insert(part.index, object);
                    }
                    if !part.reuse_key.is_empty() {
                        reusable.push(raw.clone());
                    }
                    if state == ResourceState::Failed {
                        dead.push(dlq::letter(&part, &raw));
                        if tells {
                            failed.push(announce::named(&part));
                        }
                        job.record.last_error = Some(last_error(part));
                    }
                    job.record.updated_ms = now_ms;
                    job.changed = true;
                    job.outcomes.push(raw);
                }
                Verdict::Duplicate => {
                    metrics.duplicate.add(1);
                    if part.has_object() {
                        again.push((part, raw));
                    }
                }
                Verdict::Stale => {
                    metrics.stale.add(1);
                    late |= part.has_object();
                    let older = part.generation < job.record.generation(part.index);
                    if older && part.has_object() && job.record.is_settled(part.index) {
                        again.push((part, raw));
                    }
                }
                Verdict::Unknown => metrics.unknown.add(1),
            }
        }
        let open = job.record.counted_by_id && !closed;
        let finished = job.changed && job.record.counts.pending() == 0 && job.record.finished_ms == 0 && !open;
        let stored = totals.bytes_stored.saturating_sub(stored_before);
        self.totals = totals;
        if let Some(job) = self.stage.jobs.get(&id) {
            self.usage.add(&job.record.facts.tenant, stored);
        }
        self.stage.dead(&id, dead);
        self.announce(&id, &failed);
        for raw in reusable {
            self.remember(&id, &raw);
        }
        for (part, raw) in again {
            self.describe_again(&id, part, raw)?;
        }
        if closed {
            self.end_direct(&id)?;
        } else if finished {
            self.settle(&id);
        } else if late {
            self.collect_soon(&id)?;
        }
        fail_point!("hub::projection::after");
        Ok(())
    }

    /// A second object changes no count; when the object's content is another now, the ledger describes what is there.
    fn describe_again(&mut self, id: &JobId, part: OutcomePart, raw: Bytes) -> Result<(), HubError> {
        let core = std::sync::Arc::clone(&self.core);
        let Some(job) = self.job(id)? else { return Ok(()) };
        if part.generation != job.record.generation(part.index) {
            return self.describe_late(id, raw);
        }
        if job.objects.is_none() {
            let stored = outcome::stored(&core.db.view(), id).map_err(read_failed)?;
            job.objects = Some(outcome::objects(stored.into_iter().chain(job.outcomes.iter().cloned())));
        }
        match job.objects.as_mut().and_then(|objects| objects.get_mut(&part.index)) {
            // What a rebuild found knows no digest, and tells nothing new of an object whose is known.
            Some(before) if before.sha256 != part.sha256 && !part.sha256.is_empty() => {
                before.sha256 = part.sha256;
                let raw = outcome::counted_as(before.state, raw);
                job.outcomes.push(raw.clone());
                job.changed = true;
                self.overwritten(id, &raw)?;
            }
            Some(_) => {}
            // Cancelled or failed meanwhile: there is an object now that nobody owns.
            None => self.collect_soon(id)?,
        }
        Ok(())
    }

    /// Nothing of the job is pending any more: event, log and the time go with the last outcome.
    pub(crate) fn settle(&mut self, id: &JobId) {
        let now_ms = self.stage.now_ms;
        // Taken out for the time being: the streams and the job are both the group's.
        let Some(mut job) = self.stage.jobs.remove(id) else { return };
        job.changed = true;
        job.record.finished_ms = now_ms.max(1);
        job.record.updated_ms = now_ms;
        let record = &job.record;
        let counts = record.counts;
        fail_point!("hub::event::before");
        self.publish_status(Topic::Events, record);
        let fields = [
            ("state", Said::Text(job_state_name(record.state()))),
            ("stored", Said::Number(counts.stored)),
            ("reused", Said::Number(counts.reused)),
            ("filtered", Said::Number(counts.filtered)),
            ("failed", Said::Number(counts.failed)),
            ("cancelled", Said::Number(counts.cancelled)),
        ];
        let (_, offset) = self.publish_log(record, SETTLED, &fields);
        // Where the line will stand in an external broker is known when it is read back.
        job.record.log_end = if self.core.config.broker == Broker::External { 0 } else { offset + 1 };
        let collect_ms = self.collect_later(&job.record);
        self.stage.jobs.insert(*id, job);
        if let Some(after_ms) = collect_ms {
            self.queue_for_collection(id, after_ms);
        }
        fail_point!("hub::event::after");
    }

    /// Moves the offsets of partitions that the member owns, and only forward.
    fn commit_offsets(&mut self, member: &str, commits: &[Commit]) {
        let core = std::sync::Arc::clone(&self.core);
        for commit in commits {
            let Some(topic) = topic_of(commit.topic) else { continue };
            let groups = core.groups.lock();
            let owns = groups.get(&(topic as u8, commit.group.clone())).is_some_and(|group| group.owns(member, commit.partition));
            drop(groups);
            // Where the streams of an external broker end is not known here.
            let beyond = core.config.broker == Broker::Embedded && commit.offset > self.next_offset(topic, commit.partition);
            if !owns || beyond {
                core.metrics.ignored_commits.add(1);
                continue;
            }
            self.set_committed(topic, &commit.group, commit.partition, commit.offset);
        }
    }

    /// Sets a group's committed offset, forward only.
    ///
    /// Readers may see it before the commit is durable: a crash in between only delivers again.
    pub(crate) fn set_committed(&mut self, topic: Topic, group: &str, partition: u32, offset: u64) {
        let mut committed = self.core.committed.write();
        let current = committed.entry((topic as u8, group.to_owned())).or_default().entry(partition).or_default();
        if offset > *current {
            *current = offset;
            drop(committed);
            self.stage.put(Space::Meta, keys::committed(topic as u8, partition, group), offset.to_be_bytes().to_vec());
        }
    }
}

fn last_error(part: OutcomePart) -> LastError {
    let mut message = part.message;
    if message.len() > MESSAGE_BYTES {
        let end = (0..=MESSAGE_BYTES).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(end);
    }
    LastError { code: part.code, message, resource_id: part.resource_id, resource_index: part.index, http_status: part.http_status }
}

/// The topic of a number on the wire.
pub fn topic_of(id: u32) -> Option<Topic> {
    u8::try_from(id).ok().and_then(Topic::from_id)
}
