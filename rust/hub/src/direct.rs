//! Jobs that nobody posted: a producer published their tasks itself, and the ledger learns of them from what workers report.
//!
//! Such a task names no manifest. Where it says how many resources its job has, the job is counted like any other from its first outcome on. Where it
//! does not, resources are told apart by their ids, the job has as many as were seen, and it stays open until a `JobStatus` of a settled state comes or
//! nothing has come for a while; what comes after a silence opens it again.

use std::time::Duration;

use bytes::Bytes;
use fetchbox_model::message::{JobState, ResourceOutcome};
use prost::Message;

use crate::core::{Core, read_failed};
use crate::db::Space;
use crate::error::HubError;
use crate::frame::JobFacts;
use crate::job::{Counts, JobId, JobRecord, id_text};
use crate::keys;
use crate::outcome::StatusPart;
use crate::stage::Touched;
use crate::tell::Said;
use crate::writer::{Command, Writer};

/// Most resources of such a job; its indexes are bits of its record.
pub const MOST: u32 = 1 << 20;
/// How often open jobs are looked at.
const ROUND: Duration = Duration::from_secs(1);

/// Whether a state is one that a job ends in.
fn ends(state: i32) -> bool {
    let ending = [JobState::Partial, JobState::Completed, JobState::Failed, JobState::Cancelled];
    ending.iter().any(|&ending| ending as i32 == state)
}

fn text(raw: &Bytes) -> String {
    String::from_utf8_lossy(raw).into_owned()
}

impl Writer {
    /// Makes the job of a status that nobody posted. False when the status does not say that its tasks came directly.
    pub(crate) fn adopt(&mut self, id: &JobId, status: &StatusPart) -> bool {
        if !status.manifest_key.is_empty() || status.outcomes.is_empty() || status.resources_total > MOST {
            return false;
        }
        let now_ms = self.stage.now_ms;
        let total = status.resources_total;
        let facts = JobFacts {
            job_id: id_text(id),
            job_type: text(&status.job_type),
            tenant: text(&status.tenant),
            created_ms: now_ms,
            resource_count: total,
            ..Default::default()
        };
        let counts = Counts { total: u64::from(total), ..Default::default() };
        self.totals.total += counts.total;
        let mut record = JobRecord { facts, counts, updated_ms: now_ms, direct: true, counted_by_id: total == 0, ..Default::default() };
        (record.log_partition, record.log_offset) = self.publish_log(&record, "seen", &[("resources", Said::Number(u64::from(total)))]);
        let touched = Touched { record: Box::new(record), changed: true, listed: None, outcomes: Vec::new(), objects: None };
        self.stage.jobs.insert(*id, touched);
        true
    }

    /// Gives the outcomes of a job without a stated total the indexes of their resources: new ones as their ids are new.
    pub(crate) fn index_by_id(&mut self, id: &JobId, outcomes: Vec<Bytes>) -> Result<Vec<Bytes>, HubError> {
        let mut placed = Vec::with_capacity(outcomes.len());
        for raw in outcomes {
            let Ok(mut outcome) = ResourceOutcome::decode(raw) else {
                self.core.metrics.unknown.add(1);
                continue;
            };
            let key = keys::direct_resource(id, &outcome.resource_id);
            let known = self.get(Space::Index, &key)?;
            let Some(job) = self.job(id)? else { return Ok(placed) };
            outcome.resource_index = match known {
                Some(index) => keys::number(Some(&index)) as u32,
                None if job.record.closed || job.record.counts.total >= u64::from(MOST) => {
                    self.core.metrics.unknown.add(1);
                    continue;
                }
                None => {
                    let index = job.record.counts.total;
                    job.record.counts.total += 1;
                    job.record.facts.resource_count += 1;
                    job.record.finished_ms = 0;
                    job.record.log_end = 0;
                    job.changed = true;
                    self.totals.total += 1;
                    self.stage.put(Space::Index, key, index.to_be_bytes().to_vec());
                    self.stage.put(Space::Index, keys::open(id), Bytes::new());
                    index as u32
                }
            };
            placed.push(Bytes::from(outcome.encode_to_vec()));
        }
        Ok(placed)
    }

    /// Whether this status ends a job that is open.
    pub(crate) fn closes(&mut self, id: &JobId, state: i32) -> Result<bool, HubError> {
        let Some(job) = self.job(id)? else { return Ok(false) };
        if !job.record.counted_by_id || job.record.closed || !ends(state) {
            return Ok(false);
        }
        job.record.closed = true;
        job.changed = true;
        Ok(true)
    }

    /// There will be no more of a job without a stated total, because somebody says so.
    pub(crate) fn close_direct(&mut self, id: &JobId) -> Result<(), HubError> {
        if let Some(job) = self.job(id)? {
            job.record.closed = true;
            job.changed = true;
        }
        self.end_direct(id)
    }

    /// Settles a job without a stated total, for good or until something comes.
    pub(crate) fn end_direct(&mut self, id: &JobId) -> Result<(), HubError> {
        self.stage.delete(Space::Index, keys::open(id));
        if let Some(job) = self.job(id)?
            && job.record.finished_ms == 0
            && job.record.counts.pending() == 0
        {
            self.settle(id);
        }
        Ok(())
    }

    /// The same, if nothing has changed the job since it was looked at.
    pub(crate) fn end_idle(&mut self, id: &JobId, seen_ms: u64) -> Result<(), HubError> {
        let pending = match self.job(id)? {
            Some(job) if job.record.updated_ms > seen_ms => return Ok(()),
            Some(job) => job.record.counts.pending(),
            None => 0,
        };
        // Replayed resources have to come first.
        if pending > 0 { Ok(()) } else { self.end_direct(id) }
    }

    /// Forgets what is kept of a direct job beside its record.
    pub(crate) fn forget_direct(&mut self, id: &JobId) -> Result<(), HubError> {
        let core = std::sync::Arc::clone(&self.core);
        let (from, to) = keys::direct_resources(id);
        for item in core.db.range(Space::Index, &from, &to) {
            self.stage.delete(Space::Index, item.map_err(read_failed)?.0);
        }
        self.stage.delete(Space::Index, keys::open(id));
        Ok(())
    }
}

/// Ends open jobs that have been silent.
#[derive(Debug, Default)]
pub struct Closer {
    next: Option<Duration>,
}

impl Closer {
    /// Looks at all open jobs once in a while.
    pub fn step(&mut self, core: &Core) -> Result<(), HubError> {
        let now = core.clock.elapsed();
        let idle_ms = (core.config.keeping.direct_idle * 1000.0) as u64;
        if idle_ms == 0 || self.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        self.next = Some(now + ROUND);
        let (from, to) = keys::all_open();
        let mut open = Vec::new();
        for item in core.db.range(Space::Index, &from, &to) {
            open.extend(keys::parse_open(&item.map_err(read_failed)?.0));
        }
        for id in open {
            let record = core.db.get(Space::Jobs, &id).map_err(read_failed)?.and_then(|raw| JobRecord::decode(raw).ok());
            let seen_ms = record.map_or(0, |record| record.updated_ms);
            if core.clock.cautious_ms().saturating_sub(seen_ms) >= idle_ms {
                core.ask(|reply| Command::EndDirect { id, seen_ms, reply })?;
            }
        }
        Ok(())
    }
}
