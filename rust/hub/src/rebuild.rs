//! A ledger that is made again: jobs from their manifests with what the store holds of them, outcomes from what is left of `jobs.status`.
//!
//! Whether a resource is stored can be seen where its object can only be its own: under a key that holds the job's id. An object appears whole or not at
//! all, so one that is there is the outcome. Everything else of the job is pending and comes again.

use std::sync::Arc;

use bytes::Bytes;
use fetchbox_model::batch;
use fetchbox_model::message::{DownloadTask, JobStatus, ResourceOutcome, ResourceState};
use fetchbox_model::stream::Topic;
use prost::Message;
use serde::Serialize;

use crate::config::Broker;
use crate::core::{Core, read_failed};
use crate::db::Space;
use crate::error::HubError;
use crate::frame::{AcceptRequest, RebuildReply, RebuildRequest};
use crate::job::parse_id;
use crate::log;
use crate::outcome::StatusPart;
use crate::shelf::Shelf;
use crate::tell;
use crate::writer::{Command, Writer};

/// Outcomes that one step projects again.
const TOGETHER: usize = 2000;
/// What is told of a resource whose object was found.
const FOUND: &str = "its object was in the store when the ledger was rebuilt";

/// What a second projection did.
#[derive(Debug, Default, Serialize)]
pub struct Restated {
    /// Outcomes that `jobs.status` still holds.
    outcomes: u64,
    /// Resources that they settled.
    settled: u64,
    /// `jobs.status` is a broker's: the hub reads it from its beginning once it is started again.
    restart: bool,
}

/// Makes a job, unless the ledger knows it.
pub fn job(core: &Core, request: RebuildRequest) -> Result<RebuildReply, HubError> {
    let RebuildRequest { accept, digests } = request;
    let id = parse_id(&accept.facts.job_id).ok_or_else(|| HubError::Invalid("job_id is not a UUID".into()))?;
    if core.db.get(Space::Jobs, &id).map_err(read_failed)?.is_some() {
        return Ok(RebuildReply::default());
    }
    let shelf = core.keep.shelf().ok_or_else(|| HubError::Unavailable("the hub has no store".into()))?;
    let outcomes = found(core, &shelf, &accept, digests)?;
    core.ask(|reply| Command::Rebuild { request: Box::new(accept), outcomes, reply })
}

/// Outcomes of the tasks whose objects are there.
fn found(core: &Core, shelf: &Arc<dyn Shelf>, accept: &AcceptRequest, digests: bool) -> Result<Vec<ResourceOutcome>, HubError> {
    let failed = |error: String| HubError::refused("STORAGE_UNAVAILABLE", error).after_ms(5000);
    let mut placed: Vec<(DownloadTask, String)> = Vec::new();
    for part in &accept.tasks {
        let tasks =
            batch::decode::<DownloadTask>(&part.bytes).map_err(|error| HubError::Invalid(format!("the tasks cannot be read: {error}")))?;
        for task in tasks.into_iter().flatten() {
            let url = core.keep.places().own(&task).and_then(|(bucket, key)| shelf.url(&bucket, &key));
            placed.extend(url.map(|url| (task, url)));
        }
    }
    let urls: Vec<String> = placed.iter().map(|(_, url)| url.clone()).collect();
    let sizes = shelf.sizes(&urls).map_err(failed)?;
    let mut outcomes = Vec::new();
    for ((task, storage_url), size) in placed.into_iter().zip(sizes) {
        let Some(size) = size else { continue };
        let sha256 = if digests { shelf.sha256(&storage_url).map_err(failed)? } else { None };
        outcomes.push(ResourceOutcome {
            resource_id: task.resource_id,
            resource_index: task.resource_index,
            state: ResourceState::Stored as i32,
            message: FOUND.to_owned(),
            size,
            sha256: sha256.map(|digest| Bytes::copy_from_slice(&digest)).unwrap_or_default(),
            storage_url,
            finished_at_ms: core.clock.now_ms(),
            context: [("url".to_owned(), task.url)].into(),
            ..Default::default()
        });
    }
    Ok(outcomes)
}

/// Projects everything that `jobs.status` still holds once more: what counted already counts no second time.
pub fn statuses(core: &Core) -> Result<Restated, HubError> {
    if core.config.broker == Broker::External {
        // The feed is at work further on; the next one begins anew.
        core.ask(|reply| Command::Reread { reply })?;
        return Ok(Restated { restart: true, ..Default::default() });
    }
    let mut restated = Restated::default();
    for partition in 0..core.partitions(Topic::Status) {
        let (from, to) = (core.start.get(Topic::Status, partition), core.next.get(Topic::Status, partition));
        let (mut some, mut size) = (Vec::new(), 0);
        for item in log::records(core, Topic::Status, partition, from, to).map_err(read_failed)? {
            for part in item.map_err(read_failed)?.1.parts {
                let messages = batch::unpack(&part.bytes).map_err(|error| HubError::Fatal(format!("jobs.status is damaged: {error}")))?;
                let told = messages.into_iter().filter_map(|message| StatusPart::decode(message).ok());
                for status in told.filter(|status| !status.outcomes.is_empty()) {
                    size += status.outcomes.len();
                    some.push(status);
                }
            }
            if size >= TOGETHER {
                restated.add(core, std::mem::take(&mut some), std::mem::take(&mut size))?;
            }
        }
        restated.add(core, some, size)?;
    }
    Ok(restated)
}

impl Restated {
    fn add(&mut self, core: &Core, statuses: Vec<StatusPart>, outcomes: usize) -> Result<(), HubError> {
        if !statuses.is_empty() {
            self.outcomes += outcomes as u64;
            self.settled += core.ask(|reply| Command::Restate { statuses, reply })?;
        }
        Ok(())
    }
}

impl Writer {
    /// Accepts a job together with its outcomes, in one commit: no worker is given what is stored already.
    pub(crate) fn rebuild(&mut self, request: AcceptRequest, outcomes: Vec<ResourceOutcome>) -> Result<RebuildReply, HubError> {
        let reply = self.accept(request)?;
        if !reply.created {
            return Ok(RebuildReply::default());
        }
        let stored = outcomes.len() as u32;
        let now_ms = self.stage.now_ms;
        if stored > 0
            && let Some(id) = parse_id(&reply.job_id)
            && let Some(job) = self.job(&id)?
        {
            let mut status = Vec::new();
            tell::status(&mut status, &job.record, now_ms);
            // What is encoded behind a message belongs to it.
            status.extend(JobStatus { outcomes, ..Default::default() }.encode_to_vec());
            let part = StatusPart::decode(&status[..]).map_err(|error| HubError::Invalid(error.to_string()))?;
            self.publish_one(Topic::Status, &reply.job_id, |out| out.extend_from_slice(&status));
            self.uncounted(|writer| writer.project(part))?;
        }
        Ok(RebuildReply { created: true, stored, pending: reply.resource_count - stored })
    }

    /// How many resources statuses settle that were not.
    pub(crate) fn restate(&mut self, statuses: Vec<StatusPart>) -> Result<u64, HubError> {
        let pending = self.totals.pending();
        self.uncounted(|writer| statuses.into_iter().try_for_each(|status| writer.project(status)))?;
        Ok(pending.saturating_sub(self.totals.pending()))
    }
}
