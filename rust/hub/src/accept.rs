//! Accepting a job: reservation, record, listings, tasks, log, status and manifest in one commit.

use bytes::Bytes;
use fetchbox_failpoint::fail_point;
use fetchbox_model::batch;
use fetchbox_model::stream::Topic;
use prost::Message;

use crate::config::Broker;
use crate::core::read_failed;
use crate::db::Space;
use crate::error::HubError;
use crate::frame::{AcceptReply, AcceptRequest, JobFacts, RateLimit};
use crate::job::{Counts, JobId, JobRecord, TaskSpan, id_text, parse_id};
use crate::keys;
use crate::limit::Of;
use crate::manifests::Blob;
use crate::record::Part;
use crate::reserve::{OWN_KEY, Reserved, check_body};
use crate::stage::Touched;
use crate::tell::Said;
use crate::writer::Writer;

/// Who can do something about a limit.
pub const ALLOWED: &str = "wait as long as Retry-After says, or ask the operator for more";

impl Writer {
    /// Accepts a job, or answers with the one that an earlier post made.
    pub(crate) fn accept(&mut self, request: AcceptRequest) -> Result<AcceptReply, HubError> {
        let id = self.check(&request)?;
        let facts = &request.facts;
        let key = facts.reservation.as_ref().map(|r| keys::reservation(&facts.tenant, &facts.job_type, &r.key));
        let mut held = false;
        if let (Some(key), Some(reservation)) = (&key, &facts.reservation)
            && let Some(reserved) = self.reserved(key)?
        {
            check_body(&reserved, &reservation.body_sha256)?;
            if reserved.accepted {
                return self.earlier(&reserved.id());
            }
            held = reserved.id() == id;
        }
        if let Some(job) = self.job(&id)? {
            if job.record.facts.tenant != facts.tenant || job.record.facts.job_type != facts.job_type {
                return Err(HubError::Invalid(format!("job {} belongs to somebody else", facts.job_id)));
            }
            return self.earlier(&id);
        }
        if facts.stores_manifest && !held {
            return Err(HubError::refused("HUB_UNAVAILABLE", "the post took so long that it was given up").after_ms(1000));
        }
        self.core.check_store_space()?;
        if self.core.config.broker == Broker::External && self.outbox_bytes >= self.core.config.outbox_max_bytes {
            return Err(HubError::refused("BROKER_UNAVAILABLE", "the broker is away and the outbox is full").after_ms(5000));
        }
        self.check_limits(&facts.tenant, facts.daily_bytes, facts.rate_limit, facts.resource_limit, facts.resource_count)?;
        fail_point!("hub::accept::before");
        let reply = self.create(id, request, key.clone());
        fail_point!("hub::accept::after");
        if let Some(key) = key {
            self.resolved(&key);
        }
        Ok(reply)
    }

    /// Takes what a job with so many resources costs of the tenant's buckets, or refuses it. What a refused one took is gone.
    pub(crate) fn check_limits(
        &mut self,
        tenant: &str,
        daily_bytes: u64,
        jobs: Option<RateLimit>,
        resources: Option<RateLimit>,
        count: u32,
    ) -> Result<(), HubError> {
        self.check_daily(tenant, daily_bytes)?;
        let buckets =
            [(Of::Jobs, jobs, 1, "RATE_LIMITED", "jobs"), (Of::Resources, resources, count, "RATE_LIMITED_RESOURCES", "resources")];
        for (of, limit, count, code, what) in buckets {
            let Some(limit) = limit else { continue };
            self.limits.take(of, tenant, limit, count).map_err(|wait| {
                let ms = (wait.as_millis() as u64).max(1);
                HubError::refused(code, format!("this tenant posts more {what} than it may; {ALLOWED}")).after_ms(ms)
            })?;
        }
        Ok(())
    }

    fn check(&self, request: &AcceptRequest) -> Result<JobId, HubError> {
        let invalid = |what: &str| Err(HubError::Invalid(what.to_owned()));
        let Some(id) = parse_id(&request.facts.job_id) else { return invalid("job_id is not a UUID") };
        let mut sum = 0u64;
        for tasks in &request.tasks {
            if tasks.partition >= self.core.task_partitions {
                return invalid("a batch is for a partition that jobs.tasks does not have");
            }
            if tasks.count == 0 || batch::count(&tasks.bytes) != Ok(tasks.count) {
                return invalid("a batch does not hold as many tasks as it says");
            }
            sum += u64::from(tasks.count);
        }
        if sum != u64::from(request.facts.resource_count) {
            return invalid("resource_count is not the number of tasks");
        }
        if !request.log.is_empty() && batch::count(&request.log).is_err() {
            return invalid("log is not a batch");
        }
        Ok(id)
    }

    fn earlier(&mut self, id: &JobId) -> Result<AcceptReply, HubError> {
        let job = self.job(id)?.ok_or_else(|| HubError::Fatal(format!("job {} has a reservation but no record", id_text(id))))?;
        Ok(reply(&job.record.facts, false))
    }

    fn create(&mut self, id: JobId, request: AcceptRequest, reservation: Option<Bytes>) -> AcceptReply {
        let now_ms = self.stage.now_ms;
        let AcceptRequest { mut facts, tasks, log, manifest } = request;
        let reserved = facts.reservation.take();
        (facts.rate_limit, facts.resource_limit, facts.daily_bytes) = (None, None, 0);
        facts.job_id = id_text(&id);
        let answer = reply(&facts, true);
        if std::mem::take(&mut facts.stores_manifest) {
            self.stage.delete(Space::Index, keys::intent(&id));
        }
        let mut reservation = reservation;
        if let Some(key) = reservation.take_if(|_| reserved.as_ref().is_some_and(|reserved| reserved.key.starts_with(OWN_KEY))) {
            // Nobody can ask with this key again.
            self.stage.delete(Space::Index, key);
        }
        if let (Some(key), Some(reserved)) = (&reservation, reserved) {
            let accepted = Reserved { job: id.to_vec(), body_sha256: reserved.body_sha256, accepted: true, created_ms: now_ms };
            self.stage.put(Space::Index, key.clone(), accepted.encode_to_vec());
        }
        let mut spans = Vec::with_capacity(tasks.len());
        for batch in tasks {
            if self.core.config.broker == Broker::External {
                self.publish(Topic::Tasks, batch.partition, batch.count, batch.bytes.clone());
            }
            // Kept here too: cancelling, collecting and replaying look tasks up.
            let offset = self.append(Topic::Tasks, batch.partition, Part { count: batch.count, target: None, bytes: batch.bytes });
            spans.push(TaskSpan { partition: batch.partition, offset, count: batch.count });
        }
        let counts = Counts { total: u64::from(facts.resource_count), ..Default::default() };
        self.totals.total += counts.total;
        let mut record =
            JobRecord { facts, counts, spans, updated_ms: now_ms, reservation: reservation.unwrap_or_default(), ..Default::default() };
        (record.log_partition, record.log_offset) = if log.is_empty() {
            self.publish_log(&record, "accepted", &[("resources", Said::Number(counts.total))])
        } else {
            let partition = fetchbox_model::manifest::partition_of(&record.facts.job_id, self.core.partitions(Topic::Logs));
            let count = batch::count(&log).unwrap_or(0);
            (partition, self.publish(Topic::Logs, partition, count, log))
        };
        if let Some(body) = manifest {
            let (job_id, job_type) = (record.facts.job_id.clone(), record.facts.job_type.clone());
            record.manifest_blob = self.stage.add_manifest(&mut self.manifest_next, Blob { job_id, job_type, body });
            self.new_manifest = true;
        }
        self.publish_status(Topic::Status, &record);
        let empty = counts.total == 0;
        self.stage.jobs.insert(id, Touched { record: Box::new(record), changed: true, listed: None, outcomes: Vec::new(), objects: None });
        if empty {
            self.settle(&id);
        }
        answer
    }

    /// Manifests below this sequence are in the store: their blobs go.
    pub(crate) fn manifests_written(&mut self, below: u64) -> Result<(), HubError> {
        let head = keys::number(self.core.db.get(Space::Meta, keys::MANIFEST_HEAD).map_err(read_failed)?.as_deref());
        for sequence in head..below {
            self.stage.delete(Space::Manifests, sequence.to_be_bytes().to_vec());
        }
        self.stage.put(Space::Meta, keys::MANIFEST_HEAD, below.to_be_bytes().to_vec());
        Ok(())
    }
}

fn reply(facts: &JobFacts, created: bool) -> AcceptReply {
    AcceptReply { job_id: facts.job_id.clone(), created, resource_count: facts.resource_count, manifest_key: facts.manifest_key.clone() }
}
